"""Causal kernel attention."""

from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.documents import starts_of
from keras_linattn.core.products import append_ones
from keras_linattn.core.products import causal_product
from keras_linattn.core.products import divide_by_last


@backends.with_fast_forms
def attend_causally(query, key, value, state=None, documents=None):
    """Kernel attention over s <= t, in chunks.

    Args:
        query: tensor `[B, H, T, R]`, features.
        key: tensor `[B, H, T, R]`, features, 0 where masked.
        value: tensor `[B, H, T, V]`.
        state: tensor `[B, H, R, V + 1]` or `None`, see `causal_product`.
        documents: `Documents`, or `None`, its default: each row is one.

    Returns:
        The output `[B, H, T, V]`, and the state after the last position.
    """
    if state is None:
        sizes = (*ops.shape(key)[:2], key.shape[3], value.shape[3] + 1)
        state = ops.zeros(sizes, key.dtype)
    tensors = query, key, value
    if documents is not None:
        tensors = (*tensors, starts_of(documents))
    return run_in_segments(attend_in_chunks, state, tensors)


def attend_in_chunks(state, query, key, value, starts=None):
    """`attend_causally` for all positions together."""
    value = append_ones(value)
    summed, state = causal_product(query, key, value, state, starts=starts)
    return divide_by_last(summed), state


@backends.with_fast_forms
def run_in_segments(function, state, tensors):
    """A causal function that carries a state, possibly segment by segment.

    Args:
        function: callable `(state, *tensors)` that returns the output
            `[B, H, T, V]` and the state after the last position. A backend
            caches what it compiles for a module's function, not for a method.
        state: tensor.
        tensors: tensors `[B or 1, H or 1, T, anything]`. Positions of zeros
            must leave the state as it is.

    Returns:
        The output and the state.
    """
    return function(state, *tensors)
