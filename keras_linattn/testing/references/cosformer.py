"""Reference of cosformer: relu(Q) relu(K)^T weighted by the cosine of the
distance, cos(pi (t - s) / 2M), formed explicitly."""

import numpy as np

from keras_linattn.testing.references._common import normalise
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._common import visible_pairs

CONFIGS = ({}, {"sequence_length": 5000})


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    similarity = np.maximum(query, 0) @ transpose(np.maximum(key, 0))
    distance = np.subtract.outer(
        np.arange(query.shape[2]), np.arange(key.shape[2])
    )
    nearness = np.cos(np.pi * distance / (2 * mechanism.sequence_length))
    pairs = visible_pairs(key_mask, query.shape[2], causal)
    return normalise(np.where(pairs, similarity * nearness, 0.0)) @ value
