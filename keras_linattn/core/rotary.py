"""Rotary positions: features turn, pair by pair, with the place they have.

Features i and i + D / 2 of a head are a point of the plane; at position p it
is turned by the angle p w_i, w_i = max_wavelength^(-2 i / D). The product of a
query and a key then depends on the distance of their positions only.

Source: Su et al., 2021, arXiv 2104.09864, section 3.2; the pairs are those of
`keras_hub.layers.RotaryEmbedding`.
"""

from keras import ops

from keras_linattn.core.boundaries import numbers_and_mask
from keras_linattn.core.documents import first_places
from keras_linattn.core.lengths import is_empty
from keras_linattn.core.numerics import accumulation_dtype


def count_positions(x, mask=None, segment_ids=None, start=None):
    """Counts the visible positions before each one.

    Padding at either end does not count: the first visible position is 0.

    Args:
        x: tensor `(B, T, ...)`, whose positions are counted.
        mask: optional bool tensor `(B, T)`, `True` = visible.
        segment_ids: optional int tensor `(B, T)`, for rows of several
            documents: each one is counted from 0.
        start: optional int32 tensor `(B, 1)`, the number of positions before
            those of `x`, in the first document. Defaults to `None`: 0.

    Returns:
        Tensors of int32: `(B, T)`, or `(1, T)` if all rows are alike, and the
        `start` of what follows, `(B, 1)` or a number.
    """
    start = 0 if start is None else start
    numbers = None
    if segment_ids is not None and not is_empty(x.shape):
        numbers, mask = numbers_and_mask(segment_ids, mask)
    if mask is None:
        length = ops.shape(x)[1]
        places = ops.expand_dims(ops.arange(length, dtype="int32"), 0)
        return places + start, start + length
    visible = ops.cast(mask, "int32")
    before = ops.cumsum(visible, axis=1) - visible
    count = ops.sum(visible, axis=1, keepdims=True)
    if numbers is not None:
        start = _starts_of_documents(numbers, before, start)
        return before + start, count + start[:, -1:]
    return before + start, count + start


def _starts_of_documents(numbers, before, start):
    """What to add to the counts of a row to count each document from 0.

    Args:
        numbers: int32 tensor `(B, T)` of the documents, which never falls.
        before: int32 tensor `(B, T)`, visible positions before each one.
        start: int32 tensor `(B, 1)`, or a number: of document 0.

    Returns:
        int32 tensor `(B, T)`.
    """
    first = ops.take_along_axis(before, first_places(numbers), axis=1)
    return ops.where(ops.equal(numbers, 0), start, -first)


def rotate(x, positions, max_wavelength=10000, scaling_factor=1.0, size=None):
    """Turns the heads at each position by the angles of the position.

    Args:
        x: tensor `[B, T, H, D]`.
        positions: int tensor `(B, T)` or `(1, T)`.
        max_wavelength: float > 1, positions of the slowest turn over 2 pi.
            Defaults to 10,000.
        scaling_factor: float > 0, by which positions are divided. Defaults to
            1.
        size: even int > 0, how many features of each head turn, the first
            ones. Defaults to `None`: all.

    Returns:
        Tensor of `x`'s shape and dtype.
    """
    size = x.shape[-1] if size is None else size
    half = size // 2
    # At least float32: half precision does not know position 2,049 from 2,048.
    dtype = accumulation_dtype(x.dtype)
    frequencies = [
        max_wavelength ** (-i / half) / scaling_factor for i in range(half)
    ]
    angles = ops.expand_dims(ops.cast(positions, dtype), -1)
    angles = angles * ops.convert_to_tensor(frequencies, dtype=dtype)
    angles = ops.expand_dims(angles, 2)  # for all heads
    cosine, sine = ops.cos(angles), ops.sin(angles)
    first = ops.cast(x[..., :half], dtype)
    second = ops.cast(x[..., half:size], dtype)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    turned = [ops.cast(part, x.dtype) for part in turned]
    return ops.concatenate([*turned, x[..., size:]], axis=-1)
