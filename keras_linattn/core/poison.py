"""Non-finite numbers that spoil what follows them, and nothing before.

In a chunked product the future is multiplied by 0, and 0 * NaN is NaN. So
rows that are not finite are taken out first, and NaN is written into every
later row of the result.
"""

from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.documents import first_places
from keras_linattn.core.masks import take_positions
from keras_linattn.core.numerics import matmul

SMALL = 2.0**-32  # times it, no row of finite numbers has an infinite sum


@backends.with_fast_forms
def run_contained(function, *tensors, documents=None):
    """A causal function whose future cannot reach its past.

    Nor, with documents, one of them another.

    Args:
        function: callable of the tensors that returns an output
            `[B, H, T, V]` and a state `[B, H, D, V]`.
        *tensors: tensors `[B, H or 1, T, anything]`.
        documents: `Documents`, or `None`, its default: each row is one.

    Returns:
        Output and state, NaN from the first row on that is not finite.
    """
    finite = finite_rows(*tensors)
    clean = (ops.where(finite, x, ops.zeros_like(x)) for x in tensors)
    output, state = function(*clean)
    spoilt = rows_after(finite, documents)
    output = ops.where(spoilt, ops.cast(float("nan"), output.dtype), output)
    return output, spoil_state(state, spoilt)


def finite_rows(*tensors):
    """Bool `[B, H, T, 1]`: `True` where every tensor's row is finite.

    Args:
        *tensors: tensors `[B, H or 1, T, anything]`.
    """
    finite = True
    for x in tensors:
        x = ops.stop_gradient(x)
        if x.shape[-1] > 1:  # a product is the cheapest way to test a row
            x = matmul(x, ops.full((x.shape[-1], 1), SMALL, dtype=x.dtype))
        finite = ops.logical_and(finite, ops.isfinite(x))
    return finite


def rows_after(finite, documents=None):
    """Bool `[B, H, T, 1]`: the rows from the first bad one on.

    With documents, to the end of the bad row's own.
    """
    bad = ops.cast(ops.logical_not(finite), "int32")
    count = ops.cumsum(bad, axis=2)
    if documents is None:
        return count > 0
    return count > take_positions(count - bad, first_places(documents.query))


def spoil_state(state, spoilt):
    """NaN in the state `[B, H, D, V]` if it is that of a bad row."""
    nan = ops.cast(float("nan"), state.dtype)
    return ops.where(spoilt[:, :, -1:], nan, state)
