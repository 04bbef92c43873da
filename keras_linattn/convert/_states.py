"""States of mechanisms in the shape of a cache: one tensor `(B, N)`.

KerasHub's decoders stack the caches of their layers and slice them again. A
tensor `(B, N)` for each layer passes through that code as it is. Its first
column is a place: positions from there on are hidden, which holds back the
padding of a prompt. The rest is the state, and zeros up to the longest of the
layers.
"""

import math

import keras
from keras import ops

ALL = 2.0**24  # behind every position; whole numbers up to it are exact


def size_of(spec):
    """Columns that a state needs."""
    leaves = keras.tree.flatten(spec)
    return 1 + sum(math.prod(leaf.shape[1:]) for leaf in leaves)


def packed(cache, state):
    """The cache with another state."""
    batch = ops.shape(cache)[0]
    parts = [cache[:, :1]]
    for leaf in keras.tree.flatten(state):
        size = math.prod(leaf.shape[1:])
        leaf = ops.cast(leaf, cache.dtype)
        parts.append(ops.reshape(leaf, (batch, size)))
    used = sum(part.shape[1] for part in parts)
    return ops.concatenate([*parts, cache[:, used:]], axis=1)


def unpacked(cache, spec):
    """The state in a cache, a tree like `spec`."""
    batch, leaves, start = ops.shape(cache)[0], [], 1
    for leaf in keras.tree.flatten(spec):
        end = start + math.prod(leaf.shape[1:])
        part = ops.reshape(cache[:, start:end], (batch, *leaf.shape[1:]))
        leaves.append(ops.cast(part, leaf.dtype))
        start = end
    return keras.tree.pack_sequence_as(spec, leaves)


def visible(cache, length, start):
    """Bool `(B, T)`: which of the positions from `start` on are not hidden."""
    place = ops.arange(length, dtype="float32") + ops.cast(start, "float32")
    return ops.expand_dims(place, 0) < ops.cast(cache[:, :1], "float32")


def with_limit(cache, limit):
    """Caches `(B, L, N)` that hide the positions from `limit` on."""
    first = ops.ones_like(cache[..., :1]) * ops.cast(limit, cache.dtype)
    return ops.concatenate([first, cache[..., 1:]], axis=-1)
