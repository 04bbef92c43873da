"""What layers share that project windows of a padded sequence."""

import keras
from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.boundaries import LookingBack
from keras_linattn.core.boundaries import group_documents
from keras_linattn.core.boundaries import numbers_and_mask
from keras_linattn.core.chunks import num_chunks
from keras_linattn.core.lengths import is_empty
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import first_given
from keras_linattn.core.masks import hide
from keras_linattn.layers._arguments import check_segment_ids
from keras_linattn.layers._base_layer import BaseLayer
from keras_linattn.layers._base_layer import makes_sublayers
from keras_linattn.layers._sublayers import policy_for_config
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.layers.stems._groups import MergeMask
from keras_linattn.layers.stems._groups import group


class WindowProjection(BaseLayer):
    """Projects windows `strides` apart to a token each, see the subclasses.

    A subclass calls `_set_window` in its constructor.
    """

    @makes_sublayers
    def _set_window(self, units, kernel_size, strides):
        self.supports_masking = True
        self.units = units
        self.kernel_size = kernel_size
        self.strides = strides
        # A matrix product: convolutions are slow under XLA on CPU.
        self._projection = keras.layers.Dense(
            units,
            dtype=sublayer_policy(self.dtype_policy, "projection"),
            name="projection",
        )

    def build(self, inputs_shape):
        self._projection.build(
            (*inputs_shape[:-1], inputs_shape[-1] * self.kernel_size)
        )

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        inputs_mask: Tensor | None = None,
    ) -> Tensor:
        # Keras calls it `inputs_mask` where another tensor is passed too.
        mask = combine_masks(first_given(mask, inputs_mask))
        documents = None
        if segment_ids is not None and not is_empty(inputs.shape):
            check_segment_ids(segment_ids, inputs)
            numbers, visible = numbers_and_mask(segment_ids)
            documents, alone = group_documents(numbers, visible, self._group)
            mask = combine_masks(mask, visible)
        groups = self._group(hide(inputs, mask))
        shape = ops.shape(groups)
        groups = ops.reshape(
            groups, (*shape[:2], self.strides * inputs.shape[-1])
        )
        output = self._projection(self._windows(groups, documents))
        if documents is None:
            return output
        return hide(output, alone, value=float("nan"))

    def _group(self, x):
        return group(x, self.strides)

    def _windows(self, groups, documents):
        """Beside each group, those before it: `(B, N, kernel_size * F)`.

        Args:
            groups: tensor `(B, N, strides * F)`.
            documents: int32 tensor `(B, N)`, whose groups see each other only,
                or `None`.
        """
        before = self.kernel_size // self.strides - 1
        if before == 0:
            return groups
        padded = ops.pad(groups, [(0, 0), (before, 0), (0, 0)])
        pieces = [padded[:, i : i - before or None] for i in range(before + 1)]
        if documents is not None:
            back = LookingBack(documents, before)
            pieces = [
                hide(piece, back.same(before - i))
                for i, piece in enumerate(pieces)
            ]
        return ops.concatenate(pieces, axis=-1)

    def compute_output_spec(
        self, inputs, mask=None, segment_ids=None, inputs_mask=None
    ):
        if segment_ids is not None:
            check_segment_ids(segment_ids, inputs)
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else MergeMask(self.strides)(mask)

    def compute_output_shape(self, inputs_shape):
        batch, length = inputs_shape[:2]
        if length is not None:
            length = num_chunks(length, self.strides)
        return (batch, length, self.units)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "dtype": policy_for_config(self.dtype_policy, [self._projection]),
            "units": self.units,
        }
