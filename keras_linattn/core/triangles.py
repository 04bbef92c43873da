"""Inverses of unit lower triangular matrices, block by block."""

import math

from keras import ops

from keras_linattn.core.delta import inverse_unit_lower
from keras_linattn.core.numerics import matmul

# Inverted as a whole: of smaller blocks there are too many.
BLOCK = 16


def power_of_two(size):
    """The least power of 2 that is not below `size`, an int > 0."""
    return 1 << (size - 1).bit_length()


def halves(x, count, block):
    """Both halves of `count` blocks of rows, `[count, block, anything]` each.

    Args:
        x: tensor `[..., anything]` of `count * 2 * block` rows.
        count: int or scalar tensor.
        block: int.
    """
    x = ops.reshape(x, (count, 2, block, x.shape[-1]))
    return ops.unstack(x, 2, axis=1)


def join_halves(first, second, corner):
    """The lower triangular blocks `[first 0; corner second]`."""
    upper = ops.concatenate([first, ops.zeros_like(first)], axis=-1)
    lower = ops.concatenate([corner, second], axis=-1)
    return ops.concatenate([upper, lower], axis=1)


def inverse_in_blocks(lower):
    """`inverse_unit_lower`, with products no larger than the blocks.

    The inverse of [A 0; B D] is [A^-1 0; -D^-1 B A^-1 D^-1].

    Args:
        lower: tensor `[..., C, C]`, C static.
    """
    leading, length = ops.shape(lower)[:-2], lower.shape[-1]
    size = power_of_two(length)
    if size <= BLOCK:
        return inverse_unit_lower(lower)
    count, missing = math.prod(leading), size - length
    lower = ops.reshape(lower, (count, length, length))
    if missing:
        lower = ops.pad(lower, [(0, 0), (0, missing), (0, missing)])
    inverse = inverse_unit_lower(_diagonal_blocks(lower, BLOCK))
    block = BLOCK
    while block < size:
        corner = _diagonal_blocks(lower, 2 * block)[:, block:, :block]
        pairs = count * size // (2 * block)
        first, second = halves(inverse, pairs, block)
        corner = matmul(matmul(second, corner), first)
        inverse = join_halves(first, second, -corner)
        block *= 2
    return ops.reshape(inverse[:, :length, :length], (*leading, length, length))


def _diagonal_blocks(x, block):
    """`[L, C, C]` to `[L C / block, block, block]`."""
    count = x.shape[-1] // block
    if count == 1:
        return x
    leading = ops.shape(x)[0]
    x = ops.reshape(x, (leading, count, block, count, block))
    # Unstacked first: the gradient of a slice fills what it left out with 0.
    rows = ops.unstack(x, count, axis=1)
    blocks = [row[:, :, place] for place, row in enumerate(rows)]
    return ops.reshape(
        ops.stack(blocks, axis=1), (leading * count, block, block)
    )
