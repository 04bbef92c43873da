"""Reference of hybrid_window: exponentials of scores within a band, products
of features beyond it, and rows that sum to 1."""

import numpy as np

from keras_linattn.testing.references._common import normalise
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._common import visible_pairs
from keras_linattn.testing.references.hedgehog import features
from keras_linattn.testing.references.local import near_pairs

CONFIGS = (
    {"window": 2},
    {"window": 3, "skip_hidden": False, "tied": True, "least_score": 2.0},
)


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    near = near_pairs(mechanism, key_mask, causal)
    far = visible_pairs(key_mask, query.shape[2], causal) & ~near
    scores = query @ transpose(key) / np.sqrt(key.shape[-1])
    scores = np.where(near, scores, -np.inf)
    largest = scores.max(axis=-1, keepdims=True, initial=-1e300)
    exact = np.exp(scores - largest)
    exact = exact / (1 + np.exp(-weights["window_factor"][:, None, None]))
    if mechanism.least_score is not None:
        excess = np.clip(largest - mechanism.least_score, -60, 0)
        exact = exact * np.exp(excess)
    name = "query_map" if mechanism.tied else "key_map"
    query = features(query, weights["query_map"])
    key = features(key, weights[name])
    linear = np.where(far, query @ transpose(key), 0.0)
    return normalise(exact + linear) @ value
