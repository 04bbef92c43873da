"""Documents packed into one row: which positions belong together.

`segment_ids` are int tensors `(B, T)`: equal ids stand side by side, 0 marks
padding. Functions here turn them into `Documents`, which mechanisms use.

Everything is selected, never multiplied by 0: 0 * NaN is NaN, and one document
must not reach another.
"""

import typing

from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.chunks import split_chunks
from keras_linattn.core.masks import expand_to_rank
from keras_linattn.core.masks import select
from keras_linattn.core.masks import take_positions
from keras_linattn.core.masks import visible_places


class Documents(typing.NamedTuple):
    """Numbers of the documents that queries and keys belong to.

    A query sees the keys of its own number only. In self-attention both are
    one tensor, whose numbers start at 0 and never fall: a position of padding
    has the number of the document before it. In cross-attention both hold the
    ids as they were given.

    Args:
        query: int32 tensor `(B, T)`.
        key: int32 tensor `(B, S)`.
    """

    query: object
    key: object

    @property
    def one_sequence(self):
        """Whether queries and keys are the same positions, in order."""
        return self.query is self.key


def documents_of(segment_ids):
    """The documents that ids stand for, and the masks of their padding.

    Args:
        segment_ids: int tensor `(B, T)`, or a pair of them for queries and
            keys, `(B, T)` and `(B, S)`.

    Returns:
        `Documents`, and two bool tensors `(B, T)` and `(B, S)`, `True` where
        the id is not 0.
    """
    masks = segment_masks(segment_ids)
    if isinstance(segment_ids, (tuple, list)):
        query, key = (ops.cast(ids, "int32") for ids in segment_ids)
        return Documents(query, key), *masks
    numbers = number_documents(ops.cast(segment_ids, "int32"), masks[0])
    return Documents(numbers, numbers), *masks


def segment_masks(segment_ids):
    """Bool masks of queries and keys, `True` where the id is not 0.

    Args:
        segment_ids: int tensor `(B, T)`, or a pair of them for queries and
            keys. One tensor gives one mask twice.
    """
    if isinstance(segment_ids, (tuple, list)):
        return tuple(ops.not_equal(ids, 0) for ids in segment_ids)
    mask = ops.not_equal(segment_ids, 0)
    return mask, mask


def number_documents(ids, visible):
    """Counts the documents of each row, from 0.

    Args:
        ids: int32 tensor `(B, T)`.
        visible: bool tensor `(B, T)`, where the ids are not 0.

    Returns:
        Tensor of int32 `(B, T)`, which never falls along a row.
    """
    rank = ops.cumsum(ops.cast(visible, "int32"), axis=1)
    places = visible_places(visible)
    before = ops.take_along_axis(places, ops.maximum(rank - 2, 0), axis=1)
    previous = ops.take_along_axis(ids, before, axis=1)
    starts = ops.logical_and(
        visible, ops.logical_and(rank > 1, ids != previous)
    )
    return ops.cumsum(ops.cast(starts, "int32"), axis=1)


def same_document(documents):
    """Bool `[B, 1, T, S]`: whether a query and a key share their document."""
    query = expand_to_rank(documents.query, rank=4, axis=2)
    key = expand_to_rank(documents.key, rank=4, axis=3)
    return ops.equal(query, key)


def starts_of(documents):
    """Where a row goes over to its next document, bool `[B, 1, T, 1]`.

    The first position is none: what came before a row belongs to its document
    0. Padding at the end has no starts, as more of the last document.

    Args:
        documents: `Documents` of one sequence, or `None`.

    Returns:
        The tensor, or `None`.
    """
    if documents is None:
        return None
    numbers = documents.query
    first = ops.zeros_like(numbers[:, :1])
    before = ops.concatenate([first, numbers[:, :-1]], axis=1)
    return expand_to_rank(numbers != before, rank=4, axis=2)


def first_places(numbers):
    """The first place of the document of each position.

    Args:
        numbers: int32 tensor `(B, T)`, or ids: equal ones stand side by side.

    Returns:
        Tensor of int32 `(B, T)`.
    """
    before = ops.concatenate([numbers[:, :1] - 1, numbers[:, :-1]], axis=1)
    starts = numbers != before
    rank = ops.cumsum(ops.cast(starts, "int32"), axis=1) - 1
    return ops.take_along_axis(visible_places(starts), rank, axis=1)


def backwards(documents):
    """`Documents` of one sequence in reverse order."""
    numbers = documents.query
    numbers = ops.flip(numbers[:, -1:] - numbers, 1)
    return Documents(numbers, numbers)


def with_next(documents):
    """`Documents` of one sequence; the last gets one position more."""
    numbers = documents.query
    numbers = ops.concatenate([numbers, numbers[:, -1:]], axis=1)
    return Documents(numbers, numbers)


