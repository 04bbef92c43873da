"""Softmax attention: the exact, quadratic reference.

out = softmax_S(Q K^T / sqrt D) V.  Causal: over s <= t.

Cost: O(T S (D + V)) time and, where the backend has no fused kernel, T S
memory; not linear. State, with `cache_length=N`: N keys and values.
Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, arXiv
1706.03762, equation 1.
Differs from the paper: a row that sees no key is 0.
"""

import dataclasses
import math
from typing import Any

import keras
from keras import ops
from keras.backend import standardize_dtype

from keras_linattn.core import backends
from keras_linattn.core.annotations import Tree
from keras_linattn.core.documents import same_document
from keras_linattn.core.fused import run_fused
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import expand_to_rank
from keras_linattn.core.masks import nan_where
from keras_linattn.core.masks import select
from keras_linattn.core.masks import take_positions
from keras_linattn.core.masks import visible_places
from keras_linattn.core.numerics import masked_softmax
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import split_at
from keras_linattn.core.products import move_nan_to_keys
from keras_linattn.core.shapes import heads_first
from keras_linattn.core.shapes import heads_last
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits


def earlier_pairs(length):
    """Bool mask of s <= t that broadcasts against `[B, H, T, S]`."""
    position = ops.arange(length)
    visible = ops.expand_dims(position, 1) >= ops.expand_dims(position, 0)
    return ops.reshape(visible, (1, 1, length, length))


def visible_pairs(key_mask=None, documents=None):
    """Bool mask of visible keys, and of the query's own document."""
    visible = None
    if key_mask is not None:
        visible = expand_to_rank(ops.cast(key_mask, "bool"), rank=4, axis=3)
    if documents is None:
        return visible
    return combine_masks(visible, same_document(documents))


def pad_features(x, size):
    """Zeros after the last feature: JAX attends only where V = D."""
    missing = size - x.shape[-1]
    return ops.pad(x, [(0, 0)] * 3 + [(0, missing)]) if missing else x


def attend(query, key, value, key_mask=None):
    """Scaled dot-product attention on `[B, H, T, D]`, both ways."""
    visible = visible_pairs(key_mask)

    def slow(query, key, value):
        return matmul(weights_of(query, key, visible), value)

    if standardize_dtype(query.dtype) == "float64":
        # Keras' function rounds float64 to `floatx()` on some backends.
        return slow(query, key, value)

    def fused(query, key, value):
        return attend_by_keras(query, key, value, visible)

    output = run_fused(fused, slow, query, key, value)
    if visible is None:
        return output
    sees_any = ops.any(visible, axis=-1, keepdims=True)
    return select(sees_any, output)


def attend_by_keras(query, key, value, visible):
    """`keras.ops.dot_product_attention` of `[B, H, T, D]`."""
    key_dim, value_dim = key.shape[-1], value.shape[-1]
    size = max(key_dim, value_dim)
    output = ops.dot_product_attention(
        *(heads_last(pad_features(x, size)) for x in (query, key, value)),
        mask=visible,
        scale=1 / math.sqrt(key_dim),
        flash_attention=False,
    )
    return heads_first(output)[..., :value_dim]


@backends.with_fast_forms
def attend_earlier(query, key, value, key_mask=None, documents=None):
    """Scaled dot-product attention of each query to the keys up to its own.

    Args:
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, T, D]`.
        value: tensor `[B, H, T, V]`, 0 where masked.
        key_mask: bool tensor `(B, T)`, or `None`.
        documents: `Documents` of one sequence, or `None`.

    Returns:
        Tensor `[B, H, T, V]`; 0 where no key is visible.
    """
    pairs = visible_pairs(key_mask, documents)
    pairs = combine_masks(earlier_pairs(ops.shape(query)[2]), pairs)
    return attend_pairs(query, key, value, pairs)


def attend_pairs(query, key, value, visible):
    """`attend` over pairs of positions, bool `[B or 1, 1, T, S]`.

    The backends' own functions may add -inf to masked scores. NaN in a masked
    key would stay NaN.
    """
    key, value = move_nan_to_keys(key, value)
    return matmul(weights_of(query, key, visible), value)


def weights_of(query, key, visible):
    """softmax(Q K^T / sqrt D), `[B, H, T, S]`."""
    scores = matmul(query, ops.swapaxes(key, -1, -2))
    return masked_softmax(scores / math.sqrt(key.shape[-1]), visible)


def pairs_of_cache(cached, length, key_mask, documents=None):
    """Bool `[B, 1, T, N + T]`: the keys of a cache, and the new ones, seen.

    Args:
        cached: int tensor `(B, 1)`, how many the cache holds.
        length: int, N.
        key_mask: bool tensor `(B, T)`, of the new keys.
        documents: `Documents` of the new positions, or `None`. The cache
            belongs to document 0.
    """
    new = visible_pairs(key_mask, documents)
    new = combine_masks(earlier_pairs(ops.shape(key_mask)[1]), new)
    own = ops.ones_like(key_mask)
    if documents is not None:
        own = ops.equal(documents.query, 0)
    held = ops.less(ops.arange(length, dtype="int32"), cached)
    held = expand_to_rank(held, rank=4, axis=3)
    held = ops.logical_and(held, expand_to_rank(own, rank=4, axis=2))
    return ops.concatenate([held, new], axis=3)


