"""Transformer encoder block around a linear-attention mechanism."""

import keras

from keras_linattn import mechanisms
from keras_linattn.core.masks import combine_masks
from keras_linattn.layers._sublayers import clone_initializer
from keras_linattn.layers._sublayers import policy_for_config
from keras_linattn.layers._sublayers import serialize_mechanism
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.layers._sublayers import with_mechanism
from keras_linattn.layers.linear_multi_head_attention import (
    LinearMultiHeadAttention,
)

SUBLAYERS = (
    "self_attention_layer",
    "self_attention_layer_norm",
    "self_attention_dropout",
    "feedforward_layer_norm",
    "feedforward_intermediate_dense",
    "feedforward_output_dense",
    "feedforward_dropout",
)


@keras.saving.register_keras_serializable("keras_linattn")
class LinearTransformerEncoder(keras.layers.Layer):
    """Transformer encoder block whose attention is linear in the length.

    Takes the arguments of `keras_hub.layers.TransformerEncoder`, plus
    `mechanism`, and has its variables: for mechanisms without weights,
    `set_weights` works from one to the other.

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
        intermediate_dim,
        num_heads,
        dropout=0,
        activation="relu",
        layer_norm_epsilon=1e-05,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        normalize_first=False,
        mechanism="modified_linformer",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.intermediate_dim = intermediate_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.activation = keras.activations.get(activation)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.normalize_first = normalize_first
        self.mechanism = mechanisms.get(
            mechanism, dtype=sublayer_policy(self.dtype_policy, "mechanism")
        )

    def build(self, inputs_shape):
        hidden_dim = inputs_shape[-1]
        self._build_attention(inputs_shape)
        self._self_attention_layer_norm = self._norm(
            "self_attention_layer_norm", inputs_shape
        )
        self._self_attention_dropout = self._dropout("self_attention_dropout")
        self._feedforward_layer_norm = self._norm(
            "feedforward_layer_norm", inputs_shape
        )
        self._feedforward_intermediate_dense = self._dense(
            "feedforward_intermediate_dense",
            self.intermediate_dim,
            inputs_shape,
            activation=self.activation,
        )
        self._feedforward_output_dense = self._dense(
            "feedforward_output_dense",
            hidden_dim,
            (*inputs_shape[:-1], self.intermediate_dim),
        )
        self._feedforward_dropout = self._dropout("feedforward_dropout")

    def _build_attention(self, shape):
        if not isinstance(self.num_heads, int) or not (
            0 < self.num_heads <= shape[-1]
        ):
            raise ValueError(
                "`num_heads` must be a positive integer, at most the size of "
                f"the features. Received: num_heads={self.num_heads!r} for an "
                f"input of shape {tuple(shape)}."
            )
        name = "self_attention_layer"
        self._self_attention_layer = LinearMultiHeadAttention(
            num_heads=self.num_heads,
            key_dim=shape[-1] // self.num_heads,
            dropout=self.dropout,
            kernel_initializer=self.kernel_initializer,
            bias_initializer=self.bias_initializer,
            mechanism=self.mechanism,
            dtype=sublayer_policy(self.dtype_policy, name),
            name=name,
        )
        self._self_attention_layer.build(shape, shape)

    def _norm(self, name, shape):
        layer = keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon,
            dtype=sublayer_policy(self.dtype_policy, name),
            name=name,
        )
        layer.build(shape)
        return layer

    def _dense(self, name, units, shape, activation=None):
        layer = keras.layers.Dense(
            units,
            activation=activation,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            bias_initializer=clone_initializer(self.bias_initializer),
            dtype=sublayer_policy(self.dtype_policy, name),
            name=name,
        )
        layer.build(shape)
        return layer

    def _dropout(self, name):
        return keras.layers.Dropout(
            self.dropout,
            dtype=sublayer_policy(self.dtype_policy, name),
            name=name,
        )

    def call(
        self,
        inputs,
        padding_mask=None,
        attention_mask=None,
        training=None,
        return_attention_scores=False,
        mask=None,
    ):
        if padding_mask is None and attention_mask is None:
            padding_mask = mask
        visible = combine_masks(padding_mask)

        def attend(x):
            return self._self_attention_layer(
                x,
                x,
                query_mask=visible,
                value_mask=visible,
                attention_mask=attention_mask,
                training=training,
                return_attention_scores=return_attention_scores,
            )

        x = inputs
        if self.normalize_first:
            x = self._self_attention_layer_norm(x)
        x = attend(x)
        x, scores = x if return_attention_scores else (x, None)
        x = inputs + self._self_attention_dropout(x, training=training)
        if not self.normalize_first:
            x = self._self_attention_layer_norm(x)
        x = self._feed_forward(x, training)
        return (x, scores) if return_attention_scores else x

    def _feed_forward(self, inputs, training):
        x = inputs
        if self.normalize_first:
            x = self._feedforward_layer_norm(x)
        x = self._feedforward_intermediate_dense(x)
        x = self._feedforward_output_dense(x)
        x = inputs + self._feedforward_dropout(x, training=training)
        if not self.normalize_first:
            x = self._feedforward_layer_norm(x)
        return x

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def compute_output_spec(
        self,
        inputs,
        padding_mask=None,
        attention_mask=None,
        training=None,
        return_attention_scores=False,
        mask=None,
    ):
        output = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        attended = self._self_attention_layer.compute_output_spec(
            inputs,
            inputs,
            attention_mask=attention_mask,
            return_attention_scores=return_attention_scores,
        )
        return (output, attended[1]) if return_attention_scores else output

    def _sublayers(self):
        layers = (getattr(self, f"_{name}", None) for name in SUBLAYERS)
        return [layer for layer in layers if layer is not None]

    def get_config(self):
        return {
            **super().get_config(),
            "dtype": policy_for_config(self.dtype_policy, self._sublayers()),
            "intermediate_dim": self.intermediate_dim,
            "num_heads": self.num_heads,
            "dropout": self.dropout,
            "activation": keras.activations.serialize(self.activation),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
            "bias_initializer": keras.initializers.serialize(
                self.bias_initializer
            ),
            "normalize_first": self.normalize_first,
            "mechanism": serialize_mechanism(self.mechanism),
        }

    @classmethod
    def from_config(cls, config):
        return super().from_config(with_mechanism(config))
