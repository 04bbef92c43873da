"""Reference of performer: sum over r of phi_r(q_t) phi_r(k_s) formed
explicitly, phi_r(x) = exp(w_r . u - |u|^2 / 2), u = x / D^(1/4)."""

from keras_linattn.testing.references._common import log_kernel_weights
from keras_linattn.testing.references._common import visible_pairs

CONFIGS = ({}, {"num_features": 7, "seed": 3})


def exponents(x, projection):
    x = x / x.shape[-1] ** 0.25
    return x @ projection.T - (x**2).sum(axis=-1, keepdims=True) / 2


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    query, key = (exponents(x, weights["projection"]) for x in (query, key))
    pairs = visible_pairs(key_mask, query.shape[2], causal)
    return log_kernel_weights(query, key, pairs) @ value