def kept_places(cached, length, mask):
    """What a cache holds after new positions: the visible ones, in order.

    Args:
        cached: int tensor `(B, 1)`, how many it held.
        length: int, N, how many it can hold.
        mask: bool tensor `(B, T)`, the new positions to be kept.

    Returns:
        Places `(B, N)` among those held before and the new ones, and the
        number that it should hold `(B, 1)`, which may be more than N.
    """
    slot = ops.arange(length, dtype="int32")
    new = ops.clip(slot - cached, 0, ops.shape(mask)[1] - 1)
    new = ops.take_along_axis(visible_places(mask), new, axis=1)
    added = ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True)
    return ops.where(slot < cached, slot, length + new), cached + added


@register("softmax")
class Softmax(Mechanism):
    """Exact softmax attention, quadratic in the length.

    With `cache_length` its state is a cache of that many keys and values, for
    decoding step by step. If the cache is full, the outputs are NaN from the
    next query on: no key is dropped silently. Masked positions are not cached.
    A call on whole sequences needs no cache, and takes any length.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        cache_length: int > 0 or `None`, the most visible positions that a
            state holds. Defaults to `None`: no states.
        **kwargs: arguments of `Mechanism`.

    Raises:
        ValueError: if `cache_length` is not a positive integer; if one step
            has more positions than `cache_length`.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> tuple(mechanisms.Softmax()(x, x, x).shape)
    (1, 2, 6, 4)

    Source: Vaswani et al., 2017, arXiv 1706.03762, equation 1.
    """

    traits = Traits(
        causal=True,
        linear=False,
        packs=True,
        cost="T S (D + V)",
        state="S (D + V)",
        source="Vaswani et al. 2017, arXiv 1706.03762",
    )

    head_axes = {}

    def __init__(self, cache_length: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.cache_length = cache_length
        if cache_length is None:
            return
        if not isinstance(cache_length, int) or cache_length <= 0:
            raise ValueError(
                "`cache_length` must be a positive integer or `None`. "
                f"Received: cache_length={cache_length!r}."
            )
        self.traits = dataclasses.replace(self.traits, recurrent=True)

    def attend(
        self,
        query,
        key,
        value,
        *,
        key_mask,
        query_mask,
        causal,
        training,
        documents=None,
    ):
        if causal:
            return attend_earlier(query, key, value, key_mask, documents)
        if documents is None:
            return attend(query, key, value, key_mask)
        pairs = visible_pairs(key_mask, documents)
        return attend_pairs(query, key, value, pairs)

    def check_recurrent(self):
        if self.cache_length is None:
            raise ValueError(
                f"`{type(self).__name__}` has no recurrent form without a "
                "cache. Received: cache_length=None. Say how many positions a "
                'state must hold, as in {"name": "softmax", "cache_length": '
                "1024}, or use a mechanism whose state does not depend on the "
                "length, such as 'linear_transformer'."
            )

    def state_spec(self, num_heads: int, key_dim: int, value_dim: int) -> Tree:
        """Returns the spec of the state, a dict of `cache` and `count`.

        `cache` is `[B, H, N, D + V]`, the visible keys and values in order.
        `count`, `(B, 1)`, is the number of visible positions so far.
        """
        self.check_recurrent()
        shape = (None, num_heads, self.cache_length, key_dim + value_dim)
        return {
            "cache": keras.KerasTensor(shape, dtype=self.state_dtype),
            "count": keras.KerasTensor((None, 1), dtype="int32"),
        }

    def advance(self, state, query, key, value, *, key_mask, documents=None):
        size, length = self.cache_length, key.shape[2]
        if isinstance(length, int) and length > size:
            raise ValueError(
                "A step must fit into the cache. Received: "
                f"{length} positions, cache_length={size}. Make the mechanism "
                "with a larger `cache_length`."
            )
        if key_mask is None:
            key_mask = ops.ones_like(key[:, 0, :, 0], dtype="bool")
        key_mask, count = ops.cast(key_mask, "bool"), state["count"]
        pairs = pairs_of_cache(count, size, key_mask, documents)
        entries = ops.concatenate([key, value], axis=-1)
        entries = ops.concatenate([state["cache"], entries], axis=2)
        keys, values = split_at(entries, [key.shape[-1]])
        output = attend_pairs(query, keys, values, pairs)
        # Of a query's keys, those the cache cannot hold are missing, too.
        seen = ops.sum(ops.cast(pairs, "int32"), axis=-1, keepdims=True)
        lost = expand_to_rank(ops.maximum(count - size, 0), rank=4, axis=3)
        kept = key_mask
        if documents is not None:
            number, last = documents.query, documents.query[:, -1:]
            own = expand_to_rank(ops.equal(number, 0), rank=4, axis=2)
            lost = ops.where(own, lost, 0)
            kept = ops.logical_and(kept, ops.equal(number, last))
            count = ops.where(ops.equal(last, 0), count, 0)
        output = nan_where(seen + lost > size, output)
        index, count = kept_places(count, size, kept)
        filled = ops.less(ops.arange(size, dtype="int32"), count)
        cache = apply_mask(take_positions(entries, index), filled)
        return output, {"cache": cache, "count": count}
