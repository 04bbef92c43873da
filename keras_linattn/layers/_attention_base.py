"""What the attention layers share: projections, masks, dropout, config."""

import keras
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.core.masks import hide
from keras_linattn.core.shapes import AxisFolding
from keras_linattn.layers._arguments import as_tuple
from keras_linattn.layers._arguments import check_input_shapes
from keras_linattn.layers._arguments import check_streaming
from keras_linattn.layers._arguments import clear
from keras_linattn.layers._arguments import positive
from keras_linattn.layers._arguments import rate
from keras_linattn.layers._base_layer import BaseLayer
from keras_linattn.layers._base_layer import keep_frozen
from keras_linattn.layers._base_layer import makes_sublayers
from keras_linattn.layers._caches import with_batch
from keras_linattn.layers._caches import with_exact_states
from keras_linattn.layers._folded import attend_folded
from keras_linattn.layers._folded import folds
from keras_linattn.layers._projection import project
from keras_linattn.layers._sublayers import clone_initializer
from keras_linattn.layers._sublayers import policy_for_config
from keras_linattn.layers._sublayers import projection_equation
from keras_linattn.layers._sublayers import serialize_mechanism
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.layers._sublayers import variable_options


class AttentionBase(BaseLayer):
    """Projections around a mechanism; not for use on its own.

    The sublayers carry the attribute names, names and variable shapes of
    `keras.layers.MultiHeadAttention`, so that weights pass from one to the
    other.
    """

    def __init__(
        self,
        num_heads,
        key_dim,
        value_dim=None,
        dropout=0.0,
        use_bias=True,
        output_shape=None,
        attention_axes=None,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        use_gate=False,
        seed=None,
        mechanism="modified_linformer",
        **kwargs,
    ):
        super().__init__(**with_exact_states(kwargs))
        self.supports_masking = True
        self.num_heads = positive("num_heads", num_heads)
        self.key_dim = positive("key_dim", key_dim)
        self.value_dim = positive(
            "value_dim", key_dim if value_dim is None else value_dim
        )
        self.dropout = rate(dropout)
        self.use_bias = use_bias
        self._output_shape = as_tuple("output_shape", output_shape)
        self.attention_axes = as_tuple("attention_axes", attention_axes)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        # Acts on the projections' outputs, as in Keras' layer, not on ours.
        self._activity_regularizer = keras.regularizers.get(
            activity_regularizer
        )
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.use_gate = use_gate
        self.seed = seed
        self._set_mechanism(mechanism)

    @makes_sublayers
    def _set_mechanism(self, mechanism):
        self.mechanism = mechanisms.get(
            mechanism, dtype=sublayer_policy(self.dtype_policy, "mechanism")
        )
        self._dropout_layer = keras.layers.Dropout(
            self.dropout, seed=self.seed, dtype=self.dtype_policy
        )

    @makes_sublayers
    def _build_sublayers(self, query_shape, value_shape, key_shape):
        check_input_shapes(query_shape, value_shape, key_shape)
        rank = len(query_shape)
        self._folding = AxisFolding(rank, self.attention_axes)
        heads = (self.num_heads, self.key_dim)
        value_heads = (self.num_heads, self.value_dim)
        # In the order of Keras' layer: `set_weights` depends on it.
        self._query_dense = self._project("query", rank, heads)
        self._query_dense.build(query_shape)
        self._key_dense = self._project("key", rank, heads)
        self._key_dense.build(key_shape)
        if self.use_gate:
            self._gate_dense = self._project(
                "gate", rank, value_heads, activation="sigmoid"
            )
            self._gate_dense.build(query_shape)
        self._value_dense = self._project("value", rank, value_heads)
        self._value_dense.build(value_shape)
        outputs = self._output_shape or (query_shape[-1],)
        self._output_dense = self._project(
            "attention_output", rank, outputs, bound_axes=2
        )
        self._output_dense.build((*query_shape[:-1], *value_heads))
        self._build_mechanism(query_shape, value_shape)

    def _build_mechanism(self, query_shape, value_shape):
        self.mechanism.num_hosts += 1
        # A mechanism that several layers share is built by the first.
        if not self.mechanism.built:
            shapes = [*self._head_shapes(query_shape, value_shape)]
            if self.mechanism.traits.gated:
                shapes.append(self._folding.folded_features_shape(query_shape))
            self.mechanism.build(*shapes)
            keep_frozen(self.mechanism)

    def _head_shapes(self, query_shape, value_shape):
        """Static `[B, H, T, D]` shapes of query, key and value heads."""
        return (
            self._folding.folded_shape((*shape[:-1], self.num_heads, size))
            for shape, size in (
                (query_shape, self.key_dim),
                (value_shape, self.key_dim),
                (value_shape, self.value_dim),
            )
        )

    def _project(self, name, rank, output_dims, bound_axes=1, activation=None):
        """EinsumDense over the last `bound_axes` axes, to `output_dims`."""
        equation, out = projection_equation(
            rank - 1, bound_axes, len(output_dims)
        )
        layer = keras.layers.EinsumDense(
            equation,
            output_shape=(*(None,) * (rank - 2), *output_dims),
            bias_axes=out if self.use_bias else None,
            activation=activation,
            name=name,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            bias_initializer=clone_initializer(self.bias_initializer),
            kernel_regularizer=self.kernel_regularizer,
            bias_regularizer=self.bias_regularizer,
            activity_regularizer=self._activity_regularizer,
            kernel_constraint=self.kernel_constraint,
            bias_constraint=self.bias_constraint,
            dtype=sublayer_policy(self.dtype_policy, name),
        )
        # It works position by position; without this Keras warns of the mask.
        layer.supports_masking = True
        return layer

    @property
    def query_dense(self):
        """The query projection, an `EinsumDense` (after `build`)."""
        return self._query_dense

    @property
    def key_dense(self):
        """The key projection, an `EinsumDense` (after `build`)."""
        return self._key_dense

    @property
    def value_dense(self):
        """The value projection, an `EinsumDense` (after `build`)."""
        return self._value_dense

    @property
    def output_dense(self):
        """The output projection, an `EinsumDense` (after `build`)."""
        return self._output_dense

    def _attend(
        self,
        query,
        key,
        value,
        query_mask=None,
        key_mask=None,
        causal=False,
        training=None,
        return_scores=False,
        initial_state=None,
        return_state=False,
    ):
        """Projects, folds, attends, unfolds, projects back."""
        folding = self._folding
        streams = initial_state is not None or return_state
        if streams:
            check_streaming(causal, return_scores, folding.trivial)
        query, key, value = clear(query, key, value, query_mask, key_mask)
        usual = causal or streams or return_scores
        if not usual and folds(self, query, key, value, training):
            return attend_folded(self, query, key, value, query_mask, key_mask)
        gate = project(self._gate_dense, query) if self.use_gate else None
        options = {}
        if self.mechanism.traits.gated:
            options["inputs"] = folding.fold_features(query)
        projected = project(self._query_dense, query)
        query = folding.fold(projected)
        key = folding.fold(project(self._key_dense, key))
        value = folding.fold(project(self._value_dense, value))
        query_mask = folding.fold_mask(query_mask)
        options["key_mask"] = folding.fold_mask(key_mask)
        if streams:
            if initial_state is None:
                initial_state = self.get_initial_state(ops.shape(query)[0])
            heads, state = self.mechanism.step(
                initial_state, query, key, value, **options
            )
        else:
            options.update(query_mask=query_mask, causal=causal)
            heads = self.mechanism(
                query, key, value, training=training, **options
            )
        heads = self._dropout_layer(hide(heads, query_mask), training=training)
        heads = folding.unfold(heads, like=projected)
        if gate is not None:
            heads = ops.multiply(heads, gate)
        output = project(self._output_dense, heads)
        if return_scores:
            scores = self.mechanism.attention_scores(query, key, **options)
            return output, scores
        return (output, state) if return_state else output

    def state_spec(self):
        """What a state consists of, whatever it took in; see `Mechanism`."""
        return self.mechanism.state_spec(
            self.num_heads, self.key_dim, self.value_dim
        )

    def get_initial_state(self, batch_size):
        """The state of `batch_size` sequences before their first position."""
        return self.mechanism.initial_state(
            batch_size, self.num_heads, self.key_dim, self.value_dim
        )

    def _output_shape_for(self, query_shape):
        return (*query_shape[:-1], *(self._output_shape or query_shape[-1:]))

    def _output_spec_for(
        self, query_shape, value_shape, return_scores, return_state=False
    ):
        """Symbolic outputs: the attended tensor, and what else is asked."""
        output = keras.KerasTensor(
            self._output_shape_for(query_shape), dtype=self.compute_dtype
        )
        if return_state:
            return output, with_batch(self.state_spec(), query_shape[0])
        if not return_scores:
            return output
        # Refuse while the model is made, not when the first batch arrives.
        self.mechanism.check_scores()
        queries, keys, _ = self._head_shapes(query_shape, value_shape)
        scores = keras.KerasTensor(
            (*queries[:3], keys[2]), dtype=self.compute_dtype
        )
        return output, scores

    def _sublayers(self):
        names = ("query", "key", "gate", "value", "output")
        layers = (getattr(self, f"_{name}_dense", None) for name in names)
        return [layer for layer in layers if layer is not None]

    def get_config(self):
        config = {
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "output_shape": self._output_shape,
            "attention_axes": self.attention_axes,
            "use_gate": self.use_gate,
            "seed": self.seed,
            "mechanism": serialize_mechanism(self.mechanism, self.name),
        }
        config["activity_regularizer"] = keras.regularizers.serialize(
            self._activity_regularizer
        )
        config["dtype"] = policy_for_config(
            self.dtype_policy, self._sublayers()
        )
        return {**super().get_config(), **config, **variable_options(self)}
