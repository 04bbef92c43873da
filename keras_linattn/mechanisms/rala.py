"""RALA: linear attention that raises the rank of its summary and output.

With phi(x) = elu(x) + 1 and q-bar the mean of phi(q) over the visible queries,

    alpha_s = softmax over s of q-bar . phi(k_s) / sqrt D
    out_t = g(x_t) * (sum_s alpha_s phi(q_t) . phi(k_s) v_s
                      / sum_s alpha_s phi(q_t) . phi(k_s)  +  (DWC(V))_t)

The weights alpha keep the summary sum_s alpha_s phi(k_s) v_s^T from being a
plain mean, and the product by element with g(x) = x W + b, a linear map of the
layer's input, raises the rank of the outputs over that of phi(Q). DWC is a
depthwise convolution of the values, kernel 5 (5 x 5 on a grid), one for all
heads.

Cost: O(T D V + K T V) time, K^2 on a grid, and the projection of the gate, as
large as that of the values. Self-attention only, since q-bar is a mean over
queries.
Source: Fan, Huang, He, "Breaking the low-rank dilemma of linear attention",
CVPR 2025, arXiv 2411.07635, section 4: the weights of the KV buffer, and the
modulation of the output.
Differs from the paper: the paper multiplies alpha by the length, which the
normalisation cancels. There is no epsilon, and the convolution has no bias, so
that a row that sees no key is 0. Rotary positions are an option of the layer.
There is no causal form, because q-bar depends on later queries.
"""

import dataclasses
import math
from typing import Any

from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.log_products import log_kernel_attention
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.numerics import accumulation_dtype
from keras_linattn.core.numerics import safe_divide
from keras_linattn.core.products import append_ones
from keras_linattn.core.products import sums_within
from keras_linattn.core.shapes import heads_last
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._convolved_values import ConvolvedValues
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits
from keras_linattn.mechanisms.linear_transformer import feature_map
from keras_linattn.mechanisms.linear_transformer import log_feature_map


def mean_query(query, query_mask=None, documents=None):
    """The mean of phi(q): `[B, H, 1, D]`, or that of each position's document.

    0 where no query is visible.
    """
    summed = apply_mask(append_ones(feature_map(query)), query_mask)
    if documents is None:
        summed = ops.sum(summed, axis=2, keepdims=True)
    else:
        summed = sums_within(summed, documents)
    return safe_divide(summed[..., :-1], summed[..., -1:])


def log_weights(query, key, query_mask=None, documents=None):
    """log alpha up to an additive constant, `[B, H, S, 1]`."""
    query = mean_query(query, query_mask, documents)
    scores = ops.sum(query * feature_map(key), axis=-1, keepdims=True)
    return scores / math.sqrt(key.shape[-1])


def attend(query, key, value, key_mask=None, query_mask=None, documents=None):
    """Kernel attention whose keys have the weights alpha."""
    scores = log_weights(query, key, query_mask, documents)
    key = log_feature_map(key) + scores
    query = log_feature_map(query)
    return log_kernel_attention(query, key, value, key_mask, documents)


@register("rala")
class RankAugmented(ConvolvedValues, Mechanism):
    """Rank-augmented linear attention: weighted keys and a linear gate.

    With `kernel_size=None` there is no convolution. With `output_gate=False`
    there is no product with the input. Without both, the weights sum to 1.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        output_gate: bool, multiply the output by a linear map of the layer's
            input. Defaults to `True`.
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
    >>> mechanism = mechanisms.get("rala", grid=(2, 3))
    >>> tuple(mechanism(x, x, x).shape)
    (1, 2, 6, 4)

    Source: Fan et al., 2025, arXiv 2411.07635.
    """

    traits = Traits(
        cross=False,
        normalised=False,
        explicit=False,
        key_order_free=False,
        pools_queries=True,
        gated=True,
        grid=True,
        packs=True,
        cost="(T + S) D V + K S V",
        state="D (V + 1)",
        source="Fan et al. 2025, arXiv 2411.07635",
    )

    def __init__(
        self,
        output_gate: bool = True,
        kernel_size: int | None = 5,
        grid: tuple[int, int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(output_gate, bool):
            raise ValueError(
                "`output_gate` must be `True` or `False`. "
                f"Received: output_gate={output_gate!r}."
            )
        self.output_gate = output_gate
        self.traits = dataclasses.replace(self.traits, gated=output_gate)
        plain = not output_gate
        self._set_convolution(
            kernel_size, grid, normalised=plain, explicit=plain
        )

    def build(self, query_shape, key_shape, value_shape, inputs_shape=None):
        if self.output_gate:
            heads, key_dim = query_shape[1], query_shape[3]
            size = heads * key_dim if inputs_shape is None else inputs_shape[-1]
            shape = (heads, value_shape[3])
            self.gate = self.add_weight(
                name="gate", shape=(size, *shape), autocast=False
            )
            self.bias = self.add_weight(
                name="bias", shape=shape, initializer="zeros", autocast=False
            )
        self._build_convolution(value_shape[3])

    def call(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        causal: bool = False,
        training: bool | None = None,
        inputs: Tensor | None = None,
        segment_ids: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        output = super().call(
            query,
            key,
            value,
            key_mask=key_mask,
            query_mask=query_mask,
            causal=causal,
            training=training,
            segment_ids=segment_ids,
        )
        if not self.output_gate:
            return output
        if inputs is None:
            batch, heads, length, dim = ops.shape(query)
            shape = (batch, length, heads * dim)
            inputs = ops.reshape(heads_last(query), shape)
        visible = combine_masks(query_mask, segment_ids)
        gate = self._gate(apply_mask(inputs, visible))
        return ops.cast(ops.cast(output, gate.dtype) * gate, output.dtype)

    def _gate(self, inputs):
        """g(x), `[B, H, T, V]`, of inputs `(B, T, F)`."""
        dtype = accumulation_dtype(inputs.dtype)
        inputs, kernel, bias = (
            ops.cast(x, dtype) for x in (inputs, self.gate, self.bias)
        )
        gate = ops.einsum("btf,fhv->bhtv", inputs, kernel)
        return gate + ops.expand_dims(bias, 1)

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
        output = attend(query, key, value, key_mask, query_mask, documents)
        return self._add_convolution(output, value, documents)
