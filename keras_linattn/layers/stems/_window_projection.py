"""What layers share that project windows of a padded sequence."""

import keras
from keras import ops

from keras_linattn.core.chunks import num_chunks
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import hide
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

    def call(self, inputs, mask=None):
        groups = group(hide(inputs, combine_masks(mask)), self.strides)
        shape = ops.shape(groups)
        groups = ops.reshape(
            groups, (*shape[:2], self.strides * inputs.shape[-1])
        )
        return self._projection(self._windows(groups))

    def _windows(self, groups):
        """Beside each group, those before it: `(B, N, kernel_size * F)`."""
        before = self.kernel_size // self.strides - 1
        if before == 0:
            return groups
        padded = ops.pad(groups, [(0, 0), (before, 0), (0, 0)])
        pieces = [padded[:, i : i - before or None] for i in range(before + 1)]
        return ops.concatenate(pieces, axis=-1)

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else MergeMask(self.strides)(mask)

    def compute_output_shape(self, inputs_shape):
        batch, length = inputs_shape[:2]
        if length is not None:
            length = num_chunks(length, self.strides)
        return (batch, length, self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "dtype": policy_for_config(self.dtype_policy, [self._projection]),
            "units": self.units,
        }
