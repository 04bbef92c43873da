"""Landmarks: means over segments of the visible positions."""

import math

from keras import ops

from keras_linattn.core.convolutions import check_kernel
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.masks import expand_to_rank
from keras_linattn.core.numerics import masked_softmax
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import maximum
from keras_linattn.core.numerics import mean


def landmark_means(x, num_landmarks, mask=None, grid=None):
    """`segment_means` of a sequence, or `grid_means` where there is a grid.

    Args:
        x: tensor `[B, H, S, D]`.
        num_landmarks: int > 0, M; a square number if `grid` is given.
        mask: bool tensor `(B, S)`, or `None`.
        grid: tuple `(rows, columns)` or `None`.

    Returns:
        As `segment_means`.
    """
    if grid is None:
        return segment_means(x, num_landmarks, mask)
    return grid_means(x, math.isqrt(num_landmarks), grid, mask)


def segment_means(x, num_segments, mask=None):
    """Means over contiguous segments of the visible positions.

    The visible position of rank r among n goes to segment floor(r M / n), so
    that padding on either side changes nothing and no length need divide.
    With n < M some segments are empty; each of the n others holds one
    position.

    Args:
        x: tensor `[B, H, S, D]`.
        num_segments: int > 0, M. S M must stay below 2^31.
        mask: bool tensor `(B, S)`, `True` = visible. Defaults to `None`: all
            are.

    Returns:
        The means `[B, H, M, D]`, 0 for an empty segment, and which segments
        are not empty: bool `(B, M)`, `(1, M)` without a mask, or `None` where
        the static shape says that none is empty.
    """
    length = ops.shape(x)[2]
    known = mask is None and isinstance(length, int)
    if known and length % num_segments == 0:
        return _equal_means(x, num_segments), None
    index = segment_index(length, num_segments, mask)
    means, filled = _indexed_means(x, index, num_segments, mask)
    return means, None if known and length >= num_segments else filled


def segment_index(length, num_segments, mask=None):
    """floor(r M / n) for the visible position of rank r among n.

    Args:
        length: int or scalar tensor, S.
        num_segments: int > 0, M.
        mask: bool tensor `(B, S)`, or `None`.

    Returns:
        Tensor of int32, `(B, S)`, or `(1, S)` without a mask; what it
        says of hidden positions means nothing.
    """
    if mask is None:
        rank = ops.expand_dims(ops.arange(length, dtype="int32"), 0)
        count = length
    else:
        visible = ops.cast(mask, "int32")
        rank = ops.cumsum(visible, axis=1) - 1
        count = ops.maximum(ops.sum(visible, axis=1, keepdims=True), 1)
    return ops.floor_divide(rank * num_segments, count)


def grid_means(x, side, grid, mask=None):
    """Means over `side` x `side` blocks of a grid of positions.

    Args:
        x: tensor `[B, H, S, D]`, S = rows * columns, row by row.
        side: int > 0; M = side * side blocks.
        grid: tuple `(rows, columns)`.
        mask: bool tensor `(B, S)`, `True` = visible. Defaults to `None`.

    Returns:
        As `segment_means`; an empty block is one without visible positions.

    Raises:
        ValueError: if the length is known and is not rows * columns.
    """
    rows, columns = grid
    length = ops.shape(x)[2]
    if isinstance(length, int) and length != rows * columns:
        raise ValueError(
            "The length must be that of the grid, rows * columns. Received: "
            f"grid={tuple(grid)}, length {length}. Pass the grid of the "
            "input, or `grid=None` to pool along the sequence."
        )
    position = ops.arange(rows * columns, dtype="int32")
    row = ops.floor_divide(position, columns)
    column = position - row * columns
    index = ops.floor_divide(row * side, rows) * side
    index = index + ops.floor_divide(column * side, columns)
    index = ops.expand_dims(index, 0)
    means, filled = _indexed_means(x, index, side * side, mask)
    full = mask is None and rows >= side and columns >= side
    return means, None if full else filled


def softmax_over(scores, mask=None):
    """Softmax over the last axis, among what a mask `(B, S)` shows there.

    Args:
        scores: tensor `[B, H, T, S]`; S may count positions or landmarks.
        mask: bool tensor `(B, S)`, or `None`.

    Returns:
        Tensor of the shape of `scores`; a row that sees nothing is 0.
    """
    return masked_softmax(
        scores, None if mask is None else expand_to_rank(mask, 4, 3)
    )


def check_landmarks(num_landmarks, grid=None):
    """Raises a `ValueError` if the arguments of a pooling do not fit.

    Args:
        num_landmarks: must be an int > 0, and a square if `grid` is given.
        grid: must be `None` or two ints > 0.

    Returns:
        `grid` as a tuple, or `None`.
    """
    if not isinstance(num_landmarks, int) or num_landmarks <= 0:
        raise ValueError(
            "`num_landmarks` must be a positive integer. "
            f"Received: num_landmarks={num_landmarks!r}."
        )
    grid = check_kernel(None, grid)
    if grid is not None and not is_square(num_landmarks):
        raise ValueError(
            "With `grid`, `num_landmarks` must be a square number: the grid is "
            "pooled to as many rows as columns. Received: num_landmarks="
            f"{num_landmarks}, grid={grid}. Pass 9, 16, 25, 36, 49 ..."
        )
    return grid


def is_square(number):
    """Whether an int >= 0 is the square of another."""
    return math.isqrt(number) ** 2 == number


def _equal_means(x, num_segments):
    """Segments of one size are a reshape, much cheaper than a product."""
    batch, heads, length, dim = ops.shape(x)
    size = length // num_segments
    x = ops.reshape(x, (batch, heads, num_segments, size, dim))
    return mean(x, axis=3)


def _indexed_means(x, index, num_segments, mask):
    """Means by the segment index `(B or 1, S)`, and the filled segments."""
    segment = ops.reshape(ops.arange(num_segments, dtype="int32"), (1, -1, 1))
    member = ops.equal(ops.expand_dims(index, 1), segment)  # [B, M, S]
    if mask is not None:
        visible = ops.expand_dims(ops.cast(mask, "bool"), 1)
        member = ops.logical_and(member, visible)
    member = ops.cast(member, x.dtype)
    count = ops.sum(member, axis=-1, keepdims=True)  # [B, M, 1]
    filled = ops.squeeze(ops.greater(count, 0), -1)
    # Divided before the product: a sum over many positions loses digits.
    weights = ops.expand_dims(member / maximum(count, 1), 1)
    return matmul(weights, apply_mask(x, mask)), filled
