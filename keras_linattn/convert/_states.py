"""Packs the state of a mechanism into a cache: one tensor `(B, N)`.

KerasHub's decoders stack the caches of their layers and slice them again. That
code works unchanged with a tensor `(B, N)` for each layer. The first column is
a position: positions from there on are masked, such as the padding of a prompt.
The other columns are the state, then zeros up to the longest state of a layer.
"""

import math

import keras
from keras import ops

ALL = 2.0**24  # beyond every position; float32 has all integers up to it


def size_of(spec):
    """Returns the number of columns that a state needs, with the first."""
    leaves = keras.tree.flatten(spec)
    return 1 + sum(math.prod(leaf.shape[1:]) for leaf in leaves)


def packed(cache, state):
    """Returns the cache with a new state."""
    batch = ops.shape(cache)[0]
    parts = [cache[:, :1]]
    for leaf in keras.tree.flatten(state):
        size = math.prod(leaf.shape[1:])
        leaf = ops.cast(leaf, cache.dtype)
        parts.append(ops.reshape(leaf, (batch, size)))
    used = sum(part.shape[1] for part in parts)
    return ops.concatenate([*parts, cache[:, used:]], axis=1)


def unpacked(cache, spec):
    """Returns the state in a cache, a tree like `spec`."""
    batch, leaves, start = ops.shape(cache)[0], [], 1
    for leaf in keras.tree.flatten(spec):
        end = start + math.prod(leaf.shape[1:])
        part = ops.reshape(cache[:, start:end], (batch, *leaf.shape[1:]))
        leaves.append(ops.cast(part, leaf.dtype))
        start = end
    return keras.tree.pack_sequence_as(spec, leaves)


def visible(cache, length, start):
    """Bool `(B, T)`: which of the positions from `start` on are not masked."""
    place = ops.arange(length, dtype="float32") + ops.cast(start, "float32")
    return ops.expand_dims(place, 0) < ops.cast(cache[:, :1], "float32")


def with_limit(cache, limit):
    """Returns caches `(B, L, N)` that mask the positions from `limit` on."""
    first = ops.ones_like(cache[..., :1]) * ops.cast(limit, cache.dtype)
    return ops.concatenate([first, cache[..., 1:]], axis=-1)
