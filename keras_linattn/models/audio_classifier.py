"""Classifier of raw waveforms."""

import math
from collections.abc import Callable
from typing import Any

import keras

from keras_linattn.layers import StridedConvolution
from keras_linattn.layers import WaveformMasking
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.mechanisms import Mechanism
from keras_linattn.models._base import Classifier
from keras_linattn.models._base import add_encoder
from keras_linattn.models._base import add_head
from keras_linattn.models._base import norm
from keras_linattn.models._base import shortened
from keras_linattn.models._base import stores_arguments


@keras.saving.register_keras_serializable("keras_linattn")
class AudioClassifier(Classifier):
    """Linear-attention encoder over raw samples, any length, no spectrogram.

    Strided convolutions make frames of the samples, one for each
    `total_stride` of them (the product of `strides`, 16 by default); the
    encoder attends over the frames, and their mean is classified.

    Zeros at the end of a waveform are padding and change nothing: pad a batch
    with them. Zeros in between are silence, which counts. So a recording that
    ends in exact zeros gives what it gives without them, and one of nothing
    but zeros what an empty one gives.

    Args:
        num_classes: int > 0.
        strides: tuple of ints > 0, of the convolutions, one for each. Defaults
            to `(8, 2)`: a frame for each 16 samples, 2 ms at 8 kHz.
        kernel_sizes: tuple of ints > 0, their windows, each a multiple of its
            stride. Defaults to `(32, 16)`: a frame sees 152 samples.
        hidden_dim: int > 0, F. Defaults to 64.
        num_layers: int > 0, encoder blocks. Defaults to 2.
        num_heads: int > 0. Defaults to 4.
        intermediate_dim: int > 0 or `None`, of the feedforward networks.
            Defaults to `None`: 2 * `hidden_dim`.
        dropout: float in [0, 1). Defaults to 0.1.
        activation: of the output, or `None` for logits. Defaults to
            `"softmax"`: probabilities.
        mechanism: name, dict, class or object, see `mechanisms.get`, or a
            list of them, one for each block; a shorter list repeats, and the
            last repetition may be cut. An object is shared by all of its
            blocks. Defaults to `"modified_linformer"`.
        sequence_length: int > 0 or `None`, samples of the longest input. Only
            mechanisms with the trait `needs_length` use it, such as
            `"linformer"`. Defaults to `None`: unknown.
        remat: bool, recompute the encoder blocks in the backward pass, see
            `LinearTransformerEncoder`. Defaults to `False`.
        dtype: dtype policy. Defaults to `None`: Keras' global policy.
        **kwargs: `name` and `trainable` of `keras.Model`.

    Call arguments:
        waveforms: float tensor `(B, T)` or `(B, T, 1)`, samples in [-1, 1]. The
            input is named `waveforms`. Keep to one of the two where
            TensorFlow compiles (`fit`, `predict`).

    Returns:
        float32 tensor `(B, num_classes)`.

    Raises:
        ValueError: if an argument is out of range, or if there are not as many
            strides as kernel sizes.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> model = keras_linattn.models.AudioClassifier(
    ...     num_classes=5, hidden_dim=16, num_layers=1)
    >>> tuple(model(np.zeros((2, 16384), "float32")).shape)
    (2, 5)
    >>> model.total_stride
    16

    Source: Baevski et al., 2020, arXiv 2006.11477 (convolutions over samples,
    then a transformer); Verma, 2020, arXiv 2101.10277 (the attention).
    """

    @stores_arguments
    def __init__(
        self,
        num_classes: int,
        strides: tuple[int, ...] = (8, 2),
        kernel_sizes: tuple[int, ...] = (32, 16),
        hidden_dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        intermediate_dim: int | None = None,
        dropout: float = 0.1,
        activation: str | Callable | None = "softmax",
        mechanism: str | dict | type | Mechanism | list = "modified_linformer",
        sequence_length: int | None = None,
        remat: bool = False,
        dtype: str | keras.DTypePolicy | None = None,
        **kwargs: Any,
    ):
        policy = keras.dtype_policies.get(dtype)
        waveforms = keras.Input((None,), dtype="float32", name="waveforms")
        x = _add_stem(waveforms, strides, kernel_sizes, hidden_dim, policy)
        block = {
            "num_heads": num_heads,
            "intermediate_dim": intermediate_dim,
            "dropout": dropout,
            "mechanism": mechanism,
            "remat": remat,
        }
        x = add_encoder(
            x,
            num_layers,
            block,
            policy,
            sequence_length=shortened(sequence_length, math.prod(strides)),
        )
        outputs = add_head(x, num_classes, dropout, activation, policy)
        super().__init__(inputs=waveforms, outputs=outputs, **kwargs)
        self.policy = policy

    @property
    def total_stride(self) -> int:
        """Samples for each frame: T samples make ceil(T / this) frames."""
        return math.prod(self.strides)


def _add_stem(waveforms, strides, kernel_sizes, hidden_dim, policy):
    """Samples `(B, T)` to frames `(B, ceil(T / total stride), F)`."""
    if len(strides) != len(kernel_sizes) or not strides:
        raise ValueError(
            "`strides` and `kernel_sizes` must hold one entry for each "
            f"convolution, at least one. Received: strides={strides!r}, "
            f"kernel_sizes={kernel_sizes!r}. Make both of one length."
        )
    # The samples are masked in float32: half precision has fewer zeros.
    x = WaveformMasking(dtype="float32", name="masking")(waveforms)
    for index, pair in enumerate(zip(kernel_sizes, strides)):
        x = _add_convolution(x, index, *pair, hidden_dim, policy)
    return x


def _add_convolution(x, index, kernel_size, strides, hidden_dim, policy):
    """A strided convolution, normalised: loud or soft, it is the same."""
    name = f"convolution_{index}"
    x = StridedConvolution(
        hidden_dim,
        kernel_size,
        strides,
        dtype=sublayer_policy(policy, name),
        name=name,
    )(x)
    x = norm(f"convolution_norm_{index}", policy)(x)
    name = f"convolution_gelu_{index}"
    return keras.layers.Activation("gelu", dtype=policy, name=name)(x)
