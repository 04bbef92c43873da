"""Boundaries of packed documents, for whatever looks at neighbours.

See `core/documents.py` for the ids, and for the numbers of the documents.
"""

from keras import ops

from keras_linattn.core.documents import number_documents
from keras_linattn.core.documents import segment_masks
from keras_linattn.core.masks import combine_masks


def with_padding(segment_ids, query_mask, key_mask):
    """The masks of queries and keys, which also mask padding."""
    of_queries, of_keys = segment_masks(segment_ids)
    alike = query_mask is key_mask and of_queries is of_keys
    query_mask = combine_masks(query_mask, of_queries)
    # One mask given twice stays one object: `mask_inputs` sees that.
    return query_mask, (
        query_mask if alike else combine_masks(key_mask, of_keys)
    )


def numbers_and_mask(segment_ids, mask=None):
    """The number of the document at each position, and the mask with padding.

    Args:
        segment_ids: int tensor `(B, T)`.
        mask: optional bool tensor `(B, T)`, `True` = visible: what it hides
            counts as padding.

    Returns:
        int32 and bool tensors `(B, T)`. The numbers start at 0 and never fall;
        padding has the number of the document before it.
    """
    ids = ops.cast(segment_ids, "int32")
    mask = combine_masks(mask, ops.not_equal(ids, 0))
    return number_documents(ids, mask), mask


class LookingBack:
    """What a position may see of the few before it.

    Args:
        numbers: int32 tensor `(B, T)`, from `numbers_and_mask`.
        reach: int >= 0, how far back a position looks. What stands before the
            row belongs to document 0.
    """

    def __init__(self, numbers, reach):
        self.numbers = numbers
        self.reach = reach
        self.padded = ops.pad(numbers, [(0, 0), (reach, 0)])

    def same(self, shift):
        """Bool `(B, T)`: is the position `shift` before in the document?"""
        before = self.padded[:, self.reach - shift : -shift or None]
        return ops.equal(before, self.numbers)

    def in_last(self, index):
        """Bool `(B, N)`: are places in the row's last document?

        Args:
            index: int32 tensor `(B, N)`, `reach` more than the positions.
        """
        numbers = ops.take_along_axis(self.padded, index, axis=1)
        return ops.equal(numbers, self.numbers[:, -1:])


def group_documents(numbers, visible, group):
    """Numbers of the documents that groups of neighbours belong to.

    Args:
        numbers: int32 tensor `(B, T)`, from `numbers_and_mask`.
        visible: bool tensor `(B, T)`.
        group: callable, `(B, T)` to `(B, N, size)`, 0 at the end.

    Returns:
        int32 tensor `(B, N)`, 0 before the first document; and a bool tensor
        `(B, N)`, whether no document starts inside the group.
    """
    begun = ops.cumsum(ops.cast(visible, "int32"), axis=1) > 0
    groups = group(numbers + ops.cast(begun, "int32"))
    first = groups[:, :, 0]
    return first, ops.equal(first, ops.max(groups, axis=2))
