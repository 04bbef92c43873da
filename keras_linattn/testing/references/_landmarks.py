"""Landmarks one position at a time, as the references use them."""

import math

import numpy as np


def landmark_means(x, count, mask, grid=None):
    """Means `[B, H, M, D]` of the visible positions, and which exist `(B, M)`.

    The visible position of rank r among n belongs to segment floor(r M / n);
    on a grid, a position belongs to a block by its row and its column.
    """
    batch, heads, _, dim = x.shape
    means = np.zeros((batch, heads, count, dim))
    exist = np.zeros((batch, count), bool)
    for row in range(batch):
        visible = np.flatnonzero(mask[row])
        members = [[] for _ in range(count)]
        for rank, position in enumerate(visible):
            segment = rank * count // len(visible)
            if grid is not None:
                segment = _block(position, math.isqrt(count), *grid)
            members[segment].append(position)
        for segment, positions in enumerate(members):
            if positions:
                exist[row, segment] = True
                means[row, :, segment] = x[row][:, positions].mean(axis=1)
    return means, exist


def convolve(value, kernel, grid=None):
    """Depthwise convolution of `[B, H, S, V]`, zeros beyond the ends.

    `kernel` is `[K, H, V]`, or `[K, K, H, V]` on a grid.
    """
    rows, columns = (1, value.shape[2]) if grid is None else grid
    kernel = kernel[None] if grid is None else kernel
    output = np.zeros_like(value)
    for row, column, down, right in np.ndindex(
        rows, columns, *kernel.shape[:2]
    ):
        there = (
            row + down - kernel.shape[0] // 2,
            column + right - kernel.shape[1] // 2,
        )
        if 0 <= there[0] < rows and 0 <= there[1] < columns:
            output[:, :, row * columns + column] += (
                kernel[down, right] * value[:, :, there[0] * columns + there[1]]
            )
    return output


def _block(position, side, rows, columns):
    row, column = divmod(position, columns)
    return (row * side // rows) * side + column * side // columns
