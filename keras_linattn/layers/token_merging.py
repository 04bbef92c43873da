"""Shortens a sequence by projecting groups of neighbours to one token."""

import keras
from keras import ops

from keras_linattn.core.chunks import num_chunks
from keras_linattn.core.chunks import pad_to_chunks
from keras_linattn.core.masks import hide
from keras_linattn.layers._sublayers import policy_for_config
from keras_linattn.layers._sublayers import sublayer_policy


def check_factor(factor, name="factor"):
    """Raises a `ValueError` unless the argument `name` is an int > 0."""
    if not isinstance(factor, int) or factor < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={factor!r}."
        )


def group(x, factor):
    """`(B, T, ...)` to `(B, ceil(T / factor), factor, ...)`, 0 at the end."""
    shape = ops.shape(x)
    count = num_chunks(shape[1], factor)
    x = pad_to_chunks(x, factor, axis=1)
    return ops.reshape(x, (shape[0], count, factor, *shape[2:]))


@keras.saving.register_keras_serializable("keras_linattn")
class MergeMask(keras.Operation):
    """Mask of merged tokens: `True` if one of the `factor` parts is.

    An operation of its own: while a functional model is made, Keras needs
    masks tied to the graph, and `group` cannot count an unknown length.
    """

    def __init__(self, factor, name=None):
        super().__init__(name=name)
        self.factor = factor

    def call(self, mask):
        # Through int32: TensorFlow cannot pad booleans.
        return ops.any(group(ops.cast(mask, "int32"), self.factor) > 0, axis=2)

    def compute_output_spec(self, mask):
        batch, length = mask.shape
        length = None if length is None else num_chunks(length, self.factor)
        return keras.KerasTensor((batch, length), dtype="bool")

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable("keras_linattn")
class TokenMerging(keras.layers.Layer):
    """Projects each group of `factor` neighbouring tokens to one.

    The last group is filled with zeros, and hidden tokens count as zeros, so
    that padding changes nothing. A merged token is visible if one of its
    parts is.

    Args:
        factor: int > 0, tokens in a group.
        units: int > 0, features of a merged token.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(B, T, F)`.
        mask: optional bool tensor `(B, T)`, `True` = visible.

    Returns:
        Tensor `(B, ceil(T / factor), units)`, and its mask if there was one.

    Raises:
        ValueError: if `factor` is not a positive integer.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> layer = keras_linattn.TokenMerging(factor=4, units=8)
    >>> tuple(layer(np.ones((2, 10, 16), "float32")).shape)
    (2, 3, 8)

    Source: the patch embedding of Dosovitskiy et al., 2021, arXiv 2010.11929,
    along one axis.
    """

    def __init__(self, factor, units, **kwargs):
        super().__init__(**kwargs)
        check_factor(factor)
        self.supports_masking = True
        self.factor = factor
        self.units = units
        self._projection = keras.layers.Dense(
            units,
            dtype=sublayer_policy(self.dtype_policy, "projection"),
            name="projection",
        )

    def build(self, inputs_shape):
        self._projection.build(
            (*inputs_shape[:-1], inputs_shape[-1] * self.factor)
        )

    def call(self, inputs, mask=None):
        groups = group(hide(inputs, mask), self.factor)
        shape = ops.shape(groups)
        merged = (*shape[:2], self.factor * inputs.shape[-1])
        return self._projection(ops.reshape(groups, merged))

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else MergeMask(self.factor)(mask)

    def compute_output_shape(self, inputs_shape):
        batch, length = inputs_shape[:2]
        if length is not None:
            length = num_chunks(length, self.factor)
        return (batch, length, self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "dtype": policy_for_config(self.dtype_policy, [self._projection]),
            "factor": self.factor,
            "units": self.units,
        }
