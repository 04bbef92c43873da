"""Reference of taylor: 1 + x + x^2 / 2 of x = Q K^T / sqrt D, with its rows
summing to 1."""

import numpy as np

from keras_linattn.testing.references._common import normalise
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._common import visible_pairs

CONFIGS = ({},)


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    x = query @ transpose(key) / np.sqrt(key.shape[-1])
    pairs = visible_pairs(key_mask, query.shape[2], causal)
    return normalise(np.where(pairs, 1 + x + x**2 / 2, 0.0)) @ value
