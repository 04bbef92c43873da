"""Strided convolution of a padded sequence, as one matrix product."""

from typing import Any

import keras

from keras_linattn.layers.stems._groups import check_factor
from keras_linattn.layers.stems._window_projection import WindowProjection


@keras.saving.register_keras_serializable("keras_linattn")
class StridedConvolution(WindowProjection):
    """Shortens a sequence with a strided convolution of overlapping windows.

    Output j sees the `kernel_size` positions up to `strides` * (j + 1), with
    zeros before the first and after the last. Masked positions count as zeros,
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
        segment_ids: optional int tensor `(B, T)`, for rows that hold several
            documents, 0 = padding. Each document must begin at a multiple of
            `strides`: pad it to one. An output in whose newest positions one
            begins is NaN. The ids of the outputs are
            `segment_ids[:, ::strides]`.

    Returns:
        Tensor `(B, ceil(T / strides), units)`, and its mask if there was one.

    Raises:
        ValueError: if `strides` is not a positive integer or `kernel_size` not
            a positive multiple of it.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> layer = keras_linattn.layers.StridedConvolution(8, 6, strides=3)
    >>> tuple(layer(np.ones((2, 10, 1), "float32")).shape)
    (2, 4, 8)

    Source: the encoder of Baevski et al., 2020, arXiv 2006.11477 (strided
    convolutions over the samples of a waveform).
    """

    def __init__(
        self, units: int, kernel_size: int, strides: int, **kwargs: Any
    ):
        super().__init__(**kwargs)
        check_factor(strides, "strides")
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
        self._set_window(units, kernel_size, strides)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "strides": self.strides,
        }
