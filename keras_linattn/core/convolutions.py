"""Depthwise convolutions along the sequence, or on the grid it stands for."""

import math

from keras import initializers
from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.masks import apply_mask


def depthwise_convolution(value, kernel, grid=None, documents=None):
    """Convolves each channel of each head with its own kernel.

    Zeros beyond the ends ("same" padding) and behind the mask are one thing,
    so that a padded sequence gives what the sequence alone gives. Along 1-D
    sequences S may be known only at run time.

    Args:
        value: tensor `[B, H, S, V]`, 0 where masked.
        kernel: tensor `[K, H, V]`, or `[K, K, H, V]` with a grid; K is odd,
            H and V may be 1 for a kernel that they share.
        grid: tuple `(rows, columns)` of the S positions, row by row. Defaults
            to `None`: a sequence.
        documents: `Documents` of a sequence, or `None`, its default: each row
            is one.

    Returns:
        Tensor `[B, H, S, V]`.

    Raises:
        ValueError: if S is known and is not `rows * columns`.
    """
    length = value.shape[2]
    if grid is not None and length not in (None, math.prod(grid)):
        raise ValueError(
            "The sequence must hold one position for each cell of the grid. "
            f"Received: grid={tuple(grid)}, {math.prod(grid)} cells, for a "
            f"length of {length}. Pass the `grid` of the input, or `None` "
            "for a sequence."
        )
    if documents is not None:
        return _convolve_documents(value, kernel, documents.query)
    return convolve_channels(value, kernel, grid)


def _convolve_documents(value, kernel, numbers):
    """A sum of shifted copies, each where it is of the same document."""
    length, half = ops.shape(value)[2], kernel.shape[0] // 2
    kernel = ops.expand_dims(kernel, -2)  # [K, H, 1, V]
    value = ops.pad(value, [(0, 0), (0, 0), (half, half), (0, 0)])
    padded = ops.pad(numbers, [(0, 0), (half, half)], constant_values=-1)
    output = 0
    for shift in range(kernel.shape[0]):
        there = slice(shift, shift + length)
        same = ops.equal(padded[:, there], numbers)
        output = output + apply_mask(value[:, :, there], same) * kernel[shift]
    return output


def add_kernel(layer, kernel_size, heads, dim, grid=None):
    """The weight `layer.add_weight` makes for `depthwise_convolution`.

    Args:
        layer: the `keras.layers.Layer` that shall own it.
        kernel_size: odd int > 0, K.
        heads: int, H, or 1 for a kernel that all heads share.
        dim: int, V, or 1.
        grid: tuple or `None`: 2-D or 1-D.

    Returns:
        Variable `[K, H, V]` or `[K, K, H, V]`, float32 in every policy.
    """
    sides = (kernel_size,) * (1 if grid is None else 2)
    return layer.add_weight(
        name="kernel",
        shape=(*sides, heads, dim),
        initializer=kernel_initializer(math.prod(sides)),
        autocast=False,
    )


def kernel_initializer(taps):
    """Uniform on +- 1 / sqrt(taps): `taps` entries meet in each output."""
    limit = 1 / math.sqrt(taps)
    return initializers.RandomUniform(-limit, limit)


def check_kernel(kernel_size, grid=None):
    """Raises a `ValueError` unless these describe a convolution, or none.

    Args:
        kernel_size: odd int > 0, or `None` for no convolution.
        grid: `None`, or two ints > 0.

    Returns:
        The grid, as a tuple or `None`.
    """
    odd = isinstance(kernel_size, int) and kernel_size > 0 and kernel_size % 2
    if kernel_size is not None and not odd:
        raise ValueError(
            "`kernel_size` must be a positive odd integer, so that the kernel "
            f"has a middle, or `None`. Received: kernel_size={kernel_size!r}."
        )
    if grid is None:
        return None
    sides = tuple(grid) if isinstance(grid, (list, tuple)) else ()
    if len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in sides):
        raise ValueError(
            "`grid` must be two positive integers (rows, columns), or `None` "
            f"for a sequence. Received: grid={grid!r}."
        )
    return sides


def check_convolution(kernel_size, grid=None):
    """`check_kernel`, where the grid is for the convolution alone.

    Raises a `ValueError` for a grid without a kernel too.
    """
    if kernel_size is None and grid is not None:
        raise ValueError(
            "`grid` is for the convolution of the values. Received: "
            f"grid={grid!r}, kernel_size=None. Leave one of them out."
        )
    return check_kernel(kernel_size, grid)


@backends.with_fast_forms
def convolve_channels(value, kernel, grid):
    """`depthwise_convolution` by the backend's own, channels as groups."""
    batch, heads, length, dim = ops.shape(value)
    sides = kernel.shape[:-2]
    kernel = ops.broadcast_to(kernel, (*sides, heads, dim))
    kernel = ops.reshape(kernel, (*sides, heads * dim, 1))
    sizes = (length,) if grid is None else grid
    value = ops.transpose(value, (0, 2, 1, 3))
    value = ops.reshape(value, (batch, *sizes, heads * dim))
    output = ops.depthwise_conv(
        value, kernel, padding="same", data_format="channels_last"
    )
    output = ops.reshape(output, (batch, length, heads, dim))
    return ops.transpose(output, (0, 2, 1, 3))
