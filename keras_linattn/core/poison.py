"""NaN and infinity: they reach later positions, and no earlier ones.

In a chunked product the future is multiplied by 0, and 0 * NaN is NaN. So rows
that are not finite are set to 0 first, and NaN is written into every later row
of the result.
"""

from keras import backend
from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.documents import backwards
from keras_linattn.core.documents import first_places
from keras_linattn.core.masks import nan_where
from keras_linattn.core.masks import select
from keras_linattn.core.masks import spread
from keras_linattn.core.masks import take_positions
from keras_linattn.core.numerics import matmul

SMALL = 2.0**-32  # so scaled, finite numbers have a finite sum


@backends.with_fast_forms
def run_contained(function, *tensors, documents=None):
    """Runs a causal function so that NaN cannot reach earlier positions.

    With documents, NaN in one document cannot reach another.

    Args:
        function: callable of the tensors that returns an output
            `[B, H, T, V]` and a state `[B, H, D, V]`.
        *tensors: tensors `[B, H or 1, T, anything]`.
        documents: `Documents`, or `None`, its default: each row is one.

    Returns:
        Output and state. They are NaN from the first row that is not finite
        on, up to the end of its document.
    """
    finite = finite_rows(*tensors)
    clean = (ops.where(finite, x, ops.zeros_like(x)) for x in tensors)
    output, state = function(*clean)
    spoilt = rows_after(finite, documents)
    return nan_where(spoilt, output), spoil_state(state, spoilt)


def finite_rows(*tensors):
    """Bool `[B, H, T, 1]`: `True` where every tensor's row is finite.

    Args:
        *tensors: tensors `[B, H or 1, T, anything]`.
    """
    finite = True
    for x in tensors:
        x = ops.stop_gradient(x)
        if x.shape[-1] > 1:  # a product is the cheapest way to test a row
            x = matmul(x, SMALL * ops.ones((x.shape[-1], 1), dtype=x.dtype))
        finite = ops.logical_and(finite, ops.isfinite(x))
    return finite


@backends.per_backend
def known_finite(*tensors):
    """Whether all numbers are finite; `False` where only the run time knows."""
    return False


def rows_after(finite, documents=None):
    """Bool `[B, H, T, 1]`: the rows from the first non-finite one on.

    With documents, up to the end of that row's document.
    """
    bad = ops.cast(ops.logical_not(finite), "int32")
    count = ops.cumsum(bad, axis=2)
    if documents is None:
        return count > 0
    return count > take_positions(count - bad, first_places(documents.query))


def rows_reached(finite, documents, causal):
    """Bool `[B, H, T, 1]`: the rows that attend to a non-finite one."""
    reached = rows_after(finite, documents)
    if causal:
        return reached
    before = rows_after(ops.flip(finite, 2), backwards(documents))
    return ops.logical_or(reached, ops.flip(before, 2))


def spoil_state(state, spoilt):
    """The state `[B, H, D, V]`, or NaN if the last row is `True`."""
    return nan_where(spoilt[:, :, -1:], state)


class Uncontained:
    """Heads as they are, for rows of one document."""

    def __init__(self, query, key, value):
        self.heads = query, key, value

    def spoil(self, x, *others):
        return x

    take_in = spoil_state = take_in_pieces = spoil


class Contained:
    """Heads of packed documents with non-finite rows set to 0.

    0 * NaN is NaN in the products of the backward pass too. NaN in one document
    would reach the gradients of others, even though outputs are selected.

    Args:
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, T, D]`.
        value: tensor `[B, H, T, V]`.
        documents: `Documents` of one sequence.
        causal: bool, whether a key reaches later queries only.

    Attributes:
        heads: query, key and value, 0 where they are not finite.
        spoilt: bool tensor `[B, H, T, 1]`, the queries whose output is NaN.
    """

    def __init__(self, query, key, value, documents, causal=True):
        self.documents = documents
        of_queries, of_keys = finite_rows(query), finite_rows(key, value)
        self.heads = (
            select(of_queries, query),
            select(of_keys, key),
            select(of_keys, value),
        )
        self.reached = rows_reached(of_keys, documents, causal)
        self.spoilt = ops.logical_or(self.reached, ops.logical_not(of_queries))

    def take_in_pieces(self, pieces, causal):
        """NaN that documents of this row have in the pieces of other devices.

        Args:
            pieces: `core.packed_pieces.PackedPieces`.
            causal: bool, see `Contained`.
        """
        reached = ops.cast(self.reached, "int32")
        nothing = ops.zeros_like(reached[:, :, :1])
        bad = pieces.before(reached[:, :, -1:], ops.maximum, nothing) > 0
        bad = ops.logical_and(bad, pieces.in_first)
        if not causal:
            own = ops.max(select(pieces.in_first, reached), 2, keepdims=True)
            after = pieces.after(own, ops.maximum, nothing) > 0
            bad = ops.logical_or(bad, ops.logical_and(after, pieces.in_last))
        self.reached = ops.logical_or(self.reached, bad)
        self.spoilt = ops.logical_or(self.spoilt, bad)

    def spoil(self, output):
        """Writes NaN into the output `[B, H, T, V]` where `spoilt`."""
        return nan_where(self.spoilt, output)

    def take_in(self, state):
        """A leaf of the state before, 0 if it is not finite; counts stay."""
        if not _is_sum(state):
            return state
        axes = tuple(range(2, len(state.shape)))
        finite = ops.all(ops.isfinite(state), axis=axes, keepdims=True)
        bad = ops.reshape(
            ops.logical_not(finite), (*ops.shape(state)[:2], 1, 1)
        )
        first = spread(self.documents.query == 0, rank=4, axis=2)
        bad = ops.logical_and(bad, first)
        self.reached = ops.logical_or(self.reached, bad)
        self.spoilt = ops.logical_or(self.spoilt, bad)
        return select(finite, state)

    def spoil_state(self, state):
        """A leaf of the state after, NaN if its document has such a row."""
        if not _is_sum(state):
            return state
        bad = self.reached[:, :, -1:]
        ones = [1] * (len(state.shape) - 2)
        bad = ops.reshape(bad, (*ops.shape(state)[:2], *ones))
        return nan_where(bad, state)


def _is_sum(state):
    """Whether a leaf is `[B, H, ...]` of floating point."""
    dtype = backend.standardize_dtype(state.dtype)
    return len(state.shape) > 2 and backend.is_float_dtype(dtype)
