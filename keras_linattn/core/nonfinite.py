"""Keeps NaN and infinity from reaching earlier positions or other documents.

A chunked product multiplies future rows by 0, and 0 * NaN is NaN. Rows that are
not finite are therefore set to 0 first. Afterwards NaN is written into every
row of the output that a causal product would make NaN.
"""

from keras import backend
from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.documents import backwards
from keras_linattn.core.documents import first_places
from keras_linattn.core.masks import expand_to_rank
from keras_linattn.core.masks import nan_where
from keras_linattn.core.masks import select
from keras_linattn.core.masks import take_positions
from keras_linattn.core.numerics import matmul

SMALL = 2.0**-32  # so scaled, finite numbers have a finite sum


@backends.with_fast_forms
def run_sanitized(function, *tensors, documents=None):
    """Runs a causal function on finite rows, then writes NaN where it belongs.

    NaN cannot reach earlier positions. With documents, NaN in one document
    cannot reach another.

    Args:
        function: callable of the tensors that returns an output
            `[B, H, T, V]` and a state `[B, H, D, V]`.
        *tensors: tensors `[B, H or 1, T, anything]`.
        documents: `Documents` or `None`. Defaults to `None`: each row is
            one document.

    Returns:
        Output and state. In each document the output is NaN from the first
        row that is not finite. The state is NaN if the last document has
        such a row.
    """
    finite = finite_rows(*tensors)
    clean = (select(finite, x) for x in tensors)
    output, state = function(*clean)
    nan_rows = rows_after(finite, documents)
    return nan_where(nan_rows, output), nan_where(nan_rows[:, :, -1:], state)


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
    """Whether all numbers are finite; `False` where only a run can tell."""
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


class NotSanitized:
    """Heads that stay unchanged, with the interface of `Sanitized`."""

    def __init__(self, query, key, value):
        self.heads = query, key, value

    def write_nan(self, x, *others):
        return x

    sanitize_state = write_nan_into_state = include_pieces = write_nan


class Sanitized:
    """Heads of packed documents with non-finite rows set to 0.

    In the backward pass, too, 0 * NaN is NaN. Without the zeros, NaN in one
    document would reach the gradients of the others, even if the outputs are
    selected.

    Args:
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, T, D]`.
        value: tensor `[B, H, T, V]`.
        documents: `Documents` of one sequence.
        causal: bool, whether a query sees earlier keys only. Defaults to
            `True`.

    Attributes:
        heads: query, key and value, 0 where they are not finite.
        nan_rows: bool tensor `[B, H, T, 1]`, the queries whose output is NaN.
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
        self.nan_rows = ops.logical_or(
            self.reached, ops.logical_not(of_queries)
        )

    def include_pieces(self, pieces, causal):
        """Adds the non-finite rows that other devices hold of the documents.

        Args:
            pieces: `core.packed_pieces.PackedPieces`.
            causal: bool, see `Sanitized`.
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
        self.nan_rows = ops.logical_or(self.nan_rows, bad)

    def write_nan(self, output):
        """Writes NaN into the output `[B, H, T, V]` in `nan_rows`."""
        return nan_where(self.nan_rows, output)

    def sanitize_state(self, state):
        """Sets a leaf of the previous state to 0 if it is not finite.

        Leaves that are counts stay unchanged.
        """
        if not _is_sum(state):
            return state
        axes = tuple(range(2, len(state.shape)))
        finite = ops.all(ops.isfinite(state), axis=axes, keepdims=True)
        bad = ops.reshape(
            ops.logical_not(finite), (*ops.shape(state)[:2], 1, 1)
        )
        first = expand_to_rank(self.documents.query == 0, rank=4, axis=2)
        bad = ops.logical_and(bad, first)
        self.reached = ops.logical_or(self.reached, bad)
        self.nan_rows = ops.logical_or(self.nan_rows, bad)
        return select(finite, state)

    def write_nan_into_state(self, state):
        """Sets a leaf of the next state to NaN after a non-finite row."""
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
