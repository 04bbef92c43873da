"""Rules about shapes and lengths of heads, static and at run time."""

import math

from keras import ops

from keras_linattn.core.lengths import require_at_run_time
from keras_linattn.core.lengths import with_length_of


def check_heads(mechanism, query, key, value, causal, packed=False):
    """Raises a `ValueError` if heads of these shapes cannot be attended.

    Args: see `Mechanism.check_call`.
    """
    received = (
        f"Received: query shape {tuple(query)}, key shape {tuple(key)}, "
        f"value shape {tuple(value)}"
    )
    if not len(query) == len(key) == len(value) == 4:
        raise ValueError(
            "A mechanism works on heads `[B, H, T, D]`, of rank 4. "
            f"{received}. The layers split heads for you."
        )
    if _differ(query[-1], key[-1]) or _differ(key[2], value[2]):
        raise ValueError(
            "`query` and `key` must have the same last dimension, `key` "
            f"and `value` the same length. {received}."
        )
    if mechanism.traits.equal_dims and _differ(key[-1], value[-1]):
        raise ValueError(
            f"`{type(mechanism).__name__}` needs values with as many features "
            f"as keys. {received}. Leave `value_dim` out, or set it to "
            "`key_dim`."
        )
    if causal and not mechanism.traits.causal:
        raise ValueError(
            f"`{type(mechanism).__name__}` has no exact causal form in linear "
            f"time. {received}, causal=True. Use a mechanism with the "
            "trait `causal`, such as 'linear_transformer'."
        )
    if not causal and not mechanism.traits.bidirectional:
        raise ValueError(
            f"`{type(mechanism).__name__}` attends causally only: each "
            f"position reads the state of those before it. {received}, "
            "causal=False. "
            "Pass `causal=True` to `LinearSelfAttention`, "
            "`use_causal_mask=True` to `LinearMultiHeadAttention`, or use "
            "another mechanism."
        )
    check_known_lengths(mechanism, query, key, causal, received, packed)


def _differ(size, other):
    return size is not None and other is not None and size != other


def check_known_lengths(mechanism, query, key, causal, received, packed=False):
    """Raises a `ValueError` if known lengths break a rule.

    Args:
        mechanism: `Mechanism`.
        query: tuple, shape `[B, H, T, D]`; sizes may be `None`.
        key: tuple, shape `[B, H, S, D]`.
        causal: bool.
        received: str, the shapes, for the error.
        packed: bool, whether rows have several documents. Then only the length
            of a document is bounded. Defaults to `False`.
    """
    lengths = {n for n in (query[2], key[2]) if isinstance(n, int)}
    # JAX exports a length as a symbol, which compares but is not an int.
    differ = None not in (query[2], key[2]) and query[2] != key[2]
    if _of_one_length(mechanism, causal) and differ:
        raise ValueError(_not_as_long(mechanism, causal, received))
    for shape in _bounded(mechanism, query, key, packed):
        if isinstance(shape[2], int) and shape[2] > mechanism.sequence_length:
            raise ValueError(_too_long(mechanism, received))
    grid = getattr(mechanism, "grid", None)
    if grid is not None and lengths - {math.prod(grid)}:
        raise ValueError(
            "The length must be that of the grid, rows * columns. "
            f"{received}, grid={tuple(grid)}. Pass the grid of the input, or "
            "`grid=None` for a sequence."
        )


def check_other_lengths(mechanism, query, key, value, causal, packed=False):
    """The rules that `check_known_lengths` could not check, at run time.

    Args:
        mechanism: `Mechanism`.
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, S, D]`.
        value: tensor `[B, H, S, V]`.
        causal: bool.
        packed: bool, see `check_known_lengths`.

    Returns:
        Key and value; where they must be as long as the query they are.
    """
    received = "Received: lengths that are known at run time only"
    if _of_one_length(mechanism, causal):
        rule = _not_as_long(mechanism, causal, received)
        key, value = with_length_of(query, [key, value], rule)
    for x in _bounded(mechanism, query, key, packed):
        if x.shape[2] is None:
            fits = ops.shape(x)[2] <= mechanism.sequence_length
            require_at_run_time(fits, _too_long(mechanism, received))
    return key, value


def _of_one_length(mechanism, causal):
    return causal or not mechanism.traits.cross


def _bounded(mechanism, query, key, packed):
    """Those of the two whose length `sequence_length` bounds."""
    traits = mechanism.traits
    if packed or not traits.needs_length or mechanism.sequence_length is None:
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
