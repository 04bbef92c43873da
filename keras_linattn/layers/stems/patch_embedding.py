"""Images to sequences of patches."""

import math
from typing import Any

import keras
from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.layers._base_layer import BaseLayer
from keras_linattn.layers._base_layer import makes_sublayers


@keras.saving.register_keras_serializable("keras_linattn")
class PatchEmbedding(BaseLayer):
    """Cuts images into patches, projects each, and adds learned positions.

    Args:
        patch_size: int > 0 or pair of them, height and width in pixels. 1
            makes a sequence of pixels.
        embed_dim: int > 0, F, features of each patch.
        use_positions: bool, add a learned embedding for each patch position,
            which fixes the image's size. Defaults to `True`.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        images: float tensor `(B, height, width, channels)`.

    Returns:
        Tensor `(B, T, F)` with T = (height / patch) * (width / patch), rows of
        the image one after the other.

    Raises:
        ValueError: if the images' size is unknown or not a multiple of
            `patch_size`.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> layer = keras_linattn.layers.PatchEmbedding(patch_size=4, embed_dim=16)
    >>> tuple(layer(np.ones((2, 28, 28, 1), "float32")).shape)
    (2, 49, 16)

    Source: Dosovitskiy et al., 2021, arXiv 2010.11929, equation 1 (without
    the class token).
    """

    def __init__(
        self,
        patch_size: int | tuple[int, int],
        embed_dim: int,
        use_positions: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        pair = (patch_size,) * 2 if isinstance(patch_size, int) else patch_size
        if len(pair) != 2 or not all(
            isinstance(p, int) and p > 0 for p in pair
        ):
            raise ValueError(
                "`patch_size` must be a positive integer or a pair of them. "
                f"Received: patch_size={patch_size!r}."
            )
        self.patch_size = tuple(pair)
        self.embed_dim = embed_dim
        self.use_positions = use_positions

    @makes_sublayers
    def build(self, images_shape):
        grid = self.grid(images_shape)
        self._projection = keras.layers.Conv2D(
            self.embed_dim,
            self.patch_size,
            strides=self.patch_size,
            data_format="channels_last",
            dtype=self.dtype_policy,
            name="projection",
        )
        self._projection.build(images_shape)
        if self.use_positions:
            self.positions = self.add_weight(
                name="positions",
                shape=(grid[0] * grid[1], self.embed_dim),
                initializer=keras.initializers.RandomNormal(stddev=0.02),
            )

    def grid(self, images_shape: tuple) -> tuple[int, int]:
        """Patches along height and width, as a pair of ints."""
        sizes = tuple(images_shape[1:3])
        if (
            len(images_shape) != 4
            or None in sizes
            or any(s % p for s, p in zip(sizes, self.patch_size))
        ):
            raise ValueError(
                "Images must be (batch, height, width, channels), of known "
                "height and width that are multiples of the patch size "
                f"{self.patch_size}. Received: shape {tuple(images_shape)}. "
                "Crop or resize them, for example with "
                "`keras.layers.Resizing`."
            )
        rows, columns = (s // p for s, p in zip(sizes, self.patch_size))
        return rows, columns

    def call(self, images: Tensor) -> Tensor:
        self._check_size(images.shape)
        x = self._projection(images)
        shape = ops.shape(x)
        length = shape[1] * shape[2]
        if self.use_positions:  # else one patch could broadcast to many
            length = self.positions.shape[0]
        x = ops.reshape(x, (shape[0], length, shape[3]))
        if self.use_positions:
            x = x + ops.cast(self.positions, x.dtype)
        return x

    def _check_size(self, images_shape):
        """Static check that there is a position for each patch."""
        if None in images_shape[1:3] or not self.use_positions:
            return
        count = math.prod(self.grid(images_shape))
        if self.built and count != self.positions.shape[0]:
            raise ValueError(
                "Positions are for images of the size that the layer was built "
                f"with, of {self.positions.shape[0]} patches. Received: shape "
                f"{tuple(images_shape)}, {count} patches. Resize the images, "
                "or pass `use_positions=False`."
            )

    def compute_output_shape(self, images_shape):
        self._check_size(images_shape)
        rows, columns = self.grid(images_shape)
        return (images_shape[0], rows * columns, self.embed_dim)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "patch_size": self.patch_size,
            "embed_dim": self.embed_dim,
            "use_positions": self.use_positions,
        }
