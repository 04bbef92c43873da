"""Reference of softmax: softmax(Q K^T / sqrt D) V."""

import numpy as np

from keras_linattn.testing.references._common import softmax
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._common import visible_pairs

CONFIGS = ({}, {"cache_length": 200})


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    scores = query @ transpose(key) / np.sqrt(key.shape[-1])
    pairs = visible_pairs(key_mask, query.shape[2], causal)
    return softmax(scores, -1, pairs) @ value
