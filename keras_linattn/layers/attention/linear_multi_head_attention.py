"""Drop-in replacement for `keras.layers.MultiHeadAttention`."""

import keras

from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import key_mask_from_attention_mask
from keras_linattn.layers._arguments import check_floating
from keras_linattn.layers._arguments import check_streaming
from keras_linattn.layers._attention_base import AttentionBase


@keras.saving.register_keras_serializable("keras_linattn")
class LinearMultiHeadAttention(AttentionBase):
    """Multi-head attention in linear time, with Keras' own interface.

    Takes the constructor and call arguments of
    `keras.layers.MultiHeadAttention` in the same order, and has variables of
    the same names and shapes: `linear.set_weights(softmax.get_weights())`
    works for every mechanism without weights of its own. What happens between
    the projections is the mechanism's.

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
        sliding_window: must be `None`: a band depends on the query position.
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
        use_gate: bool, multiply the heads by a sigmoid gate projected from
            the query. Defaults to `False`.
        seed: int or `None`, seed of the dropout. Defaults to `None`.
        mechanism: name, dict, class or object, see `mechanisms.get`. Defaults
            to `"modified_linformer"`.
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

    Returns:
        Tensor `(B, T, F)` (or `output_shape`). With
        `return_attention_scores=True` also a tensor `(B, H, T, S)`, with
        `return_state=True` also the state. A row that sees no key is 0 before
        the output projection.

    Raises:
        ValueError: if an argument is out of range; for `sliding_window` or
            `flash_attention`; for a mask that depends on the query; for a
            causal mask with a mechanism that has no causal form.

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
        num_heads,
        key_dim,
        value_dim=None,
        dropout=0.0,
        use_bias=True,
        output_shape=None,
        attention_axes=None,
        sliding_window=None,
        flash_attention=None,
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
        super().__init__(
            num_heads=num_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            dropout=dropout,
            use_bias=use_bias,
            output_shape=output_shape,
            attention_axes=attention_axes,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            use_gate=use_gate,
            seed=seed,
            mechanism=mechanism,
            **kwargs,
        )
        _refuse_softmax_options(sliding_window, flash_attention)
        self.sliding_window = sliding_window
        self.flash_attention = flash_attention

    def build(self, query_shape, value_shape, key_shape=None):
        self._build_sublayers(
            query_shape, value_shape, key_shape or value_shape
        )

    def call(
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
    ):
        check_floating(query=query, value=value, key=key)
        if attention_mask is not None:
            attention_mask = self._key_mask_from(attention_mask, value)
        return self._attend(
            query,
            value if key is None else key,
            value,
            query_mask=combine_masks(query_mask),
            key_mask=combine_masks(value_mask, key_mask, attention_mask),
            causal=use_causal_mask,
            training=training,
            return_scores=return_attention_scores,
            initial_state=initial_state,
            return_state=return_state,
        )

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

    def compute_output_shape(self, query_shape, value_shape, key_shape=None):
        return self._output_shape_for(query_shape)

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
    ):
        check_floating(query=query, value=value, key=key)
        # Refuse while the model is made, not when the first batch arrives.
        self.mechanism.check_call(
            *self._head_shapes(query.shape, value.shape), use_causal_mask
        )
        if attention_mask is not None:
            self._key_mask_from(attention_mask, value)
        if initial_state is not None or return_state:
            check_streaming(
                use_causal_mask, return_attention_scores, self._folding.trivial
            )
        return self._output_spec_for(
            query.shape, value.shape, return_attention_scores, return_state
        )

    def get_config(self):
        return {
            **super().get_config(),
            "sliding_window": self.sliding_window,
            "flash_attention": self.flash_attention,
        }


def _refuse_softmax_options(sliding_window, flash_attention):
    for name, value in (
        ("sliding_window", sliding_window),
        ("flash_attention", flash_attention or None),
    ):
        if value is not None:
            raise ValueError(
                f"`{name}` belongs to softmax attention and cannot be honoured "
                f"in linear attention. Received: {name}={value!r}. Leave it "
                "out, or use `keras.layers.MultiHeadAttention`."
            )
