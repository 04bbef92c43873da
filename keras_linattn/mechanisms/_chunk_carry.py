"""Recurrences over a matrix state: by chunks, or one position at a time."""

import math

import keras
from keras import ops

from keras_linattn.core.chunks import keep
from keras_linattn.core.chunks import scan
from keras_linattn.core.chunks import scans_in_parallel
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import split_at
from keras_linattn.core.shapes import heads_first
from keras_linattn.core.shapes import heads_last


class _Cell(keras.layers.Layer):
    """One chunk of an RNN: gives the state before it, and the one after."""

    def __init__(self, advance, rows, width, columns, **kwargs):
        super().__init__(**kwargs)
        self.advance = advance
        self.input_shape_, self.state_shape = (rows, width), (rows, columns)
        self.state_size = self.output_size = rows * columns

    def call(self, inputs, states):
        inputs = ops.reshape(inputs, (-1, *self.input_shape_))
        state = ops.reshape(states[0], (-1, *self.state_shape))
        after = self.advance(inputs, state)
        return states[0], [ops.reshape(after, (-1, self.state_size))]


def loop_over_chunks(advance, inputs, start):
    """The states before each chunk, and the one after the last.

    A `keras.layers.RNN` over the chunks: of all loops, the one that has
    gradients, free lengths and export on every backend.

    Args:
        advance: callable `(input, state)` on `[..., D, W]` and `[..., D, X]`
            that returns the next state.
        inputs: tensor `[B, H, N, D, W]`.
        start: tensor `[B, H, D, X]`, the state before the first chunk.

    Returns:
        Tensor `[B, H, N, D, X]` and tensor `[B, H, D, X]`.
    """
    if inputs.shape[2] == 1:
        after = advance(inputs[:, :, 0], start)
        return ops.expand_dims(start, 2), after
    batch, heads, count = ops.shape(inputs)[:3]
    rows, width = inputs.shape[-2:]
    columns = start.shape[-1]
    cell = _Cell(advance, rows, width, columns, dtype=inputs.dtype)
    rnn = keras.layers.RNN(
        cell, return_sequences=True, return_state=True, dtype=inputs.dtype
    )
    before, after = rnn(
        ops.reshape(inputs, (batch * heads, count, rows * width)),
        initial_state=[ops.reshape(start, (batch * heads, rows * columns))],
    )
    return (
        ops.reshape(before, (batch, heads, count, rows, columns)),
        ops.reshape(after, (batch, heads, rows, columns)),
    )


def carry_chunks(transition, update, start, breaks=None):
    """`loop_over_chunks` of S_(n+1) = A_n S_n + U_n.

    Args:
        transition: tensor `[B, H, N, D, D]`, A, or its diagonal as
            `[B, H, N, D, 1]` or `[B, H, N, 1, 1]`.
        update: tensor `[B, H, N, D, V]`, U.
        start: tensor `[B, H, D, V]`.
        breaks: bool tensor `[B, 1, N, 1, 1]`, the chunks that drop the state
            before them, see `core.documents.DocumentChunks`. Defaults to
            `None`: none.

    Returns:
        Tensor `[B, H, N, D, V]` and tensor `[B, H, D, V]`.
    """
    width = transition.shape[-1]
    times = ops.multiply if width == 1 else matmul
    if scans_in_parallel(update):
        return _carry_in_parallel(times, transition, update, start, breaks)

    def advance(inputs, state):
        return times(inputs[..., :width], state) + inputs[..., width:]

    shape = (*ops.shape(update)[:-1], width)
    transition = ops.broadcast_to(transition, shape)
    inputs = ops.concatenate([transition, update], axis=-1)
    return loop_over_chunks(*with_breaks(advance, inputs, breaks), start)


def _carry_in_parallel(times, transition, update, start, breaks):
    """`carry_chunks` by `scan`, of all chunks and of the state before them."""
    if breaks is not None:
        transition = keep(transition, breaks)
    size = (*ops.shape(update)[:3], *transition.shape[3:])
    transition = ops.broadcast_to(transition, size)
    # What the start is multiplied by is not used.
    nothing = ops.zeros_like(transition[:, :, :1])
    elements = [
        ops.concatenate([nothing, transition], axis=2),
        ops.concatenate([ops.expand_dims(start, 2), update], axis=2),
    ]

    def combine(earlier, later):
        (first, state), (then, update) = earlier, later
        return [times(then, first), times(then, state) + update]

    states = scan(combine, elements)[1]
    return states[:, :, :-1], states[:, :, -1]


def merge_chunks(merge, chunks, start, breaks=None):
    """`loop_over_chunks` of an associative `merge(chunk, state)`.

    Args:
        merge: callable on tensors `[..., D, X]`, a chunk's own state and the
            one before it.
        chunks: tensor `[B, H, N, D, X]`, the states of chunks alone.
        start: tensor `[B, H, D, X]`.
        breaks: bool tensor `[B, 1, N, 1, 1]`, see `carry_chunks`.

    Returns:
        Those of `loop_over_chunks`.
    """
    if not scans_in_parallel(chunks):
        return loop_over_chunks(*with_breaks(merge, chunks, breaks), start)
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
        advance: callable `(input, state)`, see `loop_over_chunks`.
        inputs: tensor `[B, H, N, D, W]`.
        breaks: bool tensor `[B, 1, N, 1, 1]`, or `None`.

    Returns:
        `advance` and `inputs` for `loop_over_chunks`.
    """
    if breaks is None:
        return advance, inputs
    breaks = ops.broadcast_to(breaks, (*ops.shape(inputs)[:-1], 1))
    breaks = ops.cast(breaks, inputs.dtype)

    def advance_anew(inputs, state):
        state = keep(state, inputs[..., :1] > 0)
        return advance(inputs[..., 1:], state)

    return advance_anew, ops.concatenate([breaks, inputs], axis=-1)


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
