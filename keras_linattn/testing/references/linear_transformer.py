"""Reference of linear_transformer: phi(Q) phi(K)^T V with its rows summing
to 1, phi = elu + 1 or relu."""

import numpy as np

from keras_linattn.testing.references._common import log_kernel_weights
from keras_linattn.testing.references._common import normalise
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._common import visible_pairs

CONFIGS = ({}, {"feature_map": "relu"})


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    pairs = visible_pairs(key_mask, query.shape[2], causal)
    if mechanism.feature_map is not None:
        query, key = np.maximum(query, 0), np.maximum(key, 0)
        return normalise(pairs * (query @ transpose(key))) @ value
    return log_kernel_weights(log_phi(query), log_phi(key), pairs) @ value


def log_phi(x):
    """log(elu(x) + 1)."""
    return np.where(x > 0, np.log1p(np.maximum(x, 0)), x)
