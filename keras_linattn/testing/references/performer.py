"""Reference of performer: sum over r of phi_r(q_t) phi_r(k_s) formed
explicitly, phi_r(x) = exp(w_r . u - |u|^2 / 2), u = x / D^(1/4)."""

import numpy as np

from keras_linattn.testing.references._common import normalise
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._common import visible_pairs

CONFIGS = ({}, {"num_features": 7, "seed": 3})


def features(x, projection):
    x = x / x.shape[-1] ** 0.25
    half_norm = np.sum(x**2, axis=-1, keepdims=True) / 2
    exponents = x @ projection.T - half_norm
    return np.exp(exponents) / np.sqrt(len(projection))


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    query, key = (features(x, weights["projection"]) for x in (query, key))
    pairs = visible_pairs(key_mask, query.shape[2], causal)
    return normalise(np.where(pairs, query @ transpose(key), 0.0)) @ value
