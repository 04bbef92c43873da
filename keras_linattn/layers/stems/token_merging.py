"""Shortens a sequence by projecting groups of neighbours to one token."""

from typing import Any

import keras

from keras_linattn.layers.stems._groups import check_factor
from keras_linattn.layers.stems._window_projection import WindowProjection


@keras.saving.register_keras_serializable("keras_linattn")
class TokenMerging(WindowProjection):
    """Projects each group of `factor` neighbouring tokens to one.

    The last group is filled with zeros, and hidden tokens count as zeros, so
    that padding changes nothing. A merged token is visible if one of its
    parts is.

    Args:
        factor: int > 0, tokens in a group.
        units: int > 0, features of a merged token.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: tensor `(B, T, F)`.
        mask: optional bool tensor `(B, T)`, `True` = visible.
        segment_ids: optional int tensor `(B, T)`, for rows that hold several
            documents, 0 = padding. Each document must begin at a multiple of
            `factor`: pad it to one. A group in which one begins is NaN. The ids
            of the outputs are `segment_ids[:, ::factor]`.

    Returns:
        Tensor `(B, ceil(T / factor), units)`, and its mask if there was one.

    Raises:
        ValueError: if `factor` is not a positive integer.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> layer = keras_linattn.layers.TokenMerging(factor=4, units=8)
    >>> tuple(layer(np.ones((2, 10, 16), "float32")).shape)
    (2, 3, 8)

    Source: the patch embedding of Dosovitskiy et al., 2021, arXiv 2010.11929,
    along one axis.
    """

    def __init__(self, factor: int, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        check_factor(factor)
        self._set_window(units, factor, factor)  # windows do not overlap
        self.factor = factor

    def get_config(self) -> dict:
        return {**super().get_config(), "factor": self.factor}
