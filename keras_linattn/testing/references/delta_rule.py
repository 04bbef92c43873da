"""Reference of delta_rule: S_t = S_(t-1) - beta_t k_t^T (k_t S_(t-1) - v_t)."""

import numpy as np

from keras_linattn.testing.references import _state

CONFIGS = (
    {},
    {
        "output_norm": False,
        "activation": None,
        "scale": 0.5,
        "epsilon": 2.0**-20,
    },
)


def write_strength(weights, query):
    """beta `[B, H, T]`."""
    inputs = _state.side_by_side(query)
    logits = inputs @ weights["beta_kernel"] + weights["beta_bias"]
    return np.swapaxes(_state.sigmoid(logits), 1, 2)


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    write = _state.delta(write_strength(weights, query))
    query, key = (_state.unit_rows(mechanism, x) for x in (query, key))
    query = mechanism.scale * query
    none = np.ones((*query.shape[:3], 1))
    output = _state.loop(query, key, value, none, write, key_mask)
    return _state.normalise(mechanism, output)
