"""Drop-in replacement for `keras.layers.MultiHeadAttention`.

The layer reads in the order of its forward pass: constructor, `build`, `call`
(masks, projections, mechanism, output), attention in parts, states, specs,
config. Below it stand the functions around a projection.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.core import backends
from keras_linattn.core.annotations import Tensor
from keras_linattn.core.annotations import Tree
from keras_linattn.core.boundaries import with_padding
from keras_linattn.core.devices import current_split
from keras_linattn.core.folded import folded_attention
from keras_linattn.core.folded import folding_pays
from keras_linattn.core.lengths import is_empty
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import hide
from keras_linattn.core.masks import key_mask_from_attention_mask
from keras_linattn.core.numerics import EXACT
from keras_linattn.core.products import dense_product
from keras_linattn.core.shapes import AxisFolding
from keras_linattn.layers._arguments import as_tuple
from keras_linattn.layers._arguments import check_floating
from keras_linattn.layers._arguments import check_input_shapes
from keras_linattn.layers._arguments import check_segment_ids
from keras_linattn.layers._arguments import check_streaming
from keras_linattn.layers._arguments import clear
from keras_linattn.layers._arguments import positive
from keras_linattn.layers._arguments import rate
from keras_linattn.layers._base_layer import BaseLayer
from keras_linattn.layers._base_layer import keep_frozen
from keras_linattn.layers._base_layer import makes_sublayers
from keras_linattn.layers._caches import with_batch
from keras_linattn.layers._caches import with_exact_states
from keras_linattn.layers._norms import make_norm
from keras_linattn.layers._sublayers import clone_initializer
from keras_linattn.layers._sublayers import policy_for_config
from keras_linattn.layers._sublayers import projection_equation
from keras_linattn.layers._sublayers import serialize_mechanism
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.layers._sublayers import variable_options
from keras_linattn.layers.attention import _head_options
from keras_linattn.layers.attention._head_transform import HeadTransform
from keras_linattn.layers.attention._head_transform import Places
from keras_linattn.layers.attention._head_transform import places_of
from keras_linattn.mechanisms import Mechanism
from keras_linattn.mechanisms._devices import attend_on_devices


@keras.saving.register_keras_serializable("keras_linattn")
class LinearMultiHeadAttention(BaseLayer):
    """Multi-head attention in linear time, with Keras' own interface.

    Takes the constructor and call arguments of
    `keras.layers.MultiHeadAttention` in the same order, and has variables of
    the same names and shapes: `linear.set_weights(softmax.get_weights())`
    works for every mechanism without weights of its own. What happens between
    the projections is the mechanism's.

    A call projects the inputs to heads, hands them to the mechanism, and
    projects what it returns back. The methods `project_keys`, `attend_to`,
    `summarize` and `read` do parts of that, for blocks that share keys or go on
    from a state.

    Args:
        num_heads: int > 0, number of heads H.
        key_dim: int > 0, size D of each head of query and key.
        value_dim: int > 0 or `None`, size V of each head of the value.
            Defaults to `None`: `key_dim`.
        dropout: float in [0, 1), dropout on the heads' outputs (there are no
            attention scores to drop). Defaults to 0.
        use_bias: bool, whether the projections have biases. Defaults to
            `True`.
        output_shape: int, tuple or `None`, features of the output. Defaults
            to `None`: those of `query`.
        attention_axes: int, tuple or `None`, the axes that are attended over,
            for inputs of rank > 3; the others are treated like the batch.
            Defaults to `None`: all but batch and features.
        sliding_window: int > 0 or `None`, with `mechanism="softmax"`: a query
            sees the keys less than so many positions away, in linear time,
            through the mechanism `local`. Defaults to `None`: it sees all.
        flash_attention: must be `None` or `False`: there is no softmax matrix
            for such a kernel to form.
        kernel_initializer: initializer of the projection kernels. Defaults to
            `"glorot_uniform"`.
        bias_initializer: initializer of the biases. Defaults to `"zeros"`.
        kernel_regularizer: regularizer of the kernels. Defaults to `None`.
        bias_regularizer: regularizer of the biases. Defaults to `None`.
        activity_regularizer: regularizer of the projections' outputs.
            Defaults to `None`.
        kernel_constraint: constraint on the kernels. Defaults to `None`.
        bias_constraint: constraint on the biases. Defaults to `None`.
        use_gate: bool, multiply the heads by a gate projected from the query.
            Defaults to `False`.
        seed: int or `None`, seed of the dropout. Defaults to `None`.
        mechanism: name, dict, class or object, see `mechanisms.get`. Defaults
            to `"modified_linformer"`.
        num_key_value_heads: int > 0 or `None`, heads of key and value, a
            divisor of `num_heads`: each serves a group of neighbouring query
            heads. Defaults to `None`: `num_heads`.
        num_query_key_heads: int > 0 or `None`, likewise heads of query and
            key, each for a group of value heads. Defaults to `None`:
            `num_heads`.
        kernel_size: int > 1 or `None`, positions of short causal
            convolutions with SiLU, one for each feature of query, key and
            value. Defaults to `None`: none.
        qk_norm: bool, divide each head of query and key by its root mean
            square, times a learned scale. Defaults to `False`.
        rope_max_wavelength: float > 1 or `None`, rotary positions of query
            and key (10,000 is usual). They count visible positions, from 0.
            Defaults to `None`: none.
        rope_scaling_factor: float > 0, by which these positions are divided.
            Defaults to 1.
        partial_rotary_factor: float in (0, 1], part of each head's features
            that turn with the position, the first ones. Defaults to 1.
        output_norm: bool, divide each head's output by its root mean square,
            times a learned scale, before the gate. Defaults to `False`.
        gate_activation: of the gate (`use_gate`). Defaults to `"sigmoid"`.
        layer_norm_epsilon: float > 0, of both norms. Defaults to `1e-6`.
        **kwargs: arguments of `keras.layers.Layer`: `name`, `dtype`, ...

    Call arguments:
        query: tensor `(B, T, F)`, or of higher rank (`attention_axes`).
        value: tensor `(B, S, F)`.
        key: optional tensor `(B, S, F)`. Defaults to `value`.
        query_mask: optional bool tensor `(B, T)`; hidden rows attend to
            nothing. Masks: `True` = visible; for inputs of rank > 3 their
            shape is the input's without features.
        value_mask: optional bool tensor `(B, S)`.
        key_mask: optional bool tensor `(B, S)`.
        attention_mask: optional tensor `(B, S)` or `(B, 1, S)`: it may depend
            on the key only.
        return_attention_scores: bool, return also the explicit matrix that
            the mechanism amounts to. Quadratic in the length, for inspection.
            Defaults to `False`.
        training: optional bool, whether dropout is active.
        use_causal_mask: bool, query t sees keys s <= t only. Defaults to
            `False`.
        initial_state: optional tree of tensors, what an earlier call returned
            as its state: the inputs go on where that call ended. Needs
            `use_causal_mask=True`. Defaults to `None`.
        return_state: bool, return also the state after the inputs, whose size
            does not depend on the length. Defaults to `False`.
        segment_ids: optional int tensor `(B, T)`, for rows that hold several
            documents: a query sees the keys of its own id only. Equal ids
            stand side by side, and 0 marks padding. A pair of tensors `(B, T)`
            and `(B, S)` if `value` is another sequence. The first document
            goes on from `initial_state`; the state returned is that of the
            last one. Needs a mechanism with the trait `packs`.

    Returns:
        Tensor `(B, T, F)` (or `output_shape`). With
        `return_attention_scores=True` also a tensor `(B, H, T, S)`, with
        `return_state=True` also the state. A row that sees no key is 0 before
        the output projection.

    Raises:
        ValueError: if an argument is out of range; for `flash_attention`; for
            `sliding_window` with a mechanism other than softmax; for a mask
            that depends on the query; for a causal mask with a mechanism that
            has no causal form.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> layer = keras_linattn.LinearMultiHeadAttention(num_heads=2, key_dim=8)
    >>> x = np.ones((4, 10, 16), "float32")
    >>> tuple(layer(x, x).shape)
    (4, 10, 16)

    Source: Verma, 2020, arXiv 2101.10277 (the default mechanism); Vaswani et
    al., 2017, arXiv 1706.03762 (multi-head projections).
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | tuple[int, ...] | None = None,
        attention_axes: int | tuple[int, ...] | None = None,
        sliding_window: int | None = None,
        flash_attention: bool | None = None,
        kernel_initializer: str | keras.Initializer = "glorot_uniform",
        bias_initializer: str | keras.Initializer = "zeros",
        kernel_regularizer: str | keras.Regularizer | None = None,
        bias_regularizer: str | keras.Regularizer | None = None,
        activity_regularizer: str | keras.Regularizer | None = None,
        kernel_constraint: str | keras.constraints.Constraint | None = None,
        bias_constraint: str | keras.constraints.Constraint | None = None,
        use_gate: bool = False,
        seed: int | None = None,
        mechanism: str | dict | type | Mechanism = "modified_linformer",
        num_key_value_heads: int | None = None,
        num_query_key_heads: int | None = None,
        kernel_size: int | None = None,
        qk_norm: bool = False,
        rope_max_wavelength: float | None = None,
        rope_scaling_factor: float = 1.0,
        partial_rotary_factor: float = 1.0,
        output_norm: bool = False,
        gate_activation: str | Callable = "sigmoid",
        layer_norm_epsilon: float = 1e-6,
        **kwargs: Any,
    ):
        _refuse_flash_attention(flash_attention)
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
        self.sliding_window = sliding_window
        self.flash_attention = flash_attention
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
        self.num_key_value_heads = num_key_value_heads
        self.num_query_key_heads = num_query_key_heads
        self.kernel_size = kernel_size
        self.qk_norm = qk_norm
        self.rope_max_wavelength = rope_max_wavelength
        self.rope_scaling_factor = rope_scaling_factor
        self.partial_rotary_factor = partial_rotary_factor
        self.output_norm = output_norm
        self.gate_activation = keras.activations.get(gate_activation)
        self.layer_norm_epsilon = layer_norm_epsilon
        _head_options.check(self)
        self._set_mechanism(mechanism)

    @makes_sublayers
    def _set_mechanism(self, mechanism):
        mechanism = mechanisms.get(
            mechanism, dtype=sublayer_policy(self.dtype_policy, "mechanism")
        )
        if self.sliding_window is not None:
            mechanism = _windowed(mechanism, self.sliding_window)
        self.mechanism = mechanism  # once: Keras tracks each that is set
        self._dropout_layer = keras.layers.Dropout(
            self.dropout, seed=self.seed, dtype=self.dtype_policy
        )

    @makes_sublayers
    def build(self, query_shape, value_shape, key_shape=None):
        key_shape = key_shape or value_shape
        check_input_shapes(query_shape, value_shape, key_shape)
        _head_options.check_split(self)
        rank = len(query_shape)
        sizes = _head_options.projected_heads(self)
        # In the order of Keras' layer: `set_weights` depends on it.
        self._build_queries(query_shape)
        self._key_dense = self._make_dense("key", rank, sizes["key"])
        self._key_dense.build(key_shape)
        self._build_gate(query_shape)
        self._value_dense = self._make_dense("value", rank, sizes["value"])
        self._value_dense.build(value_shape)
        self._build_output(query_shape)
        shapes = (query_shape, key_shape, value_shape)
        for role, shape in zip(_head_options.ROLES, shapes, strict=True):
            self._build_transform(role, shape)
        self._build_mechanism(query_shape, value_shape)

    def _build_queries(self, shape):
        self._folding = AxisFolding(len(shape), self.attention_axes)
        _head_options.check_rank(self, shape)
        heads = _head_options.projected_heads(self)["query"]
        self._query_dense = self._make_dense("query", len(shape), heads)
        self._query_dense.build(shape)

    def _build_gate(self, shape):
        if self.use_gate:
            self._gate_dense = self._make_dense(
                "gate",
                len(shape),
                (self.num_heads, self.value_dim),
                activation=self.gate_activation,
            )
            self._gate_dense.build(shape)

    def _build_transform(self, role, shape):
        """What follows a projection, if these options ask for anything."""
        options = _head_options.transform_options(self, role)
        if options:
            name = f"{role}_heads"
            transform = HeadTransform(
                **options,
                dtype=sublayer_policy(self.dtype_policy, name),
                name=name,
            )
            heads = _head_options.projected_heads(self)[role]
            transform.build((*shape[:-1], *heads))
            setattr(self, f"_{role}_transform", transform)

    def _transform_of(self, role):
        return getattr(self, f"_{role}_transform", None)

    def _build_output(self, shape):
        if self.output_norm:
            name = "output_norm"
            policy = sublayer_policy(self.dtype_policy, name)
            self._output_norm = make_norm(
                "rms", self.layer_norm_epsilon, policy, name
            )
            self._output_norm.build((*shape[:-1], self.value_dim))
        self._output_dense = self._make_dense(
            "attention_output",
            len(shape),
            self._output_shape or (shape[-1],),
            bound_axes=2,
        )
        self._output_dense.build((*shape[:-1], self.num_heads, self.value_dim))

    def _make_dense(
        self, name, rank, output_dims, bound_axes=1, activation=None
    ):
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

    @property
    def query_dense(self) -> keras.layers.EinsumDense:
        """The query projection, an `EinsumDense` (after `build`)."""
        return self._query_dense

    @property
    def key_dense(self) -> keras.layers.EinsumDense:
        """The key projection, an `EinsumDense` (after `build`)."""
        return self._key_dense

    @property
    def value_dense(self) -> keras.layers.EinsumDense:
        """The value projection, an `EinsumDense` (after `build`)."""
        return self._value_dense

    @property
    def output_dense(self) -> keras.layers.EinsumDense:
        """The output projection, an `EinsumDense` (after `build`)."""
        return self._output_dense

    def call(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool = False,
        initial_state: Tree | None = None,
        return_state: bool = False,
        segment_ids: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple:
        check_floating(query=query, value=value, key=key)
        key = value if key is None else key
        # Masks: no product sees what they hide.
        if attention_mask is not None:
            attention_mask = self._key_mask_from(attention_mask, value)
        query_mask = combine_masks(query_mask)
        key_mask = combine_masks(value_mask, key_mask, attention_mask)
        packed = segment_ids is not None
        if packed:
            check_segment_ids(segment_ids, query, value, use_causal_mask)
            query_mask, key_mask = with_padding(
                segment_ids, query_mask, key_mask
            )
        folding = self._folding
        streams = initial_state is not None or return_state
        if streams:
            check_streaming(
                use_causal_mask, return_attention_scores, folding.trivial
            )
        query, key, value = clear(query, key, value, query_mask, key_mask)
        whole = not (use_causal_mask or streams or return_attention_scores)
        whole = whole and not packed
        if whole and self._folds(query, key, value, training):
            return self._call_folded(query, key, value, query_mask, key_mask)
        if streams and initial_state is None:
            initial_state = self.get_initial_state(ops.shape(query)[0])
        before = self._parts_of(initial_state)
        places, key_places, after = self._places(
            query,
            key,
            query_mask,
            key_mask,
            segment_ids,
            before,
            use_causal_mask,
        )
        # Projections to heads, and what is attended over as one axis.
        projected = project(self._query_dense, query)
        queries = self._heads("query", projected, places, before, after)
        keys, values = (
            self._heads(role, x, key_places, before, after)
            for role, x in (
                ("key", project(self._key_dense, key)),
                ("value", project(self._value_dense, value)),
            )
        )
        query_mask = folding.fold_mask(query_mask)
        options = {"key_mask": folding.fold_mask(key_mask)}
        if self.mechanism.traits.gated:
            options["inputs"] = folding.fold_features(query)
        if packed:
            options["segment_ids"] = segment_ids
        # The mechanism.
        if streams:
            heads, after["mechanism"] = self.mechanism.step(
                before["mechanism"], queries, keys, values, **options
            )
        else:
            options.update(query_mask=query_mask, causal=use_causal_mask)
            heads = attend_on_devices(
                self.mechanism,
                (queries, keys, values),
                self._split(),
                training=training,
                **options,
            )
        heads = hide(heads, query_mask)
        output = self._output(heads, projected, query, training)
        if return_attention_scores:
            scores = self.mechanism.attention_scores(queries, keys, **options)
            return output, scores
        return (output, self._state_of(after)) if return_state else output

    def _split(self):
        """Which devices have which heads; `None` without a distribution."""
        return current_split(self._query_dense.variables[0])

    def _places(
        self, query, key, query_mask, key_mask, segment_ids, before, causal
    ):
        """Where queries and keys stand, and the state's part that says so."""
        pair = isinstance(segment_ids, (tuple, list))
        of_queries, of_keys = segment_ids if pair else (segment_ids,) * 2
        start, turns = before.get("position"), self.rope_max_wavelength
        if not causal:
            places, _ = places_of(query, query_mask, of_queries, start, turns)
            keys, after = places_of(key, key_mask, of_keys, start, turns)
            return places, keys, after
        # Causal queries and keys are the same positions.
        mask = key_mask if query_mask is None else query_mask
        places, after = places_of(query, mask, of_queries, start, turns)
        return places, places._replace(mask=key_mask), after

    def _heads(self, role, projected, places, before, after):
        """Heads `[B', H, T, D]` of a projection, as the mechanism takes them.

        Args:
            role: str, query, key or value.
            projected: tensor `(B, ..., G, D)`.
            places: `Places`.
            before: dict, the parts of the state before the inputs, if any.
            after: dict, where the part of the state after them goes.
        """
        transform = self._transform_of(role)
        name = f"{role}_convolution"
        if transform is not None:
            projected, after[name] = transform(
                projected,
                **places._asdict(),
                initial_state=before.get(name),
                return_state=True,
            )
        return self._folding.fold(projected)

    def _parts_of(self, state):
        """A state as a dict of its parts; empty if there is none."""
        if state is None:
            return {}
        return state if self._has_own_state else {"mechanism": state}

    def _state_of(self, parts):
        """The parts in a dict as a state."""
        if not self._has_own_state:
            return parts["mechanism"]
        return {name: parts[name] for name in self.state_spec()}

    @property
    def _has_own_state(self):
        return _head_options.has_own_state(self)

    def _key_mask_from(self, attention_mask, value):
        shape = tuple(value.shape)
        if self._folding.trivial:
            return key_mask_from_attention_mask(attention_mask)
        if len(attention_mask.shape) != len(shape) - 1:
            raise ValueError(
                "For inputs of rank > 3, `attention_mask` has one entry for "
                "each position of `value`. Received: shape "
                f"{tuple(attention_mask.shape)}, expected {shape[:-1]}."
            )
        return attention_mask

    def _output(self, heads, projected, query, training):
        """Norm, dropout, gate and projection of heads `[B', H, T, V]`.

        Args:
            heads: tensor, what the mechanism returned.
            projected: tensor `(B, ..., H, D)`, whose axes the heads had.
            query: tensor `(B, ..., F)`, the layer's input.
            training: optional bool, whether dropout is active.
        """
        if self.output_norm:
            heads = self._output_norm(heads)
        heads = self._dropout_layer(heads, training=training)
        heads = self._folding.unfold(heads, like=projected)
        if self.use_gate:
            heads = ops.multiply(heads, project(self._gate_dense, query))
        return project(self._output_dense, heads)

    def _folds(self, query, key, value, training):
        """Can this bidirectional call be folded, and does it pay?

        See `core/folded.py`: the same output in fewer operations, for long
        sequences whose length is known while the graph is made.
        """
        mechanism = self.mechanism
        return (
            backends.fast_forms()
            and offers_factors(mechanism)
            and len(query.shape) == 3
            and self.compute_dtype == mechanism.compute_dtype
            and self.compute_dtype in EXACT
            and not (self.use_gate or self.output_norm)
            and not any(map(self._transform_of, _head_options.ROLES))
            and (self.dropout == 0 or training is None or training is False)
            # These three are not called.
            and not is_patched(mechanism)
            and is_plain(self._value_dense)
            and is_plain(self._output_dense)
            and self._is_long_enough(query.shape, key.shape, value.shape)
        )

    def _is_long_enough(self, query, key, value):
        if is_empty(query, key, value):
            return False  # the mechanism's call knows what to do
        lengths = (query[1], key[1], value[1])
        # A length that JAX exports is a symbol, which cannot be compared.
        if not all(isinstance(length, int) for length in lengths):
            return False
        batches = {
            n for n in (query[0], key[0], value[0]) if isinstance(n, int)
        }
        if lengths[1] != lengths[2] or len(batches) > 1:
            return False  # these are faults, which the usual path finds
        heads = (self.key_dim, self.value_dim)
        outputs = self._output_dense.kernel.shape[2:]
        return len(outputs) == 1 and folding_pays(
            (*lengths[:2], value[-1], *heads, outputs[0])
        )

    def _call_folded(self, query, key, value, query_mask, key_mask):
        """The output `(B, T, O)`, of inputs that are 0 where masked."""
        factors = self.mechanism.factors(
            project(self._query_dense, query),
            hide(project(self._key_dense, key), key_mask, axis=1),
            key_mask,
        )
        weights = hide(factors.query, query_mask, axis=1)
        projections = (self._value_dense, self._output_dense)
        # The projections cast what they are called with; here none is called.
        return folded_attention(
            factors._replace(query=weights),
            ops.cast(value, self.compute_dtype),
            *((dense.kernel, dense.bias) for dense in projections),
        )

    # --- Attention in parts, for inputs `(B, T, F)` after `build`

    def project_keys(
        self,
        value: Tensor,
        value_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        state: Tree | None = None,
    ) -> dict:
        """Computes what queries need from `value`, such as keys and values.

        Another layer may attend to the result, with queries of its own.

        Args:
            value: tensor `(B, S, F)`.
            value_mask: optional bool tensor `(B, S)`, `True` = visible.
            attention_mask: optional tensor `(B, S)` or `(B, 1, S)`.
            segment_ids: optional int tensor `(B, S)`, whose padding is hidden.
            state: optional tree of tensors, the state before the positions.

        Returns:
            Dict of the heads `key` and `value`, of `key_mask`, of `inputs` if
            the mechanism is gated, and of `segment_ids` if there are any; and
            of `places` and `after`, for `attend_to`.
        """
        if attention_mask is not None:
            attention_mask = key_mask_from_attention_mask(attention_mask)
        mask = combine_masks(value_mask, attention_mask)
        if segment_ids is not None:
            check_segment_ids(segment_ids, value)
            _, mask = with_padding(segment_ids, None, mask)
        value = hide(value, mask)
        before = self._parts_of(state)
        places, after = places_of(
            value,
            mask,
            segment_ids,
            before.get("position"),
            self.rope_max_wavelength,
        )
        key, heads = (
            self._heads(role, x, places, before, after)
            for role, x in (
                ("key", project(self._key_dense, value)),
                ("value", project(self._value_dense, value)),
            )
        )
        keys = {
            "key": key,
            "value": heads,
            "key_mask": mask,
            "places": places,
            "after": after,
        }
        if self.mechanism.traits.gated:
            keys["inputs"] = value
        if segment_ids is not None:
            keys["segment_ids"] = segment_ids
        return keys

    def attend_to(
        self,
        query: Tensor,
        keys: dict,
        query_mask: Tensor | None = None,
        state: Tree | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tree | None]:
        """Attends causally to keys, which may come from another layer.

        Args:
            query: tensor `(B, T, F)`.
            keys: dict from `project_keys`, of T positions.
            query_mask: optional bool tensor `(B, T)`.
            state: optional tree of tensors, the state before the positions.
            training: optional bool, whether dropout is active.

        Returns:
            Tensor `(B, T, F)`, and the state after the positions, `None` if
            there was none before.
        """
        before = self._parts_of(state)
        keys = {**keys}
        places, after = keys.pop("places"), {**keys.pop("after")}
        if query_mask is not None:
            places = places._replace(mask=query_mask)
        projected = project(self._query_dense, query)
        queries = self._heads("query", projected, places, before, after)
        if state is None:
            heads = attend_on_devices(
                self.mechanism,
                (queries, keys.pop("key"), keys.pop("value")),
                self._split(),
                **keys,
                query_mask=query_mask,
                causal=True,
                training=training,
            )
        else:
            heads, after["mechanism"] = self.mechanism.step(
                before["mechanism"], queries, **keys
            )
            state = self._state_of(after)
        heads = hide(heads, query_mask)
        return self._output(heads, projected, query, training), state

    def summarize(
        self,
        value: Tensor,
        value_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tree:
        """Computes a state from `value`, for any number of calls of `read`.

        Args:
            value: tensor `(B, S, F)`.
            value_mask: optional bool tensor `(B, S)`, `True` = visible.
            attention_mask: optional tensor `(B, S)` or `(B, 1, S)`.

        Returns:
            Tree of tensors, a state of the mechanism.
        """
        _head_options.check_no_order(self)
        state = self.get_initial_state(ops.shape(value)[0])
        keys = self.project_keys(value, value_mask, attention_mask)
        del keys["places"], keys["after"]
        # Any queries do: what they read is not used.
        _, state = self.mechanism.step(state, keys["key"], **keys)
        return state

    def read(
        self, query: Tensor, state: Tree, training: bool | None = None
    ) -> Tensor:
        """Attends to all positions of a state, which stays as it is.

        Args:
            query: tensor `(B, T, F)`.
            state: tree of tensors, as from `summarize`.
            training: optional bool, whether dropout is active.

        Returns:
            Tensor `(B, T, F)`.
        """
        _head_options.check_no_order(self)
        projected = project(self._query_dense, query)
        queries = self._heads("query", projected, Places(), {}, {})
        # Reading is a step whose new keys are all hidden.
        value = ops.zeros_like(queries[..., :1])
        heads, _ = self.mechanism.step(
            state,
            queries,
            key=ops.zeros_like(queries),
            value=ops.repeat(value, self.value_dim, axis=-1),
            key_mask=ops.zeros_like(queries[:, 0, :, 0], dtype="bool"),
        )
        return self._output(heads, projected, query, training)

    # --- States, specs, config

    def state_spec(self) -> Tree:
        """What a state consists of, whatever it took in; see `Mechanism`.

        The mechanism's state. With short convolutions or rotary positions a
        dict of it, `mechanism`, and of theirs.
        """
        spec = self.mechanism.state_spec(
            self.num_heads, self.key_dim, self.value_dim
        )
        own = _head_options.own_state_spec(self)
        return {"mechanism": spec, **own} if own else spec

    def get_initial_state(self, batch_size: int | Tensor) -> Tree:
        """The state of `batch_size` sequences before their first position."""
        state = self.mechanism.initial_state(
            batch_size, self.num_heads, self.key_dim, self.value_dim
        )
        own = {
            name: ops.zeros((batch_size, *x.shape[1:]), dtype=x.dtype)
            for name, x in _head_options.own_state_spec(self).items()
        }
        return {"mechanism": state, **own} if own else state

    def compute_output_shape(self, query_shape, value_shape, key_shape=None):
        return (*query_shape[:-1], *(self._output_shape or query_shape[-1:]))

    def compute_output_spec(
        self,
        query,
        value,
        key=None,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        return_attention_scores=False,
        training=None,
        use_causal_mask=False,
        initial_state=None,
        return_state=False,
        segment_ids=None,
    ):
        # Refuse while the model is made, not when the first batch arrives.
        check_floating(query=query, value=value, key=key)
        if segment_ids is not None:
            check_segment_ids(segment_ids, query, value, use_causal_mask)
            self.mechanism.check_packs()
        queries, keys, values = self._head_shapes(query.shape, value.shape)
        self.mechanism.check_call(
            queries, keys, values, use_causal_mask, segment_ids is not None
        )
        if attention_mask is not None:
            self._key_mask_from(attention_mask, value)
        if initial_state is not None or return_state:
            check_streaming(
                use_causal_mask, return_attention_scores, self._folding.trivial
            )
        output = keras.KerasTensor(
            (*query.shape[:-1], *(self._output_shape or query.shape[-1:])),
            dtype=self.compute_dtype,
        )
        if return_state:
            return output, with_batch(self.state_spec(), query.shape[0])
        if not return_attention_scores:
            return output
        self.mechanism.check_scores()
        scores = keras.KerasTensor(
            (*queries[:3], keys[2]), dtype=self.compute_dtype
        )
        return output, scores

    def _sublayers(self):
        names = ("query", "key", "gate", "value", "output")
        layers = (getattr(self, f"_{name}_dense", None) for name in names)
        return [layer for layer in layers if layer is not None]

    def get_config(self) -> dict:
        config = {
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "output_shape": self._output_shape,
            "attention_axes": self.attention_axes,
            "sliding_window": self.sliding_window,
            "flash_attention": self.flash_attention,
            "use_gate": self.use_gate,
            "seed": self.seed,
            "mechanism": serialize_mechanism(self.mechanism, self.name),
            "num_key_value_heads": self.num_key_value_heads,
            "num_query_key_heads": self.num_query_key_heads,
            "kernel_size": self.kernel_size,
            "qk_norm": self.qk_norm,
            "rope_max_wavelength": self.rope_max_wavelength,
            "rope_scaling_factor": self.rope_scaling_factor,
            "partial_rotary_factor": self.partial_rotary_factor,
            "output_norm": self.output_norm,
            "gate_activation": keras.activations.serialize(
                self.gate_activation
            ),
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }
        config["activity_regularizer"] = keras.regularizers.serialize(
            self._activity_regularizer
        )
        config["dtype"] = policy_for_config(
            self.dtype_policy, self._sublayers()
        )
        return {**super().get_config(), **config, **variable_options(self)}


def _refuse_flash_attention(flash_attention):
    if flash_attention:
        raise ValueError(
            "`flash_attention` belongs to softmax attention and cannot be "
            "honoured in linear attention. Received: "
            f"flash_attention={flash_attention!r}. Leave it out, or use "
            "`keras.layers.MultiHeadAttention`."
        )


def _windowed(mechanism, window):
    """Softmax attention within Keras' window, which counts all positions."""
    local, softmax = mechanisms.Local, mechanisms.Softmax
    # What a layer's config holds is windowed already.
    if isinstance(mechanism, local) and mechanism.window == window:
        return mechanism
    if not isinstance(mechanism, softmax):
        raise ValueError(
            "`sliding_window` works with softmax attention only. Received: "
            f"sliding_window={window!r} with the mechanism "
            f'`{type(mechanism).__name__}`. Pass `mechanism="softmax"`, or '
            "leave `sliding_window` out."
        )
    if not isinstance(window, int) or window <= 0:
        raise ValueError(
            "`sliding_window` must be `None` or a positive integer. "
            f"Received: sliding_window={window!r}."
        )
    config = mechanism.get_config()
    return local(
        window,
        skip_hidden=False,
        state_dtype=config["state_dtype"],
        dtype=mechanism.dtype_policy,
    )


def project(dense, x):
    """`dense(x)`, as one product of matrices with its bias where that pays.

    `EinsumDense` adds the bias to heads `(H, D)`, a second pass over the
    output, since only a product of plain matrices takes one along.

    Args:
        dense: built `keras.layers.EinsumDense` from the last axes of `x`, with
            a bias of all its output's axes.
        x: tensor `(B, T, ..., F)`.
    """
    if (
        not backends.has_fast_form(dense_product)
        or dense.bias is None
        or not is_plain(dense)
    ):
        return _call(dense, x)
    x = ops.cast(x, dense.compute_dtype)
    return dense_product(x, dense.kernel, dense.bias)


def _call(dense, x):
    """`dense(x)`, where TensorFlow cannot take the bias for one of axis 1.

    Keras adds a bias `(H, 1)` along axis 1 if H is the length there. In two
    parts, neither has that length.
    """
    length = x.shape[1]  # a symbol, which cannot be compared, in an export
    if (
        dense.bias is None
        or dense.bias.shape[-1] > 1
        or not isinstance(length, int)
        or [n for n in dense.bias.shape if n > 1] != [length]
    ):
        return dense(x)
    return ops.concatenate([dense(x[:, :1]), dense(x[:, 1:])], axis=1)


_CALL = keras.layers.EinsumDense.call


def is_plain(dense):
    """Is it a product and a bias in full precision, and nothing else?

    Only then may a product of `dense.kernel`, which has what LoRA adds to it,
    take the place of the call.
    """
    return (
        type(dense).call is _CALL
        and not is_patched(dense)
        and dense.quantization_mode is None
        and dense.compute_dtype in EXACT
        and dense.activation in (None, keras.activations.linear)
        and dense.activity_regularizer is None
    )


def is_patched(layer):
    """Has somebody given this object a `call` of its own, or a hook?

    As calibration for GPTQ does, to see what the layer is called with.
    """
    return "call" in vars(layer) or has_hooks(layer)


@backends.per_backend
def has_hooks(layer):
    """Has it hooks, which run when it is called? Only torch has them."""
    return False


def offers_factors(mechanism):
    """Does its very class say how its output factors?

    An inherited `factors` may not be that of an `attend` that a subclass
    writes: such a class loses the speed, and nothing else.
    """
    return mechanism.traits.separable and "factors" in vars(type(mechanism))
