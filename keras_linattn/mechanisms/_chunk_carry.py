"""Recurrences over a matrix state: by chunks, or one position at a time."""

import math

import keras
from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.chunks import keep
from keras_linattn.core.chunks import scan
from keras_linattn.core.chunks import scans_in_parallel
from keras_linattn.core.numerics import split_at
from keras_linattn.core.shapes import heads_first
from keras_linattn.core.shapes import heads_last


class _Cell(keras.layers.Layer):
    """One chunk of an RNN, all of whose tensors are flat.

    Args:
        advance: callable, see `loop_over_chunks`.
        shapes: list of the static shapes of a chunk's inputs.
        state_shape: that of the state.
        output_shape: that of a chunk's output.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, advance, shapes, state_shape, output_shape, **kwargs):
        super().__init__(**kwargs)
        self.advance = advance
        self.shapes, self.state_shape = shapes, state_shape
        self.ends = [
            sum(map(math.prod, shapes[: i + 1])) for i in range(len(shapes) - 1)
        ]
        self.state_size = math.prod(state_shape)
        self.output_size = math.prod(output_shape)

    def call(self, inputs, states):
        parts = split_at(inputs, self.ends) if self.ends else [inputs]
        parts = tuple(
            ops.reshape(part, (-1, *shape))
            for part, shape in zip(parts, self.shapes, strict=True)
        )
        state = ops.reshape(states[0], (-1, *self.state_shape))
        output, state = self.advance(parts, state)
        return (
            ops.reshape(output, (-1, self.output_size)),
            [ops.reshape(state, (-1, self.state_size))],
        )


@backends.with_fast_forms
def loop_over_chunks(advance, inputs, start, output_shape):
    """A recurrence from chunk to chunk.

    A `keras.layers.RNN` over the chunks: the only loop that has gradients,
    unknown lengths and export on every backend.

    Args:
        advance: callable of a chunk's inputs, a tuple of tensors
            `[..., rows, columns]`, and the state `[..., D, X]` before it. It
            returns the chunk's output and the state after it.
        inputs: tuple of tensors `[B, H or 1, N, rows, columns]`, of the
            state's dtype, the first with H.
        start: tensor `[B, H, D, X]`, the state before the first chunk.
        output_shape: pair of ints, rows and columns of a chunk's output.

    Returns:
        Tensor `[B, H, N, *output_shape]` and tensor `[B, H, D, X]`.
    """
    if inputs[0].shape[2] == 1:
        output, after = advance(tuple(x[:, :, 0] for x in inputs), start)
        return ops.expand_dims(output, 2), after
    batch, heads, count = ops.shape(inputs[0])[:3]
    shapes = [tuple(x.shape[-2:]) for x in inputs]
    cell = _Cell(
        advance, shapes, start.shape[-2:], output_shape, dtype=start.dtype
    )
    rnn = keras.layers.RNN(
        cell, return_sequences=True, return_state=True, dtype=start.dtype
    )
    flat = [
        ops.reshape(
            ops.broadcast_to(x, (batch, heads, count, *shape)),
            (batch * heads, count, math.prod(shape)),
        )
        for x, shape in zip(inputs, shapes, strict=True)
    ]
    outputs, after = rnn(
        ops.concatenate(flat, axis=-1),
        initial_state=[ops.reshape(start, (batch * heads, cell.state_size))],
    )
    return (
        ops.reshape(outputs, (batch, heads, count, *output_shape)),
        ops.reshape(after, ops.shape(start)),
    )


def states_of_chunks(advance, inputs, start):
    """The states before each chunk, and the one after the last.

    Args:
        advance: callable of a chunk's inputs and the state before it, which
            returns the state after it.
        inputs: see `loop_over_chunks`.
        start: see `loop_over_chunks`.

    Returns:
        Tensor `[B, H, N, D, X]` and tensor `[B, H, D, X]`.
    """

    def keep_before(inputs, state):
        return state, advance(inputs, state)

    return loop_over_chunks(keep_before, inputs, start, start.shape[-2:])


def carry_chunks(transition, update, start, breaks=None):
    """`states_of_chunks` of S_(n+1) = A_n S_n + U_n.

    Args:
        transition: tensor `[B, H, N, D, 1]` or `[B, H, N, 1, 1]`, the diagonal
            of A.
        update: tensor `[B, H, N, D, V]`, U.
        start: tensor `[B, H, D, V]`.
        breaks: bool tensor `[B, 1, N, 1, 1]`, the chunks that drop the state
            before them, see `core.documents.DocumentChunks`. Defaults to
            `None`: none.

    Returns:
        Tensor `[B, H, N, D, V]` and tensor `[B, H, D, V]`.
    """
    if scans_in_parallel(update):
        return _carry_in_parallel(transition, update, start, breaks)

    def advance(inputs, state):
        update, transition = inputs
        return transition * state + update

    inputs = update, transition
    return states_of_chunks(*with_breaks(advance, inputs, breaks), start)


def _carry_in_parallel(transition, update, start, breaks):
    """`carry_chunks` by `scan`, of all chunks and of the state before them."""
    if breaks is not None:
        transition = keep(transition, breaks)
    size = (*ops.shape(update)[:3], *transition.shape[3:])
    transition = ops.broadcast_to(transition, size)
    # The factor of the start is not used.
    nothing = ops.zeros_like(transition[:, :, :1])
    elements = [
        ops.concatenate([nothing, transition], axis=2),
        ops.concatenate([ops.expand_dims(start, 2), update], axis=2),
    ]

    def combine(earlier, later):
        (first, state), (then, update) = earlier, later
        return [then * first, then * state + update]

    states = scan(combine, elements)[1]
    return states[:, :, :-1], states[:, :, -1]


def merge_chunks(merge, chunks, start, breaks=None):
    """`states_of_chunks` of an associative `merge(chunk, state)`.

    Args:
        merge: callable on tensors `[..., D, X]`, a chunk's own state and the
            one before it.
        chunks: tensor `[B, H, N, D, X]`, each chunk's state from no past.
        start: tensor `[B, H, D, X]`.
        breaks: bool tensor `[B, 1, N, 1, 1]`, see `carry_chunks`.

    Returns:
        The tensors that `states_of_chunks` returns.
    """
    if not scans_in_parallel(chunks):

        def advance(inputs, state):
            return merge(*inputs, state)

        return states_of_chunks(*with_breaks(advance, (chunks,), breaks), start)
    states = ops.concatenate([ops.expand_dims(start, 2), chunks], axis=2)
    if breaks is None:
        breaks = ops.zeros_like(chunks[:1, :1, :, :1, :1], dtype="bool")
    breaks = ops.concatenate([ops.zeros_like(breaks[:, :, :1]), breaks], axis=2)

    def combine(earlier, later):
        (before, cut), (state, anew) = earlier, later
        before = keep(before, anew)
        return [merge(state, before), ops.logical_or(cut, anew)]

    states, _ = scan(combine, [states, breaks])
    return states[:, :, :-1], states[:, :, -1]


def with_breaks(advance, inputs, breaks):
    """Lets a loop drop its state where a document ends.

    Args:
        advance: callable, see `loop_over_chunks`.
        inputs: tuple of tensors `[B, H, N, rows, columns]`.
        breaks: bool tensor `[B, 1, N, 1, 1]`, or `None`.

    Returns:
        `advance` and `inputs` for `loop_over_chunks`.
    """
    if breaks is None:
        return advance, inputs

    def advance_anew(inputs, state):
        *inputs, cut = inputs
        return advance(tuple(inputs), keep(state, cut > 0))

    return advance_anew, (*inputs, ops.cast(breaks, inputs[0].dtype))


class _PositionCell(keras.layers.Layer):
    """One position of an RNN over heads that lie side by side."""

    def __init__(self, one_step, sizes, state_shape, value_dim, **kwargs):
        super().__init__(**kwargs)
        self.one_step, self.state_shape = one_step, state_shape
        self.heads = state_shape[0]
        self.ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        self.state_size = math.prod(state_shape)
        self.output_size = self.heads * value_dim

    def call(self, inputs, states):
        width = inputs.shape[-1] // self.heads
        inputs = ops.reshape(inputs, (-1, self.heads, 1, width))
        query, key, value, *gates = split_at(inputs, self.ends)
        state = ops.reshape(states[0], (-1, *self.state_shape))
        output, state = self.one_step(query, key, value, tuple(gates), state)
        return (
            ops.reshape(output, (-1, self.output_size)),
            [ops.reshape(state, (-1, self.state_size))],
        )


def loop_over_positions(one_step, heads, gates, state, starts=None):
    """Applies a recurrence one position after the other.

    Args:
        one_step: callable, see `RecurrentMechanism.one_step`.
        heads: tuple of query, key, value, tensors `[B, H, T, .]`.
        gates: tuple of tensors `[B, H, T, .]`.
        state: tensor `[B, H, D, V]`.
        starts: bool tensor `[B, 1, T, 1]`, the positions that drop the state
            before them, see `core.documents.starts_of`. Defaults to `None`:
            none.

    Returns:
        The output `[B, H, T, V]`, and the state after the last position.
    """
    if starts is not None:
        one_step = _after_start(one_step)
        starts = ops.broadcast_to(starts, (*ops.shape(heads[0])[:-1], 1))
        gates = (*gates, ops.cast(starts, state.dtype))
    parts = [*heads, *gates]
    sizes = [x.shape[-1] for x in parts]
    batch, count, length, _ = ops.shape(heads[0])
    value_dim = heads[2].shape[-1]
    cell = _PositionCell(
        one_step, sizes, state.shape[1:], value_dim, dtype=state.dtype
    )
    rnn = keras.layers.RNN(
        cell, return_sequences=True, return_state=True, dtype=state.dtype
    )
    inputs = heads_last(ops.concatenate(parts, axis=-1))
    output, after = rnn(
        ops.reshape(inputs, (batch, length, count * sum(sizes))),
        initial_state=[ops.reshape(state, (batch, -1))],
    )
    output = ops.reshape(output, (batch, length, count, value_dim))
    return heads_first(output), ops.reshape(after, ops.shape(state))


def _after_start(one_step):
    """`one_step` whose last gate says where a document starts."""

    def step(query, key, value, gates, state):
        *gates, start = gates
        state = keep(state, start > 0)
        return one_step(query, key, value, tuple(gates), state)

    return step
