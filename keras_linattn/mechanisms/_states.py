"""States of mechanisms: kept in `state_dtype`, summed up in a wider one."""

from keras import backend
from keras import ops
from keras import tree

STATE_DTYPES = ("float16", "bfloat16", "float32", "float64")


def check_state_dtype(dtype):
    """The name of a dtype that states may have; `None` stays.

    Raises:
        ValueError: if it is no dtype of floating point.
    """
    try:
        name = None if dtype is None else backend.standardize_dtype(dtype)
    except ValueError:
        name = dtype
    if name is not None and name not in STATE_DTYPES:
        raise ValueError(
            "`state_dtype` must be `None` or one of "
            f"{', '.join(map(repr, STATE_DTYPES))}. "
            f"Received: state_dtype={dtype!r}. Leave it out for states in the "
            "dtype of the sums."
        )
    return name


def widened(state, spec, dtype):
    """The leaves of a state as `spec` orders them, those of numbers in `dtype`.

    Args:
        state: tree of tensors.
        spec: tree of `keras.KerasTensor`, from `state_spec`.
        dtype: str, in which sums are taken.

    Returns:
        Tree of tensors, with the structure of `spec`.

    Raises:
        ValueError: if the state has another number of leaves.
        TypeError: if a leaf is an integer or a bool where `spec` has a number
            of floating point, or the other way round.
    """
    leaves, wanted = tree.flatten(state), tree.flatten(spec)
    if len(leaves) != len(wanted):
        raise ValueError(
            f"A state of this mechanism must have {len(wanted)} tensors. "
            f"Received: {len(leaves)}. Start with its `initial_state`."
        )
    for leaf, entry in zip(leaves, wanted):
        if _is_float(leaf) != _is_float(entry):
            raise TypeError(
                f"This tensor of a state must have dtype {entry.dtype}. "
                f"Received: dtype {backend.standardize_dtype(leaf.dtype)}, "
                f"shape {tuple(leaf.shape)}. Start with the mechanism's "
                "`initial_state`, or convert with `keras.ops.cast`."
            )
    leaves = [_cast(x, dtype) if _is_float(x) else x for x in leaves]
    return tree.pack_sequence_as(spec, leaves)


def stored(state, spec):
    """A state in the dtypes of its spec."""
    leaves = zip(tree.flatten(state), tree.flatten(spec))
    leaves = [_cast(leaf, entry.dtype) for leaf, entry in leaves]
    return tree.pack_sequence_as(spec, leaves)


def _is_float(x):
    return backend.is_float_dtype(backend.standardize_dtype(x.dtype))


def _cast(x, dtype):
    same = backend.standardize_dtype(x.dtype) == dtype
    return x if same else ops.cast(x, dtype)
