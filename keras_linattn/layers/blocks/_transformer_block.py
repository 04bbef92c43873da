"""What the encoder and decoder blocks share: sublayers, residuals, config."""

from collections.abc import Callable
from typing import Any

import keras

from keras_linattn import mechanisms
from keras_linattn.layers._arguments import known_features
from keras_linattn.layers._base_layer import BaseLayer
from keras_linattn.layers._base_layer import makes_sublayers
from keras_linattn.layers._norms import check_norm
from keras_linattn.layers._norms import make_norm
from keras_linattn.layers._sublayers import clone_initializer
from keras_linattn.layers._sublayers import policy_for_config
from keras_linattn.layers._sublayers import serialize_mechanism
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.layers.attention.linear_multi_head_attention import (
    LinearMultiHeadAttention,
)
from keras_linattn.mechanisms import Mechanism

# What else a block may ask of its attention; the others are its own.
ATTENTION_OPTIONS = frozenset(
    {
        "num_heads",
        "key_dim",
        "value_dim",
        "num_key_value_heads",
        "num_query_key_heads",
        "kernel_size",
        "qk_norm",
        "rope_max_wavelength",
        "rope_scaling_factor",
        "partial_rotary_factor",
        "output_norm",
        "use_gate",
        "gate_activation",
        "layer_norm_epsilon",
    }
)
# Attributes, each with a leading underscore, as in KerasHub's blocks.
SUBLAYERS = (
    "self_attention_layer",
    "self_attention_layer_norm",
    "self_attention_dropout",
    "cross_attention_layer",
    "cross_attention_layer_norm",
    "cross_attention_dropout",
    "feedforward_layer_norm",
    "feedforward_gate_dense",
    "feedforward_intermediate_dense",
    "feedforward_output_dense",
    "feedforward_dropout",
)


class TransformerBlock(BaseLayer):
    """Attention and a feedforward network; not for use on its own.

    A subclass makes its sublayers in `build` with the methods below, in the
    order of KerasHub's block, since `set_weights` depends on it.
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
        normalization: str = "layer",
        use_bias: bool = True,
        use_feedforward_gate: bool = False,
        attention_options: dict | None = None,
        **kwargs: Any,
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
        self.normalization = check_norm(normalization)
        self.use_bias = use_bias
        self.use_feedforward_gate = use_feedforward_gate
        self.attention_options = checked_options(attention_options)
        self.mechanism = self._own_mechanism(mechanism)

    @makes_sublayers
    def _own_mechanism(self, identifier, name="mechanism"):
        return mechanisms.get(
            identifier, dtype=sublayer_policy(self.dtype_policy, name)
        )

    def _attention(
        self,
        name,
        mechanism,
        query_shape,
        *shapes,
        cls=LinearMultiHeadAttention,
        options=None,
    ):
        """Attention of class `cls`, built on `query_shape, *shapes`."""
        layer = self._unbuilt_attention(
            name, mechanism, query_shape[-1], cls, options
        )
        layer.build(query_shape, *shapes)
        return layer

    def _unbuilt_attention(self, name, mechanism, features, cls, options):
        options = {
            "num_heads": self.num_heads,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            **(options or {}),
        }
        if "key_dim" not in options:
            features = known_features(features)
            options["key_dim"] = _head_size(options["num_heads"], features)
        return cls(
            **options,
            dropout=self.dropout,
            use_bias=self.use_bias,
            kernel_initializer=self.kernel_initializer,
            bias_initializer=self.bias_initializer,
            mechanism=mechanism,
            dtype=sublayer_policy(self.dtype_policy, name),
            name=name,
        )

    def _state_before_build(
        self, batch_size, features, mechanism, options=None
    ):
        """What the attention's `get_initial_state` will return."""
        layer = self._unbuilt_attention(
            "attention", mechanism, features, LinearMultiHeadAttention, options
        )
        return layer.get_initial_state(batch_size)

    def _norm(self, name, shape):
        layer = make_norm(
            self.normalization,
            self.layer_norm_epsilon,
            sublayer_policy(self.dtype_policy, name),
            name,
        )
        layer.build(shape)
        return layer

    def _dropout(self, name):
        return keras.layers.Dropout(
            self.dropout,
            dtype=sublayer_policy(self.dtype_policy, name),
            name=name,
        )

    def _build_feedforward(self, shape):
        if self.use_feedforward_gate:
            self._feedforward_gate_dense = self._dense(
                "feedforward_gate_dense",
                self.intermediate_dim,
                shape,
                activation=self.activation,
            )
        self._feedforward_intermediate_dense = self._dense(
            "feedforward_intermediate_dense",
            self.intermediate_dim,
            shape,
            activation=None if self.use_feedforward_gate else self.activation,
        )
        self._feedforward_output_dense = self._dense(
            "feedforward_output_dense",
            shape[-1],
            (*shape[:-1], self.intermediate_dim),
        )
        self._feedforward_dropout = self._dropout("feedforward_dropout")

    def _dense(self, name, units, shape, activation=None):
        layer = keras.layers.Dense(
            units,
            activation=activation,
            use_bias=self.use_bias,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            bias_initializer=clone_initializer(self.bias_initializer),
            dtype=sublayer_policy(self.dtype_policy, name),
            name=name,
        )
        layer.build(shape)
        return layer

    def _feed_forward(self, inputs, training):
        x = inputs
        if self.normalize_first:
            x = self._feedforward_layer_norm(x)
        hidden = self._feedforward_intermediate_dense(x)
        if self.use_feedforward_gate:
            hidden = hidden * self._feedforward_gate_dense(x)
        x = self._feedforward_output_dense(hidden)
        x = inputs + self._feedforward_dropout(x, training=training)
        return x if self.normalize_first else self._feedforward_layer_norm(x)

    def compute_output_shape(self, inputs_shape, *others):
        return inputs_shape

    def _sublayers(self):
        layers = (getattr(self, f"_{name}", None) for name in SUBLAYERS)
        return [layer for layer in layers if layer is not None]

    def get_config(self) -> dict:
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
            "mechanism": serialize_mechanism(self.mechanism, self.name),
            "normalization": self.normalization,
            "use_bias": self.use_bias,
            "use_feedforward_gate": self.use_feedforward_gate,
            "attention_options": keras.saving.serialize_keras_object(
                self.attention_options
            ),
        }


def checked_options(options):
    """A copy of `attention_options`; a `ValueError` for other names.

    Args:
        options: dict of arguments of `LinearMultiHeadAttention`, or `None`.
    """
    if options is None:
        return None
    if not isinstance(options, dict) or not set(options) <= ATTENTION_OPTIONS:
        raise ValueError(
            "`attention_options` must be a dict of arguments of "
            f"`LinearMultiHeadAttention`. Received: {options!r}. Take of "
            f"{', '.join(sorted(ATTENTION_OPTIONS))}."
        )
    return dict(options)


def _head_size(num_heads, features):
    if not isinstance(num_heads, int) or not 0 < num_heads <= features:
        raise ValueError(
            "`num_heads` must be a positive integer, at most the size of "
            f"the features. Received: num_heads={num_heads!r} for an "
            f"input of {features} features."
        )
    return features // num_heads
