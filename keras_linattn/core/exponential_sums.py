"""Sums of e^k v relative to the largest k, which fit float32 at any size.

A state `[..., D, V + 2]` holds for each feature the largest key, the sums of
exp(key - largest) times the values, and the sum of exp(key - largest).
"""

from keras import ops

from keras_linattn.core.documents import Documents
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.numerics import LOWEST
from keras_linattn.core.numerics import maximum
from keras_linattn.core.numerics import safe_divide
from keras_linattn.core.numerics import split_at
from keras_linattn.core.products import append_ones
from keras_linattn.core.products import key_value_product

FLOOR = -1e38  # the largest of no keys; finite, since inf - inf is NaN
HIDDEN = -3e38  # in place of a hidden key: exp(HIDDEN - FLOOR) is 0


def largest_of(state):
    """The largest key in a state `[..., D, V + 2]`, `[..., D, 1]`."""
    return ops.where(state[..., -1:] > 0, state[..., :1], FLOOR)


def add_chunk(chunk, state):
    """The state with a chunk's own state, both `[..., D, V + 2]`."""
    ours, theirs = largest_of(state), chunk[..., :1]
    largest = maximum(ours, theirs)
    sums = ops.exp(ours - largest) * state[..., 1:]
    sums = sums + ops.exp(theirs - largest) * chunk[..., 1:]
    return ops.concatenate([largest, sums], axis=-1)


def state_of(key, value):
    """The state of positions alone, `[..., D, V + 2]`.

    Args:
        key: tensor `[..., C, D]`, `HIDDEN` where masked.
        value: tensor `[..., C, V + 1]`, with a last column of 1.
    """
    largest = ops.stop_gradient(ops.max(key, axis=-2, keepdims=True))
    largest = maximum(largest, FLOOR)
    sums = key_value_product(ops.exp(key - largest), value)
    return ops.concatenate([ops.swapaxes(largest, -1, -2), sums], axis=-1)


def attend_both_ways_in_pieces(
    attend, query, key, value, key_mask, packed_pieces
):
    """Attention of documents that may begin or end in other pieces.

    What other pieces hold of a document comes in as D keys more: one for each
    feature, with the logarithm of its sum and the mean of its values.

    Args:
        attend: callable of query, key, value and `Documents` of one sequence;
            its keys are logarithms of weights, `LOWEST` where hidden.
        query, key, value: tensors `[B, H, T, .]`, of this piece.
        key_mask: bool tensor `(B, T)`.
        packed_pieces: `core.packed_pieces.PackedPieces`.

    Returns:
        Tensor `[B, H, T, V]`.
    """
    pieces, size = packed_pieces, key.shape[-1]
    shown, ones = apply_mask(key, key_mask, value=HIDDEN), append_ones(value)

    def own(visible):
        return state_of(ops.where(visible, shown, HIDDEN), ones)

    of_last, of_first = own(pieces.in_last), own(pieces.in_first)
    nothing = ops.zeros_like(of_last)
    before = _as_keys(pieces.before(of_last, add_chunk, nothing))
    after = _as_keys(pieces.after(of_first, add_chunk, nothing))
    own = apply_mask(key, key_mask, value=LOWEST), value
    key, value = (
        ops.concatenate(parts, axis=2) for parts in zip(before, own, after)
    )
    query = ops.pad(query, [(0, 0), (0, 0), (size, size), (0, 0)])
    numbers = pieces.documents.query
    last = ops.repeat(numbers[:, -1:], size, axis=1)
    numbers = ops.concatenate([ops.zeros_like(last), numbers, last], axis=1)
    output = attend(query, key, value, Documents(numbers, numbers))
    return output[:, :, size:-size]


def _as_keys(state):
    """A state as D keys `[..., D, D]`, logarithms, and values `[..., D, V]`."""
    largest, sums, total = split_at(state, [1, state.shape[-1] - 1])
    filled = total > 0
    log = ops.log(ops.where(filled, total, ops.ones_like(total)))
    log = ops.where(filled, largest + log, LOWEST)
    own_feature = ops.eye(state.shape[-2], dtype="bool")
    return ops.where(own_feature, log, LOWEST), safe_divide(sums, total)
