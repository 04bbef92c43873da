"""Windows: each query meets the keys near it, block by block.

Queries stand in N blocks of C. A block meets the K keys that any of its
queries may see, so that the largest array is `[B, H, N, C, K]`, linear in the
length. `near_by_place` counts all positions, `near_by_rank` the visible ones.
"""

import typing

from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.chunks import num_chunks
from keras_linattn.core.chunks import pad_to_chunks
from keras_linattn.core.chunks import split_chunks
from keras_linattn.core.documents import with_next
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import expand_to_rank
from keras_linattn.core.masks import nan_where
from keras_linattn.core.masks import select
from keras_linattn.core.masks import take_positions
from keras_linattn.core.masks import visible_places
from keras_linattn.core.nonfinite import finite_rows
from keras_linattn.core.numerics import matmul

SMALLEST_BLOCK = 32  # products of smaller ones cost as much
LEAST = -3e38  # a hidden score, below what any product of heads should be


class Near(typing.NamedTuple):
    """The keys that blocks of queries meet, and which of them they see.

    Keys are E = L + T positions: L held from before, and those of the queries.

    Args:
        size: int, C, queries in a block.
        shift: int, zeros before the first key.
        others: int, how many blocks of keys come to that of the queries.
        count: int or scalar tensor, N; `None`: one block meets all E keys.
        pairs: bool tensor `[B or 1, 1, N, C, K]`, who sees whom.
        index: int tensor `(B, N K)`, the keys' places, or `None`: in order.
        last: int tensor `(B, W - 1)`, the places of the last keys, or `None`:
            they stand at the end.
    """

    size: int
    shift: int
    others: int
    count: object
    pairs: object
    index: object = None
    last: object = None


