"""Reference of imhsa: A'_Q A'_K V as an explicit `[T, S]` matrix, where A' is
softmax attention to or from landmarks, mixed over the heads."""

import numpy as np

from keras_linattn.testing.references._common import softmax
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._landmarks import landmark_means

CONFIGS = ({}, {"num_landmarks": 4})


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    count, grid = mechanism.num_landmarks, mechanism.grid
    queries, query_exists = landmark_means(query, count, query_mask, grid)
    keys, key_exists = landmark_means(key, count, key_mask, grid)
    exist = (query_exists & key_exists)[:, None, None, :]
    root = np.sqrt(key.shape[-1])
    visible = key_mask[:, None, None, :]
    to = softmax(query @ transpose(keys) / root, -1, exist)
    back = softmax(queries @ transpose(key) / root, -1, visible)
    to = mix(weights["query_mixing"], to)
    back = mix(weights["key_mixing"], back)
    hidden = np.where(key_mask[:, None, :, None], value, 0.0)
    return (to @ back) @ hidden


def mix(mixing, maps):
    return np.einsum("hg,bgts->bhts", mixing, maps)
