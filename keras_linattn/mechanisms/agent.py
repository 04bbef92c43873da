"""Agent attention: a few agents gather from the keys and tell the queries.

With agents P `[M, D]`, the means of M segments of the queries (or of the
blocks of a grid),

    out = softmax(Q P^T / sqrt D) (softmax(P K^T / sqrt D) V) + DWC(V)

DWC is a depthwise convolution of the values, kernel 3 (3 x 3 on a grid).

Cost: O((T + S) M (D + V)) time; M is chosen, and does not grow with the
length.
Source: Han, Ye, Han, Xia, Pan, Wan, Song, Huang, "Agent attention: on the
integration of softmax and linear attention", ECCV 2024, arXiv 2312.08874,
section 3 (agent attention, and the depthwise convolution that restores the
diversity of features).
Differs from the paper: no agent biases, which are tables for one size of
image; no bias in the convolution, so that a row that sees no key is 0; the
blocks of a grid whose sides the number of agents does not divide are disjoint,
where the authors' adaptive pooling lets them overlap; without a grid, agents
and convolution run along the sequence.
"""

import dataclasses
import math
from typing import Any

from keras import ops

from keras_linattn.core.convolutions import add_kernel
from keras_linattn.core.convolutions import check_kernel
from keras_linattn.core.convolutions import depthwise_convolution
from keras_linattn.core.numerics import matmul
from keras_linattn.core.segments import check_landmarks
from keras_linattn.core.segments import is_square
from keras_linattn.core.segments import landmark_means
from keras_linattn.core.segments import softmax_over
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits


def attend(query, key, value, agents, key_mask=None, filled=None):
    """Both softmaxes; `filled` `(B, M)` says which agents there are."""
    agents = agents / math.sqrt(query.shape[-1])
    scores = matmul(agents, ops.swapaxes(key, -1, -2))
    gathered = matmul(softmax_over(scores, key_mask), value)
    scores = matmul(query, ops.swapaxes(agents, -1, -2))
    return matmul(softmax_over(scores, filled), gathered)


@register("agent")
class Agent(Mechanism):
    """Attention through agents, which are pooled queries.

    Call arguments, result and errors: see `Mechanism`. With
    `kernel_size=None` it is cross-attention too, its weights sum to 1, and
    the order of the keys does not matter: the convolution is what ties values
    to their places.

    Args:
        num_landmarks: int > 0, M, the number of agents. Cost grows linearly
            with it. Defaults to 49.
        kernel_size: odd int > 0, width of the depthwise convolution of the
            values that is added to the output, or `None` for no convolution.
            Defaults to 3.
        grid: tuple `(rows, columns)`, for queries that are the patches of an
            image, row by row: agents are means over blocks, and the
            convolution is in two dimensions. `num_landmarks` must be a
            square. Defaults to `None`: a sequence.
        **kwargs: arguments of `keras.layers.Layer`.

    Raises:
        ValueError: if an argument is out of range, or if the length is not
            that of the grid.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> mechanism = mechanisms.get("agent", num_landmarks=3)
    >>> tuple(mechanism(x, x, x).shape)
    (1, 2, 6, 4)

    Source: Han et al., 2024, arXiv 2312.08874.
    """

    traits = Traits(
        cross=False,
        normalised=False,
        explicit=False,
        key_order_free=False,
        pools_queries=True,
        grid=True,
        cost="(T + S) M (D + V)",
        state="M V",
        source="Han et al. 2024, arXiv 2312.08874",
    )

    def __init__(
        self,
        num_landmarks: int = 49,
        kernel_size: int | None = 3,
        grid: tuple[int, int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_landmarks = num_landmarks
        self.kernel_size = kernel_size
        self.grid = check_kernel(kernel_size, grid)
        check_landmarks(num_landmarks, grid)
        if not is_square(num_landmarks):
            self.traits = dataclasses.replace(self.traits, grid=False)
        if kernel_size is None:
            self.traits = dataclasses.replace(
                self.traits,
                cross=True,
                normalised=True,
                explicit=True,
                key_order_free=True,
            )

    def build(self, query_shape, key_shape, value_shape):
        if self.kernel_size is not None:
            self.kernel = add_kernel(
                self,
                self.kernel_size,
                value_shape[1],
                value_shape[3],
                self.grid,
            )

    def attend(
        self, query, key, value, *, key_mask, query_mask, causal, training
    ):
        agents, filled = landmark_means(
            query, self.num_landmarks, query_mask, self.grid
        )
        output = attend(query, key, value, agents, key_mask, filled)
        if self.kernel_size is None:
            return output
        kernel = ops.cast(self.kernel, value.dtype)
        return output + depthwise_convolution(value, kernel, self.grid)
