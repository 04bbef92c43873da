"""MALA: linear attention whose weights grow sharper with the query.

With phi(x) = elu(x) + 1, scores s_ts = phi(q_t) . phi(k_s) / (S sqrt D) over
the S visible keys, and c_t = sum_s s_ts,

    out_t = sum_s (beta_t s_ts - c_t / S) v_s + (DWC(V))_t,
    beta_t = 1 + 1 / c_t.

A row of these weights sums to 1. Entries may be negative. Since
beta_t s_ts = s_ts / c_t + s_ts, the first term is

    linear_transformer_t + phi(q_t) / sqrt D . mean_s phi(k_s) (v_s - v-bar)^T,

kernel attention, which the length of phi(q_t) does not change, and a
covariance, which grows with it. DWC is a depthwise convolution of the values,
kernel 5 (5 x 5 on a grid), one for all heads.

Cost: O((T + S) D V + K S V) time, K^2 on a grid.
Source: Fan, Huang, He, "Rectifying magnitude neglect in linear attention",
ICCV 2025, arXiv 2507.00698, section 3: beta, gamma and the sum of 1.
Differs from the paper: s is divided by S sqrt D, as in the authors' code, so
that outputs do not grow with the length. There is no epsilon, and the
convolution has no bias, so that a row that sees no key is 0. The paper's
product with a projection of the input is the layer's `use_gate=True`, which
applies a sigmoid. Rotary positions are an option of the layer. There is no
causal form.
"""

import math
from typing import Any

from keras import ops

from keras_linattn.core.documents import attend_documents
from keras_linattn.core.documents import starts_of
from keras_linattn.core.masks import hide
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import safe_divide
from keras_linattn.core.products import append_ones
from keras_linattn.core.products import key_value_product
from keras_linattn.core.products import product_within
from keras_linattn.core.products import sums_within
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._convolved_values import ConvolvedValues
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits
from keras_linattn.mechanisms.linear_transformer import attend_both_ways
from keras_linattn.mechanisms.linear_transformer import feature_map


def covariance(query, key, value):
    """q_t . mean_s k_s (v_s - v-bar)^T.

    Args:
        query: tensor `[B, H, T, R]`, 0 in its last feature.
        key: tensor `[B, H, S, R]`, whose last feature is 1, or 0 where the
            key is hidden; the others are 0 there too.
        value: tensor `[B, H, S, V]`, 0 where hidden.

    Returns:
        Tensor `[B, H, T, V]`.
    """
    count = ops.sum(key[..., -1:], axis=2, keepdims=True)
    center = safe_divide(ops.sum(value, axis=2, keepdims=True), count)
    summary = key_value_product(key, value - center)
    return matmul(query, safe_divide(summary, count))


def covariance_within(query, key, value, documents):
    """`covariance` of documents in one sequence."""
    count = sums_within(key[..., -1:], documents)
    value = value - safe_divide(sums_within(value, documents), count)
    output = product_within(query, key, value, starts_of(documents))
    return safe_divide(output, count)


def attend_by_covariance(query, key, value, key_mask=None, documents=None):
    """The covariance term of the output, which grows with phi(q)."""
    key = hide(append_ones(feature_map(key)), key_mask)
    query = feature_map(query) / math.sqrt(query.shape[-1])
    query = ops.concatenate([query, ops.zeros_like(query[..., :1])], axis=-1)
    if documents is None:
        return covariance(query, key, value)
    forms = covariance_within, covariance
    return attend_documents(*forms, query, key, value, documents)


@register("mala")
class MagnitudeAware(ConvolvedValues, Mechanism):
    """Magnitude-aware linear attention: weights sharpen as the query grows.

    For the authors' gate, pass `use_gate=True` to the layer. With
    `kernel_size=None` there is no convolution: then cross-attention works, the
    weights sum to 1, and the order of the keys does not matter.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        kernel_size: odd int > 0, width of the depthwise convolution of the
            values that is added to the output, or `None` for no convolution.
            Defaults to 5.
        grid: tuple `(rows, columns)`, for keys that are the patches of an
            image, row by row: the convolution is in two dimensions. Defaults
            to `None`: a sequence.
        **kwargs: arguments of `Mechanism`.

    Raises:
        ValueError: if an argument is out of range, if there is a
            grid but no convolution, or if the length is not that of the grid.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> mechanism = mechanisms.get("mala", grid=(2, 3))
    >>> tuple(mechanism(x, x, x).shape)
    (1, 2, 6, 4)

    Source: Fan et al., 2025, arXiv 2507.00698.
    """

    traits = Traits(
        cross=False,
        normalised=False,
        signed=True,
        explicit=False,
        key_order_free=False,
        grid=True,
        packs=True,
        cost="(T + S) D V + K S V",
        state="D (V + 1) + V",
        source="Fan et al. 2025, arXiv 2507.00698",
    )

    def __init__(
        self,
        kernel_size: int | None = 5,
        grid: tuple[int, int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._set_convolution(
            kernel_size, grid, cross=True, normalised=True, explicit=True
        )

    def build(self, query_shape, key_shape, value_shape):
        self._build_convolution(value_shape[3])

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
        heads = query, key, value
        output = attend_both_ways(*heads, key_mask, documents)
        output = output + attend_by_covariance(*heads, key_mask, documents)
        return self._add_convolution(output, value, documents)
