"""Reference of hedgehog: phi(Q) phi(K)^T with its rows summing to 1,
phi(x) = softmax([x W, -x W])."""

import numpy as np

from keras_linattn.testing.references._common import normalise
from keras_linattn.testing.references._common import softmax
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._common import visible_pairs

CONFIGS = ({}, {"tied": True})


def features(x, weight):
    x = x @ weight
    features = softmax(np.concatenate([x, -x], axis=-1), -1)
    return np.maximum(features, 1e-12)


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    name = "query_map" if mechanism.tied else "key_map"
    query = features(query, weights["query_map"])
    key = features(key, weights[name])
    pairs = visible_pairs(key_mask, query.shape[2], causal)
    return normalise(np.where(pairs, query @ transpose(key), 0.0)) @ value
