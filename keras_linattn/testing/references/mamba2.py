"""Reference of mamba2: S_t = a_t S_(t-1) + dt_t k_t^T v_t, and D v_t."""

import numpy as np

from keras_linattn.testing.references import _state

CONFIGS = ({}, {"output_norm": False})


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    logits = _state.side_by_side(query) @ weights["step_kernel"]
    steps = np.logaddexp(0, logits + weights["step_bias"])  # [B, T, H]
    decay = np.exp(-np.exp(weights["log_rate"]) * steps)
    steps, decay = (np.swapaxes(x, 1, 2)[..., None] for x in (steps, decay))
    written = key * steps
    output = _state.loop(query, written, value, decay, _state.add, key_mask)
    seen = np.where(key_mask[:, None, :, None], value, 0)
    output = output + weights["skip"][:, None, None] * seen
    return _state.normalise(mechanism, output)
