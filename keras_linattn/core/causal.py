"""Causal kernel attention, in the order that suits the processor."""

import functools

import keras
from keras import backend
from keras import ops

from keras_linattn.core import in_place
from keras_linattn.core.chunks import split_chunks
from keras_linattn.core.products import CHUNK_SIZE
from keras_linattn.core.products import append_ones
from keras_linattn.core.products import causal_product
from keras_linattn.core.products import divide_by_last
from keras_linattn.core.shapes import heads_last

SEGMENT = 256  # positions that XLA attends to at once on a CPU
SHORTEST = 512  # positions for which parts are worth their operations


def attend_causally(query, key, value, state=None):
    """Kernel attention over s <= t, in chunks.

    Args:
        query: tensor `[B, H, T, R]`, features.
        key: tensor `[B, H, T, R]`, features, 0 where masked.
        value: tensor `[B, H, T, V]`.
        state: tensor `[B, H, R, V + 1]` or `None`, see `causal_product`.

    Returns:
        The output `[B, H, T, V]`, and the state after the last position.
    """
    sizes = ops.shape(query)  # those that JAX exports may be symbols
    known = all(isinstance(size, int) for size in sizes)
    if known and sizes[2] >= SHORTEST:
        if in_place.can_attend(query, key, value):
            return in_place.attend_causally(query, key, value, state)
        if backend.backend() == "jax" and _on_cpu():
            return attend_in_segments(query, key, value, state)
    return attend_at_once(query, key, value, state)


def attend_at_once(query, key, value, state=None):
    """`attend_causally` for all heads together."""
    summed, state = causal_product(query, key, append_ones(value), state)
    return divide_by_last(summed), state


def attend_in_segments(query, key, value, state=None):
    """`attend_causally` for a segment after the other.

    What XLA computes for all positions does not stay in the cache of a CPU,
    and most of the time goes into its way there and back. What a segment needs
    does, and is computed again in the backward pass.
    """
    batch, heads, length, rank = query.shape
    size = CHUNK_SIZE * max(1, SEGMENT // (CHUNK_SIZE * batch))
    dim = value.shape[-1]
    if state is None:
        state = ops.zeros((batch, heads, rank, dim + 1), key.dtype)
    segments = [to_segments(x, size) for x in (query, key, value)]
    shape = state.shape
    state = ops.reshape(state, (1, batch * heads, rank, dim + 1))
    state, output = ops.scan(again_in_backward(), state, segments)
    output = from_segments(output, batch, length)
    return output, ops.reshape(state, shape)


def to_segments(x, size):
    """`[B, H, T, D]` to `[N, C, B H, D]`: no copy of heads for a batch of 1."""
    x = split_chunks(heads_last(x), size, axis=1)  # as after a projection
    batch, count, size, heads, dim = x.shape
    if batch > 1:
        x = ops.transpose(x, (1, 2, 0, 3, 4))
    return ops.reshape(x, (count, size, batch * heads, dim))


def from_segments(x, batch, length):
    """The inverse of `to_segments`."""
    count, size, heads, dim = x.shape
    x = ops.reshape(x, (count * size, batch, heads // batch, dim))
    x = ops.transpose(x, (1, 2, 0, 3))
    return x[:, :, :length]


def attend_to_segment(state, segment):
    """The state and the outputs `[C, B H, V]` after a segment `[C, B H, D]`."""
    heads = (ops.transpose(x, (1, 0, 2))[None] for x in segment)
    output, state = attend_at_once(*heads, state)
    return state, ops.transpose(output[0], (1, 0, 2))


# One function for all calls: for each that is new to it, JAX compiles anew.
# Only made where it is used: Keras warns under a backend without it.
@functools.cache
def again_in_backward():
    return keras.remat(attend_to_segment)


def _on_cpu():
    import jax

    return jax.default_backend() == "cpu"
