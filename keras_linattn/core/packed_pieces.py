"""Packed documents in a sequence whose length is split over devices.

A document may begin on one device and end on another. A device numbers the
documents of its piece so that 0 is the last one before the piece. Then the
state of the pieces before belongs to document 0, as `Mechanism.advance` wants.
"""

from keras import ops

from keras_linattn.core.devices import Pieces
from keras_linattn.core.documents import Documents
from keras_linattn.core.documents import number_documents
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import expand_to_rank
from keras_linattn.core.masks import select
from keras_linattn.core.masks import visible_span


class PackedPieces(Pieces):
    """`Pieces` of rows that hold several documents; in `on_each_device`.

    Sums and states of other pieces are those of one document only: the one
    that goes on from there to this piece. So in `before` the argument `own` is
    the effect of the last document of this piece.

    Args:
        pieces: `Pieces`.
        segment_ids: int tensor `(B, T)`, of this piece. 0 marks padding.
        mask: optional bool tensor `(B, T)`; what it hides is padding too.

    Attributes:
        mask: bool tensor `(B, T)`, which positions are visible.
        ids: int32 tensor `(B, T)`, 0 where hidden.
        documents: `Documents` of this piece. Those that start in it have
            numbers from 1; before its first visible position stands 0.
    """

    def __init__(self, pieces, segment_ids, mask=None):
        super().__init__(pieces.name, pieces.count)
        ids = ops.cast(segment_ids, "int32")
        self.mask = combine_masks(mask, ops.not_equal(ids, 0))
        self.ids = ops.where(self.mask, ids, ops.zeros_like(ids))
        numbers = number_documents(self.ids, self.mask)
        first, last = _end_ids(self.ids, self.mask)
        changes = ops.cast(numbers[:, -1:] > 0, "int32")
        # One exchange of three numbers for each row, [P, B, 3].
        every = self.all(ops.concatenate([first, last, changes], axis=1))
        starts, self._goes_on, before = [], [], ops.zeros_like(first)
        for number in range(self.count):
            first, last, changes = ops.unstack(every[number], 3, axis=1)
            first, last = (ops.expand_dims(x, 1) for x in (first, last))
            both = ops.logical_and(first != 0, before != 0)
            new = ops.logical_and(both, first != before)
            starts.append(new)
            broken = ops.logical_or(new, ops.expand_dims(changes, 1) > 0)
            self._goes_on.append(ops.logical_not(broken))
            before = ops.where(last != 0, last, before)
        starts_anew = ops.take(ops.stack(starts), self.place, axis=0)
        seen = ops.cumsum(ops.cast(self.mask, "int32"), axis=1) > 0
        shift = ops.cast(ops.logical_and(seen, starts_anew), "int32")
        self.documents = Documents(*(numbers + shift,) * 2)

    def of_last_document(self, x):
        """`x` `[B, H, T, D]` where the piece's last document stands, else 0."""
        return select(self.in_last, x)

    @property
    def in_first(self):
        """Bool `[B, 1, T, 1]`: the document that goes on from before."""
        return ops.equal(self._numbers, 0)

    @property
    def in_last(self):
        """Bool `[B, 1, T, 1]`: the piece's last document."""
        return ops.equal(self._numbers, self._numbers[:, :, -1:])

    @property
    def _numbers(self):
        return expand_to_rank(self.documents.query, rank=4, axis=2)

    def sum_before(self, x):
        """The sum over the pieces before, of the document that goes on."""
        return self.before(x, ops.add, ops.zeros_like(x))

    def after(self, own, merge, start):
        """Returns the state of the last document, in the pieces after this one.

        Args: see `Pieces.before`; `own` is the effect of document 0.
        """
        every, place, state = self.all(own), self.place, start
        for number in range(self.count - 1, 0, -1):
            after = merge(every[number], self._kept(number, state, start))
            state = ops.where(number > place, after, state)
        return state

    def _kept(self, number, state, start):
        """The state, or `start` where no document goes on through a piece."""
        goes_on = self._goes_on[number]  # (B, 1)
        goes_on = ops.reshape(goes_on, (-1,) + (1,) * (len(state.shape) - 1))
        return ops.where(goes_on, state, start)  # selected: 0 * NaN is NaN


def _end_ids(ids, mask):
    """The first and the last visible id `(B, 1)`, 0 if there is none."""
    start, end, _ = visible_span(mask)
    places = start, ops.maximum(end - 1, 0)
    return [ops.take_along_axis(ids, place, axis=1) for place in places]
