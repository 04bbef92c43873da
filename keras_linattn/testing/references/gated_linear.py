"""Reference of gated_linear: S_t = diag(a_t) S_(t-1) + k_t^T v_t."""

import numpy as np

from keras_linattn.testing.references import _state

CONFIGS = (
    {},
    {"output_norm": False, "gate_rank": 3, "temperature": 0.5},
)


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    low = _state.side_by_side(query) @ weights["down"]
    logits = np.einsum("btr,rhd->bhtd", low, weights["up"]) + weights["bias"]
    decay = _state.sigmoid(logits) ** (1 / mechanism.temperature)
    decay = np.maximum(decay, np.exp(-4.0))
    query = query / np.sqrt(query.shape[3])
    output = _state.loop(query, key, value, decay, _state.add, key_mask)
    return _state.normalise(mechanism, output)
