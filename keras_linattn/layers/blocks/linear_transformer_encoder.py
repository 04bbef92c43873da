"""Transformer encoder block around a linear-attention mechanism."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.boundaries import with_padding
from keras_linattn.core.devices import whole_features
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import first_given
from keras_linattn.core.masks import hide
from keras_linattn.layers._arguments import check_segment_ids
from keras_linattn.layers._base_layer import makes_sublayers
from keras_linattn.layers._recomputation import recompute
from keras_linattn.layers.blocks._transformer_block import TransformerBlock
from keras_linattn.mechanisms import Mechanism


@keras.saving.register_keras_serializable("keras_linattn")
class LinearTransformerEncoder(TransformerBlock):
    """Transformer encoder block whose attention is linear in the length.

    Takes the arguments of `keras_hub.layers.TransformerEncoder` and has its
    variables. If the mechanism has no weights, `set_weights` copies the
    weights of one to the other.

    Args:
        intermediate_dim: int > 0, hidden size of the feedforward network.
        num_heads: int > 0, number of heads; each has F // num_heads features.
        dropout: float in [0, 1), of attention and feedforward network.
            Defaults to 0.
        activation: of the feedforward network. Defaults to `"relu"`.
        layer_norm_epsilon: float > 0. Defaults to `1e-5`.
        kernel_initializer: of all kernels. Defaults to `"glorot_uniform"`.
        bias_initializer: of all biases. Defaults to `"zeros"`.
        normalize_first: bool, normalise the inputs of attention and
            feedforward network (as GPT-2 does) rather than their outputs (as
            BERT does). Defaults to `False`.
        mechanism: name, dict, class or object, see `mechanisms.get`. Defaults
            to `"modified_linformer"`.
        remat: bool, keep only the block's input for the backward pass of
            training and compute the rest again there (`keras.remat`): less
            memory for about one more forward pass. It has no effect on calls
            that return scores. On CPUs, JAX saves little by it
            (docs/benchmarks.md).
            Defaults to `False`.
        normalization: `"layer"` or `"rms"`: layer normalisation, or division
            by the root mean square. Defaults to `"layer"`.
        use_bias: bool, whether projections and feedforward network have
            biases. Defaults to `True`.
        use_feedforward_gate: bool, multiply the hidden units by a gate. The
            activation is then applied to the gate only: SwiGLU with
            `activation="silu"`. Defaults to `False`.
        attention_options: dict of further arguments of the self-attention,
            see `LinearMultiHeadAttention`: grouped heads, short convolutions,
            norms, rotary positions, a gate. `num_heads` and `key_dim` replace
            those of the block. Defaults to `None`: `{}`.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(B, T, F)`.
        padding_mask: optional bool tensor `(B, T)`, `True` = visible. Without
            it and `attention_mask`, an implicit Keras mask is used.
        attention_mask: optional tensor `(B, T)` or `(B, 1, T)`: it may depend
            on the key only.
        training: optional bool, whether dropout is active.
        return_attention_scores: bool, see `LinearMultiHeadAttention`.
            Defaults to `False`.
        segment_ids: optional int tensor `(B, T)`, for rows that hold several
            documents, see `LinearMultiHeadAttention`.

    Returns:
        Tensor `(B, T, F)`, with `return_attention_scores=True` also a tensor
        `(B, H, T, T)`.

    Raises:
        ValueError: if an argument is out of range, or if a mask depends on
            the query.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> block = keras_linattn.LinearTransformerEncoder(32, num_heads=2)
    >>> tuple(block(np.ones((4, 10, 16), "float32")).shape)
    (4, 10, 16)

    Source: Vaswani et al., 2017, arXiv 1706.03762 (the block); Verma, 2020,
    arXiv 2101.10277 (the default mechanism).
    """

    def __init__(
        self,
        intermediate_dim: int,
        num_heads: int,
        dropout: float = 0,
        activation: str | Callable = "relu",
        layer_norm_epsilon: float = 1e-05,
        kernel_initializer: str | keras.Initializer = "glorot_uniform",
        bias_initializer: str | keras.Initializer = "zeros",
        normalize_first: bool = False,
        mechanism: str | dict | type | Mechanism = "modified_linformer",
        remat: bool = False,
        normalization: str = "layer",
        use_bias: bool = True,
        use_feedforward_gate: bool = False,
        attention_options: dict | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            intermediate_dim=intermediate_dim,
            num_heads=num_heads,
            dropout=dropout,
            activation=activation,
            layer_norm_epsilon=layer_norm_epsilon,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            normalize_first=normalize_first,
            mechanism=mechanism,
            normalization=normalization,
            use_bias=use_bias,
            use_feedforward_gate=use_feedforward_gate,
            attention_options=attention_options,
            **kwargs,
        )
        self.remat = remat

    @makes_sublayers
    def build(self, inputs_shape):
        self._self_attention_layer = self._attention(
            "self_attention_layer",
            self.mechanism,
            inputs_shape,
            inputs_shape,
            options=self.attention_options,
        )
        self._self_attention_layer_norm = self._norm(
            "self_attention_layer_norm", inputs_shape
        )
        self._self_attention_dropout = self._dropout("self_attention_dropout")
        self._feedforward_layer_norm = self._norm(
            "feedforward_layer_norm", inputs_shape
        )
        self._build_feedforward(inputs_shape)

    def call(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        segment_ids: Tensor | None = None,
        mask: Tensor | None = None,
        inputs_mask: Tensor | None = None,
    ) -> Tensor | tuple:
        inputs = ops.cast(inputs, self.compute_dtype)
        if padding_mask is None and attention_mask is None:
            # Keras calls it `inputs_mask` where there is another tensor.
            padding_mask = first_given(mask, inputs_mask)
        visible = combine_masks(padding_mask)
        if segment_ids is not None:
            check_segment_ids(segment_ids, inputs)
            visible, _ = with_padding(segment_ids, visible, visible)
        inputs = whole_features(hide(inputs, visible))
        options = {
            "query_mask": visible,
            "value_mask": visible,
            "attention_mask": attention_mask,
            "segment_ids": segment_ids,
            "training": training,
        }
        if return_attention_scores:
            return self._encode(inputs, return_attention_scores=True, **options)
        if self.remat and training:
            encode = functools.partial(self._encode, **options)
            return recompute(encode, self, (inputs,))
        return self._encode(inputs, **options)

    def _encode(self, inputs, training, return_attention_scores=False, **masks):
        """The block's output, and the attention scores if asked for."""
        x, scores = inputs, None
        if self.normalize_first:
            x = self._self_attention_layer_norm(x)
        x = self._self_attention_layer(
            x,
            x,
            training=training,
            return_attention_scores=return_attention_scores,
            **masks,
        )
        if return_attention_scores:
            x, scores = x
        x = inputs + self._self_attention_dropout(x, training=training)
        if not self.normalize_first:
            x = self._self_attention_layer_norm(x)
        x = self._feed_forward(x, training)
        return (x, scores) if return_attention_scores else x

    def compute_output_spec(
        self,
        inputs,
        padding_mask=None,
        attention_mask=None,
        training=None,
        return_attention_scores=False,
        segment_ids=None,
        mask=None,
        inputs_mask=None,
    ):
        output = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        attended = self._self_attention_layer.compute_output_spec(
            inputs,
            inputs,
            attention_mask=attention_mask,
            return_attention_scores=return_attention_scores,
            segment_ids=segment_ids,
        )
        return (output, attended[1]) if return_attention_scores else output

    def get_config(self) -> dict:
        return {**super().get_config(), "remat": self.remat}
