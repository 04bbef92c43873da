"""Non-finite numbers that spoil what follows them, and nothing before.

In a chunked product the future is multiplied by 0, and 0 * NaN is NaN. So
rows that are not finite are taken out first, and NaN is written into every
later row of the result.
"""

from keras import ops


def run_contained(function, *tensors):
    """A causal function whose future cannot reach its past.

    Args:
        function: callable of the tensors that returns an output
            `[B, H, T, V]` and a state `[B, H, D, V]`.
        *tensors: tensors `[B, H or 1, T, anything]`.

    Returns:
        Output and state, NaN from the first row on that is not finite.
    """
    finite = finite_rows(*tensors)
    clean = (ops.where(finite, x, ops.zeros_like(x)) for x in tensors)
    output, state = function(*clean)
    return spoil_rows(output, finite), spoil_state(state, finite)


def finite_rows(*tensors):
    """Bool `[B, H, T, 1]`: `True` where every tensor's row is finite.

    Args:
        *tensors: tensors `[B, H or 1, T, anything]`.
    """
    finite = True
    for x in tensors:
        row = ops.all(ops.isfinite(x), axis=-1, keepdims=True)
        finite = ops.logical_and(finite, row)
    return finite


def spoil_rows(output, finite):
    """NaN in every row of `output` `[B, H, T, V]` from the first bad one on."""
    bad = ops.cast(ops.logical_not(finite), "int32")
    spoilt = ops.cumsum(bad, axis=2) > 0
    return ops.where(spoilt, ops.cast(float("nan"), output.dtype), output)


def spoil_state(state, finite):
    """NaN in the state `[B, H, D, V]` if any row was bad."""
    clean = ops.all(finite, axis=2, keepdims=True)
    return ops.where(clean, state, ops.cast(float("nan"), state.dtype))
