"""Waveforms to sequences of one feature, zeros at the end hidden."""

from typing import Any

import keras
from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.lengths import is_empty
from keras_linattn.layers._base_layer import BaseLayer


@keras.saving.register_keras_serializable("keras_linattn")
class TrailingZerosMask(keras.Operation):
    """Mask `(B, T)` of a waveform: `False` after the last sample but 0.

    An operation of its own: while a functional model is made, the length is
    not known.
    """

    def call(self, waveforms):
        position = ops.arange(ops.shape(waveforms)[1], dtype="int32")
        position = ops.expand_dims(position, 0)
        sounding = ops.not_equal(waveforms, 0)  # NaN is
        if is_empty(waveforms.shape):
            return sounding  # nothing has no maximum
        last = ops.where(sounding, position, -1)
        return position <= ops.max(last, axis=1, keepdims=True)

    def compute_output_spec(self, waveforms):
        return keras.KerasTensor(waveforms.shape, dtype="bool")


@keras.saving.register_keras_serializable("keras_linattn")
class WaveformMasking(BaseLayer):
    """Adds the feature axis, and masks the zeros at the end of a waveform.

    Samples that are exactly 0 up to the end are padding. Zeros before another
    sample are silence and stay visible. A recording that itself ends in zeros
    is treated as if it ended before them.

    Args:
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        waveforms: float tensor `(B, T)`.
        mask: optional bool tensor `(B, T)`, `True` = visible, in place of the
            one that is found.

    Returns:
        Tensor `(B, T, 1)`, and its mask.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> layer = keras_linattn.layers.WaveformMasking()
    >>> x = np.array([[0.0, 0.5, 0.0, -0.5, 0.0, 0.0]], "float32")
    >>> np.array(layer.compute_mask(x)).astype("int32").tolist()
    [[1, 1, 1, 1, 0, 0]]

    Source: as `keras.layers.Masking`; no paper.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, waveforms: Tensor, mask: Tensor | None = None) -> Tensor:
        return ops.expand_dims(waveforms, -1)

    def compute_mask(self, waveforms, mask=None):
        return TrailingZerosMask()(waveforms) if mask is None else mask

    def compute_output_shape(self, waveforms_shape):
        return (*waveforms_shape, 1)
