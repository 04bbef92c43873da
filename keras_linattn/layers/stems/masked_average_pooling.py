"""Average over the visible positions, 0 where there is none."""

from typing import Any

import keras
from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.boundaries import numbers_and_mask
from keras_linattn.core.lengths import is_empty
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import first_given
from keras_linattn.core.masks import hide
from keras_linattn.core.numerics import accumulation_dtype
from keras_linattn.core.numerics import safe_divide
from keras_linattn.layers._arguments import check_segment_ids
from keras_linattn.layers._arguments import positive
from keras_linattn.layers._base_layer import BaseLayer


@keras.saving.register_keras_serializable("keras_linattn")
class MaskedAveragePooling(BaseLayer):
    """Mean over the visible positions of a sequence.

    Like `keras.layers.GlobalAveragePooling1D`, but a sequence with no visible
    position gives 0 rather than NaN, masked positions may hold NaN, and half
    precision is summed in float32.

    Args:
        num_segments: int > 0 or `None`, the most documents that a row holds;
            each document has a mean of its own. Defaults to `None`: one mean
            for each row.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(B, T, F)`.
        mask: optional bool tensor `(B, T)`, `True` = visible.
        segment_ids: int tensor `(B, T)`, needed with `num_segments`. Positions
            with equal ids are adjacent, and 0 marks padding.

    Returns:
        Tensor `(B, F)`, or with `num_segments` `(B, num_segments, F)`: the
        means of the documents in their order, 0 where there is none. Further
        documents are left out.

    Raises:
        ValueError: if `num_segments` is not a positive integer, or if only one
            of `num_segments` and `segment_ids` is given.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> layer = keras_linattn.layers.MaskedAveragePooling()
    >>> x = np.array([[[1.0], [2.0], [np.nan]]])
    >>> float(layer(x, mask=np.array([[True, True, False]]))[0, 0])
    1.5

    Source: the arithmetic mean; no paper.
    """

    def __init__(self, num_segments: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True
        if num_segments is not None:
            positive("num_segments", num_segments)
        self.num_segments = num_segments

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        inputs_mask: Tensor | None = None,
    ) -> Tensor:
        self._check(inputs, segment_ids)
        # Keras calls it `inputs_mask` where another tensor is passed too.
        mask = combine_masks(first_given(mask, inputs_mask))
        x = ops.cast(inputs, accumulation_dtype(inputs.dtype))
        if segment_ids is not None:
            mean = segment_means(x, mask, segment_ids, self.num_segments)
            return ops.cast(mean, inputs.dtype)
        if mask is None and x.shape[1] not in (None, 0):
            return ops.cast(ops.mean(x, axis=1), inputs.dtype)
        # A length that may be 0 is counted, too.
        mask = ops.ones_like(x[..., 0], dtype="bool") if mask is None else mask
        count = ops.sum(ops.cast(mask, x.dtype), axis=1, keepdims=True)
        mean = safe_divide(ops.sum(hide(x, mask), axis=1), count)
        return ops.cast(mean, inputs.dtype)

    def _check(self, inputs, segment_ids):
        if (segment_ids is None) != (self.num_segments is None):
            given = "None" if segment_ids is None else "a tensor"
            raise ValueError(
                "The means of several documents in a row need both "
                "`segment_ids` and a fixed number of documents. Received: "
                f"segment_ids={given}, num_segments={self.num_segments}. Make "
                "the layer with `num_segments=` the most documents of a row, "
                "and call it with `segment_ids=`."
            )
        if segment_ids is not None:
            check_segment_ids(segment_ids, inputs)

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_spec(
        self, inputs, mask=None, segment_ids=None, inputs_mask=None
    ):
        self._check(inputs, segment_ids)
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def compute_output_shape(self, inputs_shape):
        batch, _, features = inputs_shape
        if self.num_segments is None:
            return (batch, features)
        return (batch, self.num_segments, features)

    def get_config(self) -> dict:
        return {**super().get_config(), "num_segments": self.num_segments}


def segment_means(x, mask, segment_ids, num_segments):
    """The means of a row's first `num_segments` documents.

    Args:
        x: tensor `(B, T, F)`.
        mask: bool tensor `(B, T)`, `True` = visible, or `None`.
        segment_ids: int tensor `(B, T)`.
        num_segments: int > 0, N.

    Returns:
        Tensor `(B, N, F)`, 0 where there is no document.
    """
    batch, length, features = ops.shape(x)
    if is_empty(x.shape):
        return ops.zeros((batch, num_segments, features), dtype=x.dtype)
    numbers, visible = numbers_and_mask(segment_ids)
    mask = combine_masks(mask, visible)
    # Of what is hidden or left out, a sum that is dropped: one more document.
    numbers = ops.where(mask, ops.minimum(numbers, num_segments), num_segments)
    rows = ops.expand_dims(ops.arange(batch, dtype="int32"), 1)
    places = ops.reshape(rows * (num_segments + 1) + numbers, (-1,))

    def sums(values):
        size = values.shape[-1]
        total = ops.segment_sum(
            ops.reshape(values, (batch * length, size)),
            places,
            num_segments=batch * (num_segments + 1),
        )
        total = ops.reshape(total, (batch, num_segments + 1, size))
        return total[:, :num_segments]

    # A sum, not a product with ones and zeros: 0 * NaN is NaN.
    count = sums(ops.expand_dims(ops.cast(mask, x.dtype), 2))
    return safe_divide(sums(hide(x, mask)), count)
