"""Reference of retention: S_t = gamma_h S_(t-1) + k_t^T v_t."""

import numpy as np

from keras_linattn.testing.references import _state

CONFIGS = ({}, {"output_norm": False})


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    heads, _, key_dim = query.shape[1:]
    gamma = 1 - 2.0 ** (-5 - np.arange(heads))
    decay = np.broadcast_to(gamma[:, None, None], (*query.shape[:3], 1))
    query = query / np.sqrt(key_dim)
    output = _state.loop(query, key, value, decay, _state.add, key_mask)
    return _state.normalise(mechanism, output)
