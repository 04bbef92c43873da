"""Softmax attention: the exact, quadratic reference.

out = softmax_S(Q K^T / sqrt D) V.  Causal: over s <= t.

Cost: O(T S (D + V)) time and, where the backend has no fused kernel, T S
memory. For comparison and conversion; not linear.
Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, arXiv
1706.03762, equation 1.
Differs from the paper: a row that sees no key is 0.
"""

import math

from keras import ops
from keras.backend import standardize_dtype

from keras_linattn.core.documents import same_document
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import spread
from keras_linattn.core.numerics import masked_softmax
from keras_linattn.core.numerics import matmul
from keras_linattn.core.products import contain
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
        visible = spread(ops.cast(key_mask, "bool"), rank=4, axis=3)
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
    if standardize_dtype(query.dtype) == "float64":
        # Keras' function rounds float64 to `floatx()` on some backends.
        return matmul(weights_of(query, key, visible), value)
    key_dim, value_dim = key.shape[-1], value.shape[-1]
    size = max(key_dim, value_dim)
    output = ops.dot_product_attention(
        *(heads_last(pad_features(x, size)) for x in (query, key, value)),
        mask=visible,
        scale=1 / math.sqrt(key_dim),
        flash_attention=False,
    )
    output = heads_first(output)[..., :value_dim]
    if visible is None:
        return output
    sees_any = ops.any(visible, axis=-1, keepdims=True)
    return ops.where(sees_any, output, ops.zeros_like(output))


def attend_pairs(query, key, value, visible):
    """The same over pairs of positions, bool `[B or 1, 1, T, S]`.

    The backends' own functions may add -inf to hidden scores, which leaves a
    NaN of a hidden key a NaN.
    """
    key, value = contain(key, value)
    return matmul(weights_of(query, key, visible), value)


def weights_of(query, key, visible):
    """softmax(Q K^T / sqrt D), `[B, H, T, S]`."""
    scores = matmul(query, ops.swapaxes(key, -1, -2))
    return masked_softmax(scores / math.sqrt(key.shape[-1]), visible)


@register("softmax")
class Softmax(Mechanism):
    """Exact softmax attention, quadratic in the length.

    Call arguments, result and errors: see `Mechanism`.

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
        if not causal and documents is None:
            return attend(query, key, value, key_mask)
        pairs = visible_pairs(key_mask, documents)
        if causal:
            pairs = combine_masks(earlier_pairs(ops.shape(query)[2]), pairs)
        return attend_pairs(query, key, value, pairs)
