"""Interactive multi-head attention: heads exchange their attention maps.

With Q~ and K~ `[L, D]`, the means of L segments of the queries and keys (or
of the blocks of a grid),

    A_Q = softmax(Q K~^T / sqrt D)  [H, T, L]
    A_K = softmax(Q~ K^T / sqrt D)  [H, L, S]
    A'_h = sum_g M_hg A_g           for each of the two, M learned, [H, H]
    out = A'_Q (A'_K V)

Cost: O((T + S) L (D + V + H)) time for each head; 2 H^2 parameters; L is
chosen, and does not grow with the length.
Source: Kang, Yang, Ryu, "Interactive multi-head self-attention with linear
complexity", 2024, arXiv 2402.17507.
Differs from the paper: we hold its abstract and a summary, which give the
decomposition into a query-less and a key-less part, the interaction of heads
on both, the product from right to left and the cost O(2 N L H (D + H)). Ours
are: landmarks by segment or block means, one linear map after each softmax,
which starts as the identity, and no activation or normalisation around it.
"""

import dataclasses
import math
from typing import Any

import keras
from keras import ops

from keras_linattn.core.masks import combine_masks
from keras_linattn.core.numerics import matmul
from keras_linattn.core.segments import check_landmarks
from keras_linattn.core.segments import is_square
from keras_linattn.core.segments import landmark_means
from keras_linattn.core.segments import softmax_over
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits


def attention_map(query, key, visible=None):
    """softmax(Q K^T / sqrt D) over the visible keys `(B, S)`."""
    query = query / math.sqrt(query.shape[-1])
    scores = matmul(query, ops.swapaxes(key, -1, -2))
    return softmax_over(scores, visible)


def mix_heads(maps, mixing):
    """sum over g of `mixing[h, g] * maps[:, g]`."""
    batch, heads, rows, columns = ops.shape(maps)
    flat = ops.reshape(maps, (batch, heads, rows * columns))
    mixed = matmul(mixing, flat)
    return ops.reshape(mixed, (batch, heads, rows, columns))


def attend(query, key, value, landmarks, mixings, key_mask=None, filled=None):
    """A'_Q (A'_K V), from pairs of landmarks (Q~, K~) and of mixing maps."""
    queries, keys = landmarks
    to_landmarks = attention_map(query, keys, filled)
    from_keys = attention_map(queries, key, key_mask)
    summary = matmul(mix_heads(from_keys, mixings[1]), value)
    return matmul(mix_heads(to_landmarks, mixings[0]), summary)


@register("imhsa")
class InteractiveMultiHead(Mechanism):
    """Decomposed attention whose maps are mixed over the heads.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        num_landmarks: int > 0, L. Cost grows linearly with it. Defaults to
            49.
        grid: tuple `(rows, columns)`, for positions that are the patches of
            an image, row by row: landmarks are means over blocks, and
            `num_landmarks` must be a square. Defaults to `None`: a sequence.
        **kwargs: arguments of `keras.layers.Layer`.

    Raises:
        ValueError: if an argument is out of range, or if a length is not
            that of the grid.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> mechanism = mechanisms.get("imhsa", num_landmarks=3)
    >>> tuple(mechanism(x, x, x).shape)
    (1, 2, 6, 4)

    Source: Kang, Yang, Ryu, 2024, arXiv 2402.17507.
    """

    traits = Traits(
        normalised=False,
        key_order_free=False,
        pools_queries=True,
        grid=True,
        cost="(T + S) L (D + V + H)",
        state="L (D + V)",
        source="Kang, Yang, Ryu 2024, arXiv 2402.17507",
    )

    def __init__(
        self,
        num_landmarks: int = 49,
        grid: tuple[int, int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_landmarks = num_landmarks
        self.grid = check_landmarks(num_landmarks, grid)
        if not is_square(num_landmarks):
            self.traits = dataclasses.replace(self.traits, grid=False)

    def build(self, query_shape, key_shape, value_shape):
        self.query_mixing = self._mixing("query_mixing", query_shape[1])
        self.key_mixing = self._mixing("key_mixing", query_shape[1])

    def _mixing(self, name, heads):
        return self.add_weight(
            name=name,
            shape=(heads, heads),
            initializer=keras.initializers.Identity(),
            autocast=False,
        )

    def attend(
        self, query, key, value, *, key_mask, query_mask, causal, training
    ):
        queries, query_filled = landmark_means(
            query, self.num_landmarks, query_mask, self.grid
        )
        keys, key_filled = landmark_means(
            key, self.num_landmarks, key_mask, self.grid
        )
        mixings = [
            ops.cast(mixing, query.dtype)
            for mixing in (self.query_mixing, self.key_mixing)
        ]
        # Landmark l is one step of the path: both its halves must exist.
        filled = combine_masks(query_filled, key_filled)
        return attend(
            query, key, value, (queries, keys), mixings, key_mask, filled
        )
