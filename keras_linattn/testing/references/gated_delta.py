"""Reference of gated_delta: the delta rule on a state that fades first."""

import numpy as np

from keras_linattn.testing.references import _state
from keras_linattn.testing.references.delta_rule import write_strength

CONFIGS = (
    {},
    {
        "output_norm": False,
        "activation": None,
        "scale": 0.5,
        "epsilon": 2.0**-20,
    },
)


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    write = _state.delta(write_strength(weights, query))
    logits = _state.side_by_side(query) @ weights["decay_kernel"]
    steps = np.logaddexp(0, logits + weights["decay_bias"])
    decay = np.exp(-np.exp(weights["log_rate"]) * steps)
    decay = np.swapaxes(decay, 1, 2)[..., None]
    query, key = (_state.unit_rows(mechanism, x) for x in (query, key))
    query = mechanism.scale * query
    output = _state.loop(query, key, value, decay, write, key_mask)
    return _state.normalise(mechanism, output)
