"""Vision transformer with linear attention."""

from collections.abc import Callable
from typing import Any

import keras

from keras_linattn.layers import PatchEmbedding
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.mechanisms import Mechanism
from keras_linattn.models._base import Classifier
from keras_linattn.models._base import add_encoder
from keras_linattn.models._base import add_head
from keras_linattn.models._base import stores_arguments


@keras.saving.register_keras_serializable("keras_linattn")
class VisionTransformer(Classifier):
    """Image classifier: a linear-attention encoder over patches of the image.

    Args:
        num_classes: int > 0.
        image_shape: tuple `(height, width, channels)`. Defaults to
            `(28, 28, 1)`.
        patch_size: int > 0 or pair, in pixels; 1 makes a sequence of pixels.
            Defaults to 4.
        hidden_dim: int > 0, F. Defaults to 64.
        num_layers: int > 0, encoder blocks. Defaults to 4.
        num_heads: int > 0. Defaults to 4.
        intermediate_dim: int > 0 or `None`, of the feedforward networks.
            Defaults to `None`: 2 * `hidden_dim`.
        dropout: float in [0, 1). Defaults to 0.
        activation: activation of the output, or `None` for logits. Defaults
            to `"softmax"`: probabilities.
        mechanism: name, dict, class or object, see `mechanisms.get`, or a
            list of them, one for each block; a shorter list repeats, and the
            last repetition may be cut. An object is shared by all of its
            blocks. Mechanisms with the trait `grid` get the grid of
            patches, those with the trait `needs_length` the number of patches.
            Defaults to `"modified_linformer"`.
        stem_filters: tuple of ints > 0, the number of filters in each stage of
            convolutions before the patches. A stage is two convolutions of
            3 x 3; the second has a stride of 2, so a patch covers twice as many
            pixels per side. Defaults to `()`: no convolutions.
        remat: bool, recompute the encoder blocks in the backward pass, see
            `LinearTransformerEncoder`. Defaults to `False`.
        dtype: dtype policy. Defaults to `None`: Keras' global policy.
        **kwargs: `name` and `trainable` of `keras.Model`.

    Call arguments:
        images: float tensor `(B, height, width, channels)`, best in [0, 1].
            The input is named `images`. An export also has the signature
            `serve_pixels`, whose input `pixels` is uint8 of the same shape. It
            divides the pixels by 255.

    Returns:
        float32 tensor `(B, num_classes)`.

    Raises:
        ValueError: if an argument is out of range, or if the images, as the
            stem returns them, are not a multiple of the patch size.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> model = keras_linattn.models.VisionTransformer(
    ...     num_classes=10, hidden_dim=16, num_layers=1)
    >>> tuple(model(np.zeros((2, 28, 28, 1), "float32")).shape)
    (2, 10)

    Source: Dosovitskiy et al., 2021, arXiv 2010.11929 (with the mean in place
    of the class token); Xiao et al., 2021, arXiv 2106.14881 (the stem); Verma,
    2020, arXiv 2101.10277 (the attention).
    """

    @stores_arguments
    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int] = (28, 28, 1),
        patch_size: int | tuple[int, int] = 4,
        hidden_dim: int = 64,
        num_layers: int = 4,
        num_heads: int = 4,
        intermediate_dim: int | None = None,
        dropout: float = 0.0,
        activation: str | Callable | None = "softmax",
        mechanism: str | dict | type | Mechanism | list = "modified_linformer",
        stem_filters: tuple[int, ...] = (),
        remat: bool = False,
        dtype: str | keras.DTypePolicy | None = None,
        **kwargs: Any,
    ):
        policy = keras.dtype_policies.get(dtype)
        images = keras.Input(tuple(image_shape), name="images")
        x = _add_stem(images, stem_filters, policy)
        patches = PatchEmbedding(
            patch_size,
            hidden_dim,
            dtype=sublayer_policy(policy, "patches"),
            name="patches",
        )
        rows, columns = patches.grid(x.shape)
        block = {
            "num_heads": num_heads,
            "intermediate_dim": intermediate_dim,
            "dropout": dropout,
            "mechanism": mechanism,
            "remat": remat,
        }
        x = add_encoder(
            patches(x),
            num_layers,
            block,
            policy,
            sequence_length=rows * columns,
            grid=(rows, columns),
        )
        outputs = add_head(x, num_classes, dropout, activation, policy)
        super().__init__(inputs=images, outputs=outputs, **kwargs)
        self.policy = policy

    def serving_preprocessors(self) -> dict:
        """Returns the signature `serve_pixels`, which takes uint8 pixels.

        `export_saved_model` adds it to the SavedModel.
        """
        pixels = keras.InputSpec(
            shape=(None, *self.image_shape), dtype="uint8", name="pixels"
        )
        return {"serve_pixels": (pixels, _scaled)}


def _add_stem(x, filters, policy):
    """Stages of two convolutions, each of which halves the image's sides."""
    for stage, size in enumerate(filters):
        for strides in (1, 2):
            name = f"stem_{stage}_{strides}"
            x = keras.layers.Conv2D(
                size,
                kernel_size=3,
                strides=strides,
                padding="same",
                activation="gelu",
                data_format="channels_last",
                dtype=sublayer_policy(policy, name),
                name=name,
            )(x)
    return x


def _scaled(pixels):
    """TensorFlow uint8 to float32 in [0, 1]."""
    import tensorflow as tf

    return tf.cast(pixels, tf.float32) / 255
