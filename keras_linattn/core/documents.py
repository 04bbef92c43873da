"""Documents packed into one row: which positions belong together.

`segment_ids` are int tensors `(B, T)`: equal ids stand side by side, 0 marks
padding. Functions here turn them into `Documents`, which mechanisms use.
"""

import typing

from keras import ops


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
    if isinstance(segment_ids, (tuple, list)):
        query, key = (ops.cast(ids, "int32") for ids in segment_ids)
        return Documents(query, key), query != 0, key != 0
    ids = ops.cast(segment_ids, "int32")
    visible = ids != 0
    numbers = number_documents(ids, visible)
    return Documents(numbers, numbers), visible, visible


def number_documents(ids, visible):
    """Counts the documents of each row, from 0.

    Args:
        ids: int32 tensor `(B, T)`.
        visible: bool tensor `(B, T)`, where the ids are not 0.

    Returns:
        Tensor of int32 `(B, T)`, which never falls along a row.
    """
    rank = ops.cumsum(ops.cast(visible, "int32"), axis=1)
    place = ops.arange(ops.shape(ids)[1], dtype="int32")
    last = ops.shape(ids)[1]
    # The places of the visible positions, in order, before those of no one.
    places = ops.sort(ops.where(visible, place, last), axis=1)
    before = ops.take_along_axis(places, ops.maximum(rank - 2, 0), axis=1)
    before = ops.minimum(before, last - 1)  # of a row of padding
    previous = ops.take_along_axis(ids, before, axis=1)
    starts = ops.logical_and(
        visible, ops.logical_and(rank > 1, ids != previous)
    )
    return ops.cumsum(ops.cast(starts, "int32"), axis=1)


def same_document(documents):
    """Bool `[B, 1, T, S]`: whether a query and a key share their document."""
    query = ops.expand_dims(ops.expand_dims(documents.query, 1), 3)
    key = ops.expand_dims(ops.expand_dims(documents.key, 1), 2)
    return ops.equal(query, key)
