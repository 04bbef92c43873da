"""Chunk arithmetic that survives a length known only at run time."""

import math

from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.backends.thresholds import GROUP
from keras_linattn.core.numerics import cumsum

DOUBLINGS = 20  # of a number of chunks that only the run time knows


def fitting_size(size, length):
    """The chunk's size, or the length where that is known to be shorter."""
    # A length that JAX exports is a symbol, which cannot be compared.
    return min(size, length) if isinstance(length, int) else size


def power_of_two(size):
    """The least power of 2 that is not below `size`, an int > 0."""
    return 1 << (size - 1).bit_length()


def num_chunks(length, size):
    """How many chunks of `size` cover `length` positions."""
    return (length + size - 1) // size


def pad_to_chunks(x, size, axis, count=None):
    """Pads `axis` with zeros at its end to a multiple of `size`.

    Args:
        x: tensor.
        size: int > 0, chunk length.
        axis: int >= 0.
        count: int or scalar tensor, chunks. Defaults to `None`: `num_chunks`.

    Returns:
        Tensor whose `axis` has `count * size` entries.
    """
    length = ops.shape(x)[axis]
    # (-length) % size is the same number, but JAX cannot export it.
    count = num_chunks(length, size) if count is None else count
    missing = count * size - length
    if isinstance(missing, int) and missing == 0:
        return x
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
        Tensor `[B, H, N, C, D]` with N = `num_chunks(T, C)`, or 1 if T is a
        tensor that is 0.
    """
    shape = ops.shape(x)
    count = num_chunks(shape[axis], size)
    if ops.is_tensor(count):  # only the run time knows if it is 0
        count = ops.maximum(count, 1)
    x = pad_to_chunks(x, size, axis, count)
    chunk = (size, *shape[axis + 1 :])
    # One batch of chunks first: if that is a copy, as of heads under torch, it
    # is made once here, and not by each product of the chunks.
    x = ops.reshape(x, (math.prod(shape[:axis]) * count, *chunk))
    return ops.reshape(x, (*shape[:axis], count, *chunk))


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


def running_sums(x, start=None, breaks=None):
    """The sums before each chunk and after the last one.

    A sum over earlier chunks alone, with no product in it: what is not finite
    later cannot reach an earlier sum.

    Args:
        x: tensor `[B, H, N, R, V]`.
        start: tensor `[B, H, R, V]`, the sum before the first chunk. Defaults
            to `None`: 0.
        breaks: bool tensor `[B, 1, N, 1, 1]`, the chunks whose sum begins
            anew: the one before them is dropped. Defaults to `None`: none.

    Returns:
        Tensor `[B, H, N, R, V]` and tensor `[B, H, R, V]`.
    """
    if start is None:
        start = ops.zeros_like(x[:, :, 0])
    if x.shape[2] == 1:
        kept = start if breaks is None else keep(start, breaks[:, :, 0])
        return ops.expand_dims(start, 2), kept + x[:, :, 0]
    if breaks is None:
        return cumulative_sums(x, start)
    return broken_sums(x, start, breaks)


@backends.per_backend
def scans_in_parallel(x):
    """Whether `scan` is faster than a loop over axis 2: on a GPU."""
    return False


def scan(combine, elements):
    """Combines the first chunk, the first two chunks, and so on: a scan.

    It needs about 2 log2(N) calls of `combine`, each for many pairs at once. A
    loop needs N calls, and on a GPU a call for one pair takes as long.

    Args:
        combine: callable `(earlier, later)` on lists of tensors like
            `elements`, whose axis 2 holds pairs of neighbours. Associative.
        elements: list of tensors `[B, H, N, ...]`, N an int.

    Returns:
        List of tensors of the same shapes.
    """
    count = elements[0].shape[2]
    if count == 1:
        return elements
    pairs = count // 2
    odd = scan(
        combine,
        combine(
            [x[:, :, : 2 * pairs : 2] for x in elements],
            [x[:, :, 1::2] for x in elements],
        ),
    )
    even = [x[:, :, :1] for x in elements]
    if count > 2:
        rest = combine(
            [x[:, :, : (count - 1) // 2] for x in odd],
            [x[:, :, 2::2] for x in elements],
        )
        even = [ops.concatenate(x, axis=2) for x in zip(even, rest)]
    return [_interleave(*x) for x in zip(even, odd)]


def _interleave(even, odd):
    """Entries 0, 2, ... and 1, 3, ... of axis 2 as one array."""
    pairs = odd.shape[2]
    shape = ops.shape(odd)
    joined = ops.stack([even[:, :, :pairs], odd], axis=3)
    joined = ops.reshape(joined, (*shape[:2], 2 * pairs, *shape[3:]))
    return ops.concatenate([joined, even[:, :, pairs:]], axis=2)


def keep(sums, breaks):
    """`sums` where no break is, else 0."""
    return ops.where(breaks, ops.cast(0, sums.dtype), sums)


@backends.with_fast_forms
def cumulative_sums(x, start):
    """`running_sums` by `ops.cumsum`, which is fast under torch only."""
    x = ops.concatenate([ops.expand_dims(start, 2), x], axis=2)
    running = cumsum(x, axis=2)
    # Shifted, not subtracted: a chunk's own sum holds its future positions.
    return running[:, :, :-1], running[:, :, -1]


def grouped_sums(x, start, of_groups):
    """`running_sums` by additions within groups of chunks.

    Args:
        x: tensor `[B, H, N, R, V]`.
        start: tensor `[B, H, R, V]`.
        of_groups: callable, `running_sums` of the sums of whole groups.
    """
    count = ops.shape(x)[2]
    size = fitting_size(GROUP, count)
    parts = ops.unstack(split_chunks(x, size), size, axis=3)
    inside = [parts[0]]  # sums within the group, [B, H, N / size, R, V] each
    for part in parts[1:]:
        inside.append(inside[-1] + part)
    if isinstance(count, int) and count == size:
        before, after = ops.expand_dims(start, 2), start + inside[-1][:, :, 0]
    else:
        before, after = of_groups(inside[-1], start)
    sums = [before] + [before + part for part in inside[:-1]]
    return join_chunks(ops.stack(sums, axis=3), count), after


def broken_sums(x, start, breaks):
    """`running_sums` that begin anew, by additions within groups of chunks."""
    count = ops.shape(x)[2]
    size = fitting_size(GROUP, count)
    parts = ops.unstack(split_chunks(x, size), size, axis=3)
    cuts = ops.unstack(split_chunks(breaks, size), size, axis=3)
    # Within the group: sums, and whether there has been a break.
    inside, broken = [parts[0]], [cuts[0]]
    for part, cut in zip(parts[1:], cuts[1:], strict=True):
        inside.append(keep(inside[-1], cut) + part)
        broken.append(ops.logical_or(broken[-1], cut))
    if isinstance(count, int):
        of_groups = running_sums  # ends: each time there are fewer groups
    else:
        of_groups = looped_sums
    before, after = of_groups(inside[-1], start, broken[-1])
    sums = [before]
    for part, cut in zip(inside[:-1], broken[:-1], strict=True):
        sums.append(keep(before, cut) + part)
    return join_chunks(ops.stack(sums, axis=3), count), after


@backends.per_backend
def looped_sums(x, start, breaks):
    """`running_sums` that begin anew, whatever the number of chunks.

    By doubling: after k steps an entry is the sum of 2^k chunks, or of those
    since the last break. TensorFlow and JAX have loops of their own for it:
    `ops.scan` takes no unknown length under TensorFlow, and JAX compiles the
    doublings for ten times as long.
    """
    sums = ops.concatenate([ops.expand_dims(start, 2), x], axis=2)
    broken = ops.concatenate([ops.ones_like(breaks[:, :, :1]), breaks], axis=2)
    place = ops.arange(ops.shape(sums)[2], dtype="int32")
    for step in range(DOUBLINGS):
        earlier = ops.maximum(place - 2**step, 0)
        sums = keep(ops.take(sums, earlier, axis=2), broken) + sums
        broken = ops.logical_or(broken, ops.take(broken, earlier, axis=2))
    return sums[:, :, :-1], sums[:, :, -1]
