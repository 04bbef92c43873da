"""Nystromformer: softmax attention through landmarks, by Nystrom's method.

With Q~ and K~ `[M, D]`, the means of M segments of the queries and keys,

    F = softmax(Q K~^T / sqrt D)    [T, M]
    A = softmax(Q~ K~^T / sqrt D)   [M, M]
    B = softmax(Q~ K^T / sqrt D)    [M, S]
    out = F (A^+ (B V))  (+ a depthwise convolution of V along the sequence)

A^+ comes from Z_(i+1) = Z_i (13 I - A Z_i (15 I - A Z_i (7 I - A Z_i))) / 4,
which converges to the pseudo-inverse with third order, from Z_0 = A^T /
(largest row sum * largest column sum); the row sums of A are 1.

Cost: O((T + S) M (D + V) + M^3) time; M is chosen, and does not grow with
the length. With M >= T = S the segments are single positions, and the output
tends to softmax attention as the iterations converge: on normal heads with
D = 16 and M = T = S = 64 the largest error of a head is about 3e-2 after 6
steps and 2e-3 after 10. In float32 rounding grows with the condition of A and
with the number of steps.
Source: Xiong, Zeng, Chakraborty, Tan, Fung, Li, Singh, "Nystromformer: a
Nystrom-based algorithm for approximating self-attention", AAAI 2021, arXiv
2102.03902, section 3 (algorithm 1; the iteration is Razavi et al., 2014).
Differs from the paper: segments are of visible positions and need not be of
equal size; the largest column sum is taken for each row of the batch and each
head, where the authors' code takes one for the whole batch, which makes a
sequence's output depend on its company; with M >= S there is no switch to
softmax attention; the convolution is off unless asked for, and keeps the
mechanism to self-attention.
"""

import dataclasses
import math
from typing import Any

from keras import ops

from keras_linattn.core.convolutions import add_kernel
from keras_linattn.core.convolutions import check_kernel
from keras_linattn.core.convolutions import depthwise_convolution
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import safe_divide
from keras_linattn.core.segments import check_landmarks
from keras_linattn.core.segments import segment_means
from keras_linattn.core.segments import softmax_over
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits


def pseudo_inverse(matrix, num_iterations=6):
    """A^+ `[..., N, M]` of A `[..., M, N]`, whose rows sum to 1 or to 0.

    Rows and columns of zeros, of empty segments, stay columns and rows of
    zeros in each iterate.
    """
    sums = ops.sum(matrix, axis=-2, keepdims=True)
    largest = ops.max(sums, axis=-1, keepdims=True)
    inverse = safe_divide(ops.swapaxes(matrix, -1, -2), largest)
    identity = ops.eye(matrix.shape[-2], dtype=matrix.dtype)
    for _ in range(num_iterations):
        product = matmul(matrix, inverse)
        inner = matmul(product, 7 * identity - product)
        inner = matmul(product, 15 * identity - inner)
        inverse = matmul(inverse, 13 * identity - inner) / 4
    return inverse


def scaled_scores(query, key):
    """Q K^T / sqrt D."""
    query = query / math.sqrt(query.shape[-1])
    return matmul(query, ops.swapaxes(key, -1, -2))


def attend(query, key, value, num_landmarks, num_iterations, masks):
    """F (A^+ (B V)); `masks` are those of the keys and of the queries."""
    key_mask, query_mask = masks
    queries, query_filled = segment_means(query, num_landmarks, query_mask)
    keys, key_filled = segment_means(key, num_landmarks, key_mask)
    core = softmax_over(scaled_scores(queries, keys), key_filled)
    core = apply_mask(core, query_filled)
    gathered = softmax_over(scaled_scores(queries, key), key_mask)
    summary = matmul(gathered, value)  # [B, H, M, V]
    summary = matmul(pseudo_inverse(core, num_iterations), summary)
    weights = softmax_over(scaled_scores(query, keys), key_filled)
    return matmul(weights, summary)


@register("nystromformer")
class Nystromformer(Mechanism):
    """Nystrom approximation of softmax attention.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        num_landmarks: int > 0, M. Cost grows linearly with it. Defaults to
            64.
        num_iterations: int > 0, iterations for the pseudo-inverse. More
            iterations are more exact, but lose digits in float32. Defaults to
            6.
        kernel_size: odd int > 0 or `None`, width of a depthwise convolution
            of the values, one kernel for each head, that is added to the
            output; the paper has 33. Defaults to `None`: no convolution.
        **kwargs: arguments of `keras.layers.Layer`.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> mechanism = mechanisms.get("nystromformer", num_landmarks=3)
    >>> tuple(mechanism(x, x, x).shape)
    (1, 2, 6, 4)

    Source: Xiong et al., 2021, arXiv 2102.03902.
    """

    traits = Traits(
        normalised=False,
        key_order_free=False,
        pools_queries=True,
        cost="(T + S) M (D + V) + M^3",
        state="M (D + V)",
        source="Xiong et al. 2021, arXiv 2102.03902",
    )
    head_axes = {"kernel": 1}

    def __init__(
        self,
        num_landmarks: int = 64,
        num_iterations: int = 6,
        kernel_size: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_landmarks(num_landmarks)
        check_kernel(kernel_size)
        if not isinstance(num_iterations, int) or num_iterations <= 0:
            raise ValueError(
                "`num_iterations` must be a positive integer. "
                f"Received: num_iterations={num_iterations!r}."
            )
        self.num_landmarks = num_landmarks
        self.num_iterations = num_iterations
        self.kernel_size = kernel_size
        if kernel_size is not None:
            self.traits = dataclasses.replace(self.traits, cross=False)

    def build(self, query_shape, key_shape, value_shape):
        if self.kernel_size is not None:
            self.kernel = add_kernel(self, self.kernel_size, value_shape[1], 1)

    def attend(
        self, query, key, value, *, key_mask, query_mask, causal, training
    ):
        output = attend(
            query,
            key,
            value,
            self.num_landmarks,
            self.num_iterations,
            (key_mask, query_mask),
        )
        if self.kernel_size is None:
            return output
        kernel = ops.cast(self.kernel, value.dtype)
        return output + depthwise_convolution(value, kernel)
