"""Causal kernel attention."""

from keras_linattn.core import backends
from keras_linattn.core.products import append_ones
from keras_linattn.core.products import causal_product
from keras_linattn.core.products import divide_by_last


@backends.with_fast_forms
def attend_causally(query, key, value, state=None):
    """Kernel attention over s <= t, in chunks.

    Args:
        query: tensor `[B, H, T, R]`, features.
        key: tensor `[B, H, T, R]`, features, 0 where masked.
        value: tensor `[B, H, T, V]`.
        state: tensor `[B, H, R, V + 1]` or `None`, see `causal_product`.

    Returns:
        The output `[B, H, T, V]`, and the state after the last position.
    """
    summed, state = causal_product(query, key, append_ones(value), state)
    return divide_by_last(summed), state
