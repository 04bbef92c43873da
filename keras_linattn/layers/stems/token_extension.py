"""Extends a shortened sequence to its full length again."""

from typing import Any

import keras
from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.chunks import num_chunks
from keras_linattn.core.masks import hide
from keras_linattn.layers._base_layer import BaseLayer
from keras_linattn.layers._base_layer import makes_sublayers
from keras_linattn.layers._sublayers import policy_for_config
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.layers.stems._groups import check_factor


@keras.saving.register_keras_serializable("keras_linattn")
class TokenExtension(BaseLayer):
    """Adds to each token a projection of the merged token it is a part of.

    The way back from `TokenMerging`: each merged token is projected to
    `factor` tokens, which are added to those that were merged. The output has
    the mask of `inputs`; visible tokens see nothing of hidden ones. A token
    sees its own group only: rows of several documents need no ids here.

    Args:
        factor: int > 0, that of the `TokenMerging`.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(B, T, F)`, the tokens before they were merged.
        merged: tensor `(B, ceil(T / factor), G)`, what became of the merged
            tokens.
        merged_mask: optional bool tensor `(B, ceil(T / factor))`, `True` =
            visible: the others add nothing.

    Returns:
        Tensor `(B, T, F)`.

    Raises:
        ValueError: if `factor` is not a positive integer, or if the number of
            merged tokens is known and another one.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import layers
    >>> tokens = np.ones((2, 10, 16), "float32")
    >>> merged = layers.TokenMerging(factor=4, units=8)(tokens)
    >>> tuple(layers.TokenExtension(factor=4)(tokens, merged).shape)
    (2, 10, 16)

    Source: the linear upsampling with a residual of Nawrot et al., 2021, arXiv
    2110.13711 (Hourglass).
    """

    def __init__(self, factor: int, **kwargs: Any):
        super().__init__(**kwargs)
        check_factor(factor)
        self.supports_masking = True
        self.factor = factor

    @makes_sublayers
    def build(self, inputs_shape, merged_shape):
        self._check_lengths(inputs_shape[1], merged_shape[1])
        self._projection = keras.layers.Dense(
            self.factor * inputs_shape[-1],
            dtype=sublayer_policy(self.dtype_policy, "projection"),
            name="projection",
        )
        self._projection.build(merged_shape)

    def _check_lengths(self, length, merged):
        if None in (length, merged):
            return
        if merged != num_chunks(length, self.factor):
            raise ValueError(
                "`merged` must hold one token for each `factor` tokens of "
                f"`inputs`. Received: {length} and {merged} tokens, factor="
                f"{self.factor}. Merge with `TokenMerging({self.factor}, ...)`."
            )

    def call(
        self, inputs: Tensor, merged: Tensor, merged_mask: Tensor | None = None
    ) -> Tensor:
        if merged_mask is not None:
            merged = hide(merged, ops.cast(merged_mask, "bool"))
        shape = ops.shape(inputs)
        count = ops.shape(merged)[1]
        groups = ops.reshape(
            self._projection(merged),
            (shape[0], count, self.factor, inputs.shape[-1]),
        )
        return inputs + join_chunks(groups, shape[1], axis=1)

    def compute_output_shape(self, inputs_shape, merged_shape):
        return inputs_shape

    def get_config(self) -> dict:
        sublayers = [self._projection] if self.built else []
        return {
            **super().get_config(),
            "dtype": policy_for_config(self.dtype_policy, sublayers),
            "factor": self.factor,
        }