def block_size(window, length):
    """C for a window of W positions, or the length where it is shorter."""
    # Half a window: a block meets half as many keys again as its queries see.
    size = max(SMALLEST_BLOCK, (window + 1) // 2)
    return min(size, length) if isinstance(length, int) else size


def near_by_place(length, window, causal, mask=None, held=None, documents=None):
    """`Near` of windows that count positions, hidden ones too.

    Args:
        length: int or scalar tensor, T.
        window: int > 0, W.
        causal: bool.
        mask: bool tensor `(B, T)`, or `None`.
        held: bool tensor `(B, W - 1)`, which of the keys from before are
            visible, or `None`: there are none.
        documents: `Documents`, or `None`.
    """
    size = block_size(window, length)
    before = 0 if held is None else window - 1
    one = isinstance(length, int) and length == size
    count = None if one else num_chunks(length, size)
    blocks = 0 if one else num_chunks(window - 1, size)
    if isinstance(count, int) and held is None:
        blocks = min(blocks, count - 1)
    others = blocks if causal else 2 * blocks
    if ops.is_tensor(count):  # only the run time knows if it is 0
        count = ops.maximum(count, 1)
    shift = 0 if one else blocks * size - before
    near = Near(size, shift, others, count, None)
    keys = before + size if one else (others + 1) * size
    ahead = ops.arange(keys, dtype="int32") - (before if one else blocks * size)
    ahead = ahead - ops.expand_dims(ops.arange(size, dtype="int32"), 1)
    end = 1 if causal else window
    pairs = ops.logical_and(ahead > -window, ahead < end)
    pairs = ops.reshape(pairs, (1, 1, 1, size, keys))
    if mask is None and held is None and one:
        visible = None
    else:
        if mask is None:
            mask = ops.ones((1, length), "bool")
        visible = _of_keys(near, _after(held, mask))
    if documents is not None:
        same = _same(near, documents, before)
        visible = same if visible is None else ops.logical_and(visible, same)
    return near._replace(pairs=combine_masks(pairs, visible))


def near_by_rank(mask, window, causal, held=None, documents=None):
    """`Near` of windows that count visible positions only.

    A hidden query stands between the visible positions around it.

    Args: see `near_by_place`.
    """
    length = ops.shape(mask)[1]
    size = block_size(window, length)
    before = 0 if held is None else window - 1
    seen = ops.cumsum(ops.cast(mask, "int32"), axis=1)
    rank = seen - ops.cast(mask, "int32")  # of a position, (B, T)
    total = ops.max(seen, axis=1, keepdims=True)  # (B, 1)
    places = _places(mask, before)
    rank, seen = (_in_blocks(x, size) for x in (rank, seen))
    # Ranks of keys: those before a block, its own, and those after it.
    sides = window - 1 if causal else 2 * (window - 1)
    key = ops.arange(size + sides, dtype="int32") - (window - 1)
    key = rank[:, 0, :, :1, 0] + key  # (B, N, K)
    there = ops.logical_and(key >= -before, key < ops.expand_dims(total, 2))
    batch, count, keys = ops.shape(key)
    index = ops.reshape(key + before, (batch, count * keys))
    index = ops.clip(index, 0, before + length - 1)
    index = ops.take_along_axis(places, index, axis=1)
    near = Near(size, 0, 0, count, None, index)
    key = ops.expand_dims(ops.expand_dims(key, 1), 3)
    there = ops.expand_dims(ops.expand_dims(there, 1), 3)
    pairs = ops.logical_and(there, key > rank - window)
    end = seen if causal else seen + window - 1
    pairs = ops.logical_and(pairs, key < end)
    if held is not None:
        visible = _of_keys(near, _after(held, mask))
        pairs = ops.logical_and(pairs, visible)
    if documents is not None:
        pairs = ops.logical_and(pairs, _same(near, documents, before))
    last = None
    if held is not None:
        last = total + ops.arange(before, dtype="int32")
        last = ops.take_along_axis(places, last, axis=1)
    return near._replace(pairs=pairs, last=last)


def _places(mask, before):
    """Places of the held keys, then of the visible positions in order."""
    places = visible_places(mask) + before
    held = ops.zeros_like(places[:, :1]) + ops.arange(before, dtype="int32")
    return ops.concatenate([held, places], axis=1)


def _after(held, x):
    """What is known of the held keys, `(B, L)`, and of the new ones."""
    if held is None:
        return x
    x = ops.broadcast_to(x, (ops.shape(held)[0], ops.shape(x)[1]))
    return ops.concatenate([held, x], axis=1)


def _of_keys(near, x):
    """`(B, E)`, one entry for each key, to `[B, 1, N, 1, K]`."""
    x = keys_of(near, expand_to_rank(x, rank=4, axis=2))
    return ops.swapaxes(x, -1, -2)


def _in_blocks(x, size):
    """`(B, T)`, one entry for each query, to `[B, 1, N, C, 1]`."""
    return split_chunks(expand_to_rank(x, rank=4, axis=2), size)


def _same(near, documents, before):
    """Whether query and key share their document; the held keys' is 0."""
    keys = _of_keys(near, with_held(documents.key, before))
    return ops.equal(_in_blocks(documents.query, near.size), keys)


def with_held(numbers, before):
    """Numbers of documents `(B, T)` behind those of held keys, which are 0."""
    return ops.pad(numbers, [(0, 0), (before, 0)])


def keys_of(near, x):
    """What the blocks of queries meet, of `[B, H, E, F]`: `[B, H, N, K, F]`."""
    if near.index is not None:
        batch, heads, _, features = ops.shape(x)
        x = take_positions(x, near.index)
        return ops.reshape(x, (batch, heads, near.count, -1, features))
    if near.count is None:
        return ops.expand_dims(x, 2)
    if near.shift or near.others:
        x = ops.pad(x, [(0, 0), (0, 0), (near.shift, 0), (0, 0)])
    x = pad_to_chunks(x, near.size, 2, near.count + near.others)
    return overlapping_blocks(x, near.size, near.count, near.others)


@backends.with_fast_forms
def overlapping_blocks(x, size, count, others):
    """`[B, H, (N + others) C, F]` to `[B, H, N, (others + 1) C, F]`."""
    batch, heads, _, features = ops.shape(x)
    x = ops.reshape(x, (batch, heads, count + others, size, features))
    ends = [i - others or None for i in range(others + 1)]
    parts = [x[:, :, i:end] for i, end in enumerate(ends)]
    return ops.concatenate(parts, axis=3)


def last_keys(near, x, window):
    """The last W - 1 of `[B, H, E, F]`, of the positions that count."""
    if window == 1:
        return x[:, :, :0]
    if near.last is None:
        return x[:, :, 1 - window :]
    return take_positions(x, near.last)


def leaving_keys(x, window, mask=None, holds=False, documents=None):
    """The keys that leave the window where each query comes to it.

    Args:
        x: tensor `[B, H, E, F]`, keys, or what belongs to them.
        window: int > 0, W.
        mask: bool tensor `(B, T)` if windows count visible positions only.
            Defaults to `None`.
        holds: bool, whether the first W - 1 are held from before. Then the
            result also has the key that leaves after the last query. Defaults
            to `False`.
        documents: `Documents`, or `None`, its default: each row is one. The
            result is 0 for keys of another document than the query's.

    Returns:
        Tensor `[B, H, T, F]`, or `[B, H, T + 1, F]`; 0 where none leaves.
    """
    if documents is not None:
        held = window - 1 if holds else 0
        numbers = expand_to_rank(with_held(documents.key, held), rank=4, axis=2)
        of_keys, keys = (
            leaving_keys(y, window, mask, holds) for y in (numbers, x)
        )
        of_queries = with_next(documents) if holds else documents
        of_queries = expand_to_rank(of_queries.query, rank=4, axis=2)
        return select(ops.equal(of_keys, of_queries), keys)
    before = window - 1 if holds else 0
    if mask is None:
        if holds:
            x = x[:, :, : -before or None]
            return ops.pad(x, [(0, 0), (0, 0), (1, 0), (0, 0)])
        length = ops.shape(x)[2]
        x = ops.pad(x, [(0, 0), (0, 0), (window, 0), (0, 0)])
        return x[:, :, :length]
    visible = ops.cast(ops.pad(mask, [(0, 0), (1, 0)]), "int32")
    rank = ops.cumsum(visible, axis=1)
    if not holds:
        rank, visible = rank[:, :-1], visible[:, :-1]
    # One leaves behind each visible position; `places` begins at -before.
    place = rank - window + before
    leaves = ops.logical_and(visible > 0, place >= 0)
    index = ops.take_along_axis(
        _places(mask, before), ops.maximum(place, 0), axis=1
    )
    return apply_mask(take_positions(x, index), leaves)


def sanitized(key, value):
    """Sets rows that are not finite to 0, since 0 * NaN is NaN.

    Returns:
        Key, value, and a bool tensor `[B, H, E, 1]`, `True` for finite rows.
    """
    finite = finite_rows(key, value)
    return select(finite, key), select(finite, value), finite


def write_nan_near(output, finite, near):
    """Writes NaN for queries that see a key that is not finite.

    Args:
        output: tensor `[B, H, N, C, V]`.
        finite: bool tensor `[B, H, E, 1]`.
        near: `Near`.
    """
    bad = ops.cast(ops.logical_not(finite), output.dtype)
    # All heads at once, `[B, N, K, H]`: the pairs are theirs together.
    bad = ops.transpose(keys_of(near, bad)[..., 0], (0, 2, 3, 1))
    pairs = ops.cast(near.pairs[:, 0], output.dtype)
    nan_rows = ops.transpose(matmul(pairs, bad), (0, 3, 1, 2)) > 0.5
    return nan_where(ops.expand_dims(nan_rows, -1), output)


def near_scores(query, key, near):
    """Scores `[B, H, N, C, K]` over sqrt D, before any mask."""
    query = split_chunks(query * query.shape[-1] ** -0.5, near.size)
    return matmul(query, ops.swapaxes(keys_of(near, key), -1, -2))


@backends.with_fast_forms
def attend_near(query, key, value, near):
    """Softmax attention of queries to the keys that they see.

    Args:
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, E, D]`.
        value: tensor `[B, H, E, V]`.
        near: `Near`.

    Returns:
        Tensor `[B, H, T, V]`; 0 where nothing is seen.
    """
    key, value, finite = sanitized(key, value)
    of_queries = finite_rows(query)
    output = attend_finite(select(of_queries, query), key, value, near)
    output = write_nan_near(output, finite, near)
    output = join_chunks(output, ops.shape(query)[2])
    return nan_where(ops.logical_not(of_queries), output)


def attend_finite(query, key, value, near):
    """`attend_near` of finite rows, in blocks: `[B, H, N, C, V]`."""
    query = split_chunks(query, near.size)
    key, value = keys_of(near, key), keys_of(near, value)
    output = attend_blocks(query, key, value, near.pairs)
    sees_any = ops.any(near.pairs, axis=-1, keepdims=True)
    return select(sees_any, output)


@backends.with_fast_forms
def attend_blocks(query, key, value, pairs):
    """Softmax attention of each block of queries to its block of keys.

    Args:
        query: tensor `[B, H, N, C, D]`.
        key: tensor `[B, H, N, K, D]`.
        value: tensor `[B, H, N, K, V]`.
        pairs: bool tensor `[B or 1, 1, N or 1, C, K]`, who sees whom.

    Returns:
        Tensor `[B, H, N, C, V]`; a query that sees nothing gets any numbers.
    """
    query = query * query.shape[-1] ** -0.5
    scores = matmul(query, ops.swapaxes(key, -1, -2))
    if scores.shape[-1] == 1:  # Keras warns of a softmax over one entry
        weights = ops.ones_like(scores)
    else:
        hidden = ops.cast(LEAST, scores.dtype)
        weights = ops.softmax(ops.where(pairs, scores, hidden), axis=-1)
    return matmul(weights, value)