class DocumentChunks:
    """Chunks of a row that holds several documents.

    Args:
        starts: bool tensor `[B, 1, T, 1]`, see `starts_of`.
        size: int > 0, C.

    Attributes:
        number: int32 tensor `[B, 1, N, C, 1]`, of a position's document, from
            0 in each chunk.
        first: bool tensor of its shape, whether the document goes on from the
            chunk before.
        last: bool tensor of its shape, whether it goes on in the next one.
        breaks: bool tensor `[B, 1, N, 1, 1]`, whether a document starts here:
            then what came before is not carried on.
    """

    def __init__(self, starts, size):
        starts = ops.cast(split_chunks(starts, size), "int32")
        self.number = ops.cumsum(starts, axis=-2)
        at_end = self.number[..., -1:, :]
        self.first = ops.equal(self.number, 0)
        self.last = ops.equal(self.number, at_end)
        self.breaks = at_end > 0

    def same(self):
        """Bool `[B, 1, N, C, C]`: whether two positions share a document."""
        return ops.equal(self.number, ops.swapaxes(self.number, -1, -2))

    def earlier(self):
        """`same`, for s <= t."""
        same = self.same()
        return ops.logical_and(same, not_later(same.shape[-1]))


def chunks_of(starts, size):
    """`DocumentChunks`, or `None` where each row is one document."""
    return None if starts is None else DocumentChunks(starts, size)


def not_later(size):
    """Bool `[C, C]`: s <= t."""
    return ops.tril(ops.ones((size, size), dtype="bool"))


def earlier_pairs(x, chunks):
    """`x` `[..., N, C, C]` where s <= t lie in one document, else 0.

    Here and below `chunks` are `DocumentChunks`, or `None`.
    """
    if chunks is None:
        return ops.tril(x)
    return select(chunks.earlier(), x)


def within(x, chunks):
    """`x` `[..., N, C, C]` where both lie in one document, else 0."""
    return x if chunks is None else select(chunks.same(), x)


def of_first(x, chunks):
    """`x` `[..., N, C, anything]` in the first document of a chunk, else 0."""
    return x if chunks is None else select(chunks.first, x)


def of_last(x, chunks):
    """`x` `[..., N, C, anything]` in the last document of a chunk, else 0."""
    return x if chunks is None else select(chunks.last, x)


def breaks_of(chunks):
    """`breaks` of `DocumentChunks`, or `None`."""
    return None if chunks is None else chunks.breaks


@backends.with_fast_forms
def attend_documents(attend, alone, query, key, value, documents, nothing=0.0):
    """Attention both ways, in documents that queries and keys belong to.

    Queries and keys of two sequences become one, ordered by document, in which
    the keys of queries hold `nothing`.

    Args:
        attend: callable of query, key and value `[B, H, T, .]` and
            `Documents` of one sequence, that returns `[B, H, T, V]`.
        alone: the same for rows of one document, callable of query, key and
            value. The fast form calls it for one document after the other.
        query: tensor `[B, H, T, R]`.
        key: tensor `[B, H, S, R]`.
        value: tensor `[B, H, S, V]`.
        documents: `Documents`.
        nothing: float, the entries of a key that nobody sees. Defaults to 0.

    Returns:
        Tensor `[B, H, T, V]`.
    """
    if documents.one_sequence:
        return attend(query, key, value, documents)
    ids = ops.concatenate([documents.query, documents.key], axis=1)
    order = ops.argsort(ids, axis=1)
    ids = ops.take_along_axis(ids, order, axis=1)
    numbers = ops.cumsum(ops.cast(ids[:, 1:] != ids[:, :-1], "int32"), axis=1)
    numbers = ops.concatenate([ops.zeros_like(ids[:, :1]), numbers], axis=1)

    def join(of_queries, of_keys):
        both = ops.concatenate([of_queries, of_keys], axis=2)
        return take_positions(both, order)

    no_value = (*ops.shape(query)[:3], value.shape[3])
    output = attend(
        join(query, ops.zeros_like(key)),
        join(ops.full_like(query, nothing), key),
        join(ops.zeros(no_value, value.dtype), value),
        Documents(numbers, numbers),
    )
    output = take_positions(output, ops.argsort(order, axis=1))
    return output[:, :, : ops.shape(query)[2]]


def largest_within(x, documents):
    """The largest entries of each document, at all of its positions.

    A constant for gradients.

    Args:
        x: tensor `[B, H, T, D]`.
        documents: `Documents` of one sequence.

    Returns:
        Tensor of the shape of `x`.
    """
    batch, heads, length, dim = ops.shape(x)
    rows = ops.expand_dims(ops.arange(batch, dtype="int32") * length, 1)
    index = ops.reshape(documents.query + rows, (batch * length,))
    flat = ops.transpose(ops.stop_gradient(x), (0, 2, 1, 3))
    flat = ops.reshape(flat, (batch * length, heads * dim))
    largest = ops.take(largest_rows(flat, index), index, axis=0)
    largest = ops.reshape(largest, (batch, length, heads, dim))
    return ops.transpose(largest, (0, 2, 1, 3))


@backends.with_fast_forms
def largest_rows(x, index):
    """The largest entries of rows `[N, D]` that `index` `[N]` puts together.

    Returns:
        Tensor `[N, D]`, whose row n is that of index n; others mean nothing.
    """
    return ops.segment_max(x, index, num_segments=ops.shape(x)[0])
