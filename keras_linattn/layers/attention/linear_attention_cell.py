"""Causal attention as the cell of a `keras.layers.RNN`."""

import math
from typing import Any
from typing import Self

import keras
from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.masks import nan_where
from keras_linattn.layers._base_layer import makes_sublayers
from keras_linattn.layers.attention.linear_self_attention import (
    LinearSelfAttention,
)


@keras.saving.register_keras_serializable("keras_linattn")
class LinearAttentionCell(keras.layers.Layer):
    """One position of a causal `LinearSelfAttention`, for `keras.layers.RNN`.

    The RNN then keeps the attention's state, also between calls
    (`stateful=True`). It goes position by position: where the whole sequence
    is at hand the attention layer itself is faster.

    Args:
        attention: `LinearSelfAttention` with `causal=True` and a recurrent
            mechanism.
        **kwargs: arguments of `keras.layers.Layer`, but for `dtype`: the
            states are float32, what is computed has the policy of
            `attention`.

    Call arguments:
        inputs: tensor `(B, F)`, one position.
        states: list of float32 tensors `(B, size)`, one for each leaf of the
            attention's state.

    Returns:
        Tensor `(B, F)` (or the attention's `output_shape`), and the list of
        new states.

    Raises:
        TypeError: if `attention` is no `LinearSelfAttention`.
        ValueError: if it is not causal, or its mechanism is not recurrent.

    Example:

    >>> import numpy as np
    >>> import keras
    >>> import keras_linattn
    >>> attention = keras_linattn.LinearSelfAttention(
    ...     num_heads=2, key_dim=8, causal=True, mechanism="retention")
    >>> rnn = keras.layers.RNN(
    ...     keras_linattn.layers.LinearAttentionCell(attention),
    ...     return_sequences=True)
    >>> tuple(rnn(np.ones((4, 10, 16), "float32")).shape)
    (4, 10, 16)

    Source: Katharopoulos et al., 2020, arXiv 2006.16236, section 3.4.
    """

    def __init__(self, attention: LinearSelfAttention, **kwargs: Any):
        # `RNN` casts states to its cell's dtype, and half is not enough.
        super().__init__(**{**kwargs, "dtype": "float32", "autocast": False})
        if not isinstance(attention, LinearSelfAttention):
            raise TypeError(
                "`attention` must be a `LinearSelfAttention`. "
                f"Received: {attention!r} of type {type(attention).__name__}. "
                "Make one with `causal=True`."
            )
        if not attention.causal:
            raise ValueError(
                "`attention` must be causal: a cell has not seen the future. "
                "Received: a `LinearSelfAttention` with causal=False. Make it "
                "with `causal=True`."
            )
        self.attention = attention
        self._spec = attention.state_spec()

    @property
    def state_size(self) -> list[int]:
        """List of int, the size of each leaf of the state."""
        return [
            math.prod(leaf.shape[1:]) for leaf in keras.tree.flatten(self._spec)
        ]

    @property
    def output_size(self) -> int:
        """int, the number of output features (after `build`)."""
        return self.attention.compute_output_shape((None, 1, self._features))[
            -1
        ]

    @makes_sublayers
    def build(self, input_shape):
        self._features = input_shape[-1]
        if not self.attention.built:
            self.attention.build((input_shape[0], 1, input_shape[-1]))

    def call(
        self, inputs: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        leaves = [
            ops.reshape(ops.cast(x, leaf.dtype), (-1, *leaf.shape[1:]))
            for x, leaf in zip(
                states, keras.tree.flatten(self._spec), strict=True
            )
        ]
        # `RNN` calls its cell at hidden positions, too, and selects afterwards:
        # NaN must not be in the graph there, where it would reach gradients.
        finite = ops.all(ops.isfinite(inputs), axis=-1, keepdims=True)
        inputs = ops.where(finite, inputs, ops.zeros_like(inputs))
        output, state = self.attention(
            ops.expand_dims(inputs, 1),
            initial_state=keras.tree.pack_sequence_as(self._spec, leaves),
            return_state=True,
        )
        return tuple(
            keras.tree.map_structure(
                lambda x: nan_where(ops.logical_not(finite), x),
                (ops.squeeze(output, 1), self._as_rows(state)),
            )
        )

    def get_initial_state(
        self, batch_size: int | Tensor | None = None
    ) -> list[Tensor]:
        """The states of `batch_size` sequences before their first position."""
        return self._as_rows(self.attention.get_initial_state(batch_size))

    def _as_rows(self, state):
        """The leaves of a state as float32 tensors `(B, size)`."""
        return [
            ops.reshape(ops.cast(x, self.compute_dtype), (-1, size))
            for x, size in zip(
                keras.tree.flatten(state), self.state_size, strict=True
            )
        ]

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "attention": keras.saving.serialize_keras_object(self.attention),
        }

    @classmethod
    def from_config(cls, config: dict) -> Self:
        attention = keras.saving.deserialize_keras_object(config["attention"])
        return cls(**{**config, "attention": attention})
