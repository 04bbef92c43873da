"""Self-attention with one input and one output, for `Sequential` models."""

from typing import Any

import keras

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.annotations import Tree
from keras_linattn.core.masks import first_given
from keras_linattn.layers.attention.linear_multi_head_attention import (
    LinearMultiHeadAttention,
)
from keras_linattn.mechanisms import Mechanism


@keras.saving.register_keras_serializable("keras_linattn")
class LinearSelfAttention(LinearMultiHeadAttention):
    """Multi-head self-attention in linear time: one tensor in, one out.

    The layer attends within its input. It has no residual connection and no
    normalisation; `LinearTransformerEncoder` has both. Implicit masks (such
    as of `Embedding(mask_zero=True)`) are used and passed on.

    Args:
        num_heads: int > 0, number of heads H.
        key_dim: int > 0, size D of each head of query and key.
        value_dim: int > 0 or `None`, size V of each head of the value.
            Defaults to `None`: `key_dim`.
        mechanism: name, dict, class or object, see `mechanisms.get`. Defaults
            to `"modified_linformer"`.
        causal: bool, position t sees positions s <= t only. Defaults to
            `False`.
        dropout: float in [0, 1), dropout on the heads' outputs. Defaults to 0.
        use_bias: bool, whether the projections have biases. Defaults to
            `True`.
        **kwargs: `output_shape`, `attention_axes`, `sliding_window`,
            initializers, regularizers, constraints, `use_gate` and `seed` as
            in `LinearMultiHeadAttention`, and the arguments after `mechanism`
            there: grouped heads, short convolutions, norms, rotary
            positions. Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(B, T, F)`, or of higher rank (`attention_axes`).
        mask: optional bool tensor `(B, T)`, `True` = visible. No position
            attends to a masked one, and a masked one attends to none.
        training: optional bool, whether dropout is active.
        return_attention_scores: bool, also return the attention matrix that
            the mechanism implies. Quadratic in the length, for inspection.
            Defaults to `False`.
        initial_state: optional tree of tensors, the state that an earlier call
            returned: `inputs` continue its sequence. Needs
            `causal=True`. Defaults to `None`: `inputs` are the beginning.
        return_state: bool, return also the state after `inputs`, whose size
            does not depend on the length. Defaults to `False`.
        segment_ids: optional int tensor `(B, T)`, for rows that hold several
            documents, see `LinearMultiHeadAttention`.
        inputs_mask: what Keras passes in place of `mask` beside a state or
            `segment_ids`.

    Returns:
        Tensor `(B, T, F)` (or `output_shape`). With
        `return_attention_scores=True` also a tensor `(B, H, T, T)`; with
        `return_state=True` also the state.

    Raises:
        ValueError: if an argument is out of range, if the input's rank is
            under 3, or if `causal=True` and the mechanism has no causal form.

    Example:

    >>> import numpy as np
    >>> import keras
    >>> import keras_linattn
    >>> model = keras.Sequential([
    ...     keras.layers.Embedding(256, 16, mask_zero=True),
    ...     keras_linattn.LinearSelfAttention(num_heads=2, key_dim=8),
    ...     keras.layers.GlobalAveragePooling1D(),
    ... ])
    >>> tuple(model(np.ones((4, 10), "int32")).shape)
    (4, 16)

    Source: Verma, 2020, arXiv 2101.10277 (the default mechanism).
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        mechanism: str | dict | type | Mechanism = "modified_linformer",
        causal: bool = False,
        dropout: float = 0.0,
        use_bias: bool = True,
        **kwargs: Any,
    ):
        super().__init__(
            num_heads=num_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            dropout=dropout,
            use_bias=use_bias,
            mechanism=mechanism,
            **kwargs,
        )
        self.causal = causal

    def build(self, input_shape):
        super().build(input_shape, input_shape)
        # Refuse while the model is made, not when the first batch arrives. A
        # call, which knows of documents, looks at their longest length.
        shapes = self._head_shapes(input_shape, input_shape)
        self.mechanism.check_call(*shapes, self.causal, packed=True)

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        initial_state: Tree | None = None,
        return_state: bool = False,
        segment_ids: Tensor | None = None,
        inputs_mask: Tensor | None = None,
    ) -> Tensor | tuple:
        # Keras calls it `inputs_mask` where there is another tensor.
        mask = first_given(mask, inputs_mask)
        return super().call(
            inputs,
            inputs,
            query_mask=mask,
            value_mask=mask,
            return_attention_scores=return_attention_scores,
            training=training,
            use_causal_mask=self.causal,
            initial_state=initial_state,
            return_state=return_state,
            segment_ids=segment_ids,
        )

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(input_shape, input_shape)

    def compute_output_spec(
        self,
        inputs,
        mask=None,
        training=None,
        return_attention_scores=False,
        initial_state=None,
        return_state=False,
        segment_ids=None,
        inputs_mask=None,
    ):
        return super().compute_output_spec(
            inputs,
            inputs,
            return_attention_scores=return_attention_scores,
            use_causal_mask=self.causal,
            initial_state=initial_state,
            return_state=return_state,
            segment_ids=segment_ids,
        )

    def get_config(self) -> dict:
        config = super().get_config()
        del config["flash_attention"]  # of the drop-in layer only
        return {**config, "causal": self.causal}
