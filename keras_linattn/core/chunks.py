"""Chunk arithmetic that survives a length known only at run time."""

from keras import ops


def num_chunks(length, size):
    """How many chunks of `size` cover `length` positions."""
    return (length + size - 1) // size


def pad_to_chunks(x, size, axis):
    """Pads `axis` with zeros at its end to a multiple of `size`.

    Args:
        x: tensor.
        size: int > 0, chunk length.
        axis: int >= 0.

    Returns:
        Tensor whose `axis` has `num_chunks(length, size) * size` entries.
    """
    length = ops.shape(x)[axis]
    # (-length) % size is the same number, but JAX cannot export it.
    missing = num_chunks(length, size) * size - length
    return ops.pad(
        x, [(0, missing if a == axis else 0) for a in range(len(x.shape))]
    )


def split_chunks(x, size, axis=2):
    """Cuts `axis` into chunks, padding the last one with zeros.

    Args:
        x: tensor `[B, H, T, D]`.
        size: int > 0, C.
        axis: int >= 0, the axis of T.

    Returns:
        Tensor `[B, H, N, C, D]` with N = `num_chunks(T, C)`.
    """
    shape = ops.shape(x)
    count = num_chunks(shape[axis], size)
    x = pad_to_chunks(x, size, axis)
    return ops.reshape(x, (*shape[:axis], count, size, *shape[axis + 1 :]))


def join_chunks(x, length, axis=2):
    """The inverse of `split_chunks`: joins the chunks and drops the padding.

    Args:
        x: tensor `[B, H, N, C, D]`.
        length: int or scalar tensor, T.
        axis: int >= 0, the axis of N.

    Returns:
        Tensor `[B, H, T, D]`.
    """
    shape = ops.shape(x)
    merged = (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
    index = [slice(None)] * axis + [slice(0, length)]
    return ops.reshape(x, merged)[tuple(index)]
