"""Recurrences from chunk to chunk, over a matrix state for each head."""

import keras
from keras import ops

from keras_linattn.core.numerics import matmul


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


def carry_chunks(transition, update, start):
    """`loop_over_chunks` of S_(n+1) = A_n S_n + U_n.

    Args:
        transition: tensor `[B, H, N, D, D]`, A, or its diagonal as
            `[B, H, N, D, 1]` or `[B, H, N, 1, 1]`.
        update: tensor `[B, H, N, D, V]`, U.
        start: tensor `[B, H, D, V]`.

    Returns:
        Tensor `[B, H, N, D, V]` and tensor `[B, H, D, V]`.
    """
    width = transition.shape[-1]

    def advance(inputs, state):
        transition, update = inputs[..., :width], inputs[..., width:]
        if width == 1:
            return transition * state + update
        return matmul(transition, state) + update

    shape = (*ops.shape(update)[:-1], width)
    transition = ops.broadcast_to(transition, shape)
    inputs = ops.concatenate([transition, update], axis=-1)
    return loop_over_chunks(advance, inputs, start)
