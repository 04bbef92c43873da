"""Rules about the lengths of queries and keys, static and at run time."""

import math

from keras import ops

from keras_linattn.core.lengths import require_at_run_time
from keras_linattn.core.lengths import with_length_of


def check_known_lengths(mechanism, query, key, causal, received):
    """Raises a `ValueError` if known lengths break a rule.

    Args:
        mechanism: `Mechanism`.
        query: tuple, shape `[B, H, T, D]`; sizes may be `None`.
        key: tuple, shape `[B, H, S, D]`.
        causal: bool.
        received: str, the shapes, for the error.
    """
    lengths = {n for n in (query[2], key[2]) if isinstance(n, int)}
    # A length that JAX exports is no int, but knows what it differs from.
    differ = None not in (query[2], key[2]) and query[2] != key[2]
    if _of_one_length(mechanism, causal) and differ:
        raise ValueError(_not_as_long(mechanism, causal, received))
    for shape in _bounded(mechanism, query, key):
        if isinstance(shape[2], int) and shape[2] > mechanism.sequence_length:
            raise ValueError(_too_long(mechanism, received))
    grid = getattr(mechanism, "grid", None)
    if grid is not None and lengths - {math.prod(grid)}:
        raise ValueError(
            "The length must be that of the grid, rows * columns. "
            f"{received}, grid={tuple(grid)}. Pass the grid of the input, or "
            "`grid=None` for a sequence."
        )


def check_other_lengths(mechanism, query, key, value, causal):
    """The rules that `check_known_lengths` could not check, at run time.

    Args:
        mechanism: `Mechanism`.
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, S, D]`.
        value: tensor `[B, H, S, V]`.
        causal: bool.

    Returns:
        Key and value; where they must be as long as the query they are.
    """
    received = "Received: lengths that are known at run time only"
    if _of_one_length(mechanism, causal):
        rule = _not_as_long(mechanism, causal, received)
        key, value = with_length_of(query, [key, value], rule)
    for x in _bounded(mechanism, query, key):
        if x.shape[2] is None:
            fits = ops.shape(x)[2] <= mechanism.sequence_length
            require_at_run_time(fits, _too_long(mechanism, received))
    return key, value


def _of_one_length(mechanism, causal):
    return causal or not mechanism.traits.cross


def _bounded(mechanism, query, key):
    """Those of the two whose length `sequence_length` bounds."""
    traits = mechanism.traits
    if not traits.needs_length or mechanism.sequence_length is None:
        return ()
    return (query, key) if traits.positional else (key,)


def _not_as_long(mechanism, causal, received):
    rule = "Causal attention" if causal else f"`{type(mechanism).__name__}`"
    return (
        f"{rule} needs queries and keys of the same length. {received}. Use a "
        "mechanism with the trait `cross`, without a causal mask, for "
        "cross-attention."
    )


def _too_long(mechanism, received):
    return (
        f"`{type(mechanism).__name__}` takes inputs up to the length it was "
        f"built for, {mechanism.sequence_length}. {received}. Build it with a "
        "larger `sequence_length`, or use a mechanism without a longest "
        "input, such as 'modified_linformer'."
    )
