"""Average over the visible positions, 0 where there is none."""

import keras
from keras import ops

from keras_linattn.core.masks import hide
from keras_linattn.core.numerics import accumulation_dtype
from keras_linattn.core.numerics import safe_divide
from keras_linattn.layers._base_layer import BaseLayer


@keras.saving.register_keras_serializable("keras_linattn")
class MaskedAveragePooling(BaseLayer):
    """Mean over the visible positions of a sequence.

    Like `keras.layers.GlobalAveragePooling1D`, but a sequence with no visible
    position gives 0 rather than NaN, hidden positions may hold NaN, and half
    precision is summed in float32.

    Call arguments:
        inputs: tensor `(B, T, F)`.
        mask: optional bool tensor `(B, T)`, `True` = visible.

    Returns:
        Tensor `(B, F)`.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> layer = keras_linattn.MaskedAveragePooling()
    >>> x = np.array([[[1.0], [2.0], [np.nan]]])
    >>> float(layer(x, mask=np.array([[True, True, False]]))[0, 0])
    1.5

    Source: the arithmetic mean; no paper.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs, mask=None):
        x = ops.cast(inputs, accumulation_dtype(inputs.dtype))
        if mask is None and x.shape[1] not in (None, 0):
            return ops.cast(ops.mean(x, axis=1), inputs.dtype)
        # A length that may be 0 is counted, too.
        mask = ops.ones_like(x[..., 0]) if mask is None else mask
        mask = ops.cast(mask, "bool")
        count = ops.sum(ops.cast(mask, x.dtype), axis=1, keepdims=True)
        mean = safe_divide(ops.sum(hide(x, mask), axis=1), count)
        return ops.cast(mean, inputs.dtype)

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, inputs_shape):
        return (inputs_shape[0], inputs_shape[2])
