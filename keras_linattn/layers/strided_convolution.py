"""Strided convolution of a padded sequence, as one matrix product."""

import keras
from keras import ops

from keras_linattn.core.chunks import num_chunks
from keras_linattn.core.masks import hide
from keras_linattn.layers._sublayers import policy_for_config
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.layers.token_merging import MergeMask
from keras_linattn.layers.token_merging import group


@keras.saving.register_keras_serializable("keras_linattn")
class StridedConvolution(keras.layers.Layer):
    """Shortens a sequence by windows that overlap: a convolution with stride.

    Output j sees the `kernel_size` positions up to `strides` * (j + 1), with
    zeros before the first and after the last. Hidden positions count as zeros,
    so that padding changes nothing, and an output is visible if one of its
    newest `strides` positions is. With `kernel_size` equal to `strides` it is
    `TokenMerging`.

    Args:
        units: int > 0, features of the output.
        kernel_size: int > 0, positions in a window; a multiple of `strides`.
        strides: int > 0, positions from one window to the next.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(B, T, F)`.
        mask: optional bool tensor `(B, T)`, `True` = visible.

    Returns:
        Tensor `(B, ceil(T / strides), units)`, and its mask if there was one.

    Raises:
        ValueError: if `strides` is not a positive integer or `kernel_size` not
            a positive multiple of it.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> layer = keras_linattn.StridedConvolution(8, kernel_size=6, strides=3)
    >>> tuple(layer(np.ones((2, 10, 1), "float32")).shape)
    (2, 4, 8)

    Source: the encoder of Baevski et al., 2020, arXiv 2006.11477 (strided
    convolutions over the samples of a waveform).
    """

    def __init__(self, units, kernel_size, strides, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(strides, int) or strides < 1:
            raise ValueError(
                "`strides` must be a positive integer. "
                f"Received: strides={strides!r}."
            )
        if (
            not isinstance(kernel_size, int)
            or kernel_size < 1
            or kernel_size % strides
        ):
            raise ValueError(
                "`kernel_size` must be a positive multiple of `strides`. "
                f"Received: kernel_size={kernel_size!r}, strides={strides}. "
                f"Take {strides} or {2 * strides}, for example."
            )
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
        groups = group(hide(inputs, mask), self.strides)
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
            "kernel_size": self.kernel_size,
            "strides": self.strides,
        }
