"""Reference of lara at inference: sum over landmarks c and keys s of
softmax_c(log r_tc) softmax_s(log p(k_s, w_c)) v_s, an explicit matrix.

One sequence and head at a time, with the landmarks that do not exist removed.
"""

import numpy as np

from keras_linattn.testing.references._common import softmax
from keras_linattn.testing.references._landmarks import landmark_means

CONFIGS = (
    {},
    {"num_landmarks": 4, "alpha_coefficient": 0.5, "seed": 3},
    {"num_landmarks": 4, "noise_stddev": 2.0, "antithetic": True},
)


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    count, grid = mechanism.num_landmarks, mechanism.grid
    queries, query_exists = landmark_means(query, count, query_mask, grid)
    keys, key_exists = landmark_means(key, count, key_mask, grid)
    queries = mapped(queries, weights, "query")
    keys = mapped(keys, weights, "key")
    output = np.zeros((*query.shape[:3], value.shape[3]))
    for row, head in np.ndindex(query.shape[:2]):
        exist = query_exists[row] & key_exists[row]
        visible = key_mask[row]
        if exist.any():
            matrix = explicit_matrix(
                query[row, head],
                key[row, head][visible],
                queries[row, head][exist],
                keys[row, head][exist],
                mechanism.alpha_coefficient,
            )
            output[row, head] = matrix @ value[row, head][visible]
    return output


def mapped(x, weights, side):
    x = x @ weights[f"{side}_kernel"] + weights[f"{side}_bias"]
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-5)
    return x * weights[f"{side}_scale"] + weights[f"{side}_offset"]


def log_p(x, w):
    """`[points, samples]`."""
    root = np.sqrt(x.shape[-1])
    return x @ w.T / root - np.square(x).sum(-1, keepdims=True) / (2 * root)


def explicit_matrix(query, key, queries, keys, coefficient):
    """`[T, S]`, for one sequence and head."""
    mu = w = queries + keys
    at_means = log_p(mu, w)  # [mean, sample]
    at_keys = log_p(key, w)
    own = np.diag(at_means)
    t = softmax(query @ queries.T / np.sqrt(query.shape[-1]), -1)
    alpha = np.exp(own - log_sum(at_means))
    alpha = alpha + coefficient * (t - t.mean(axis=-1, keepdims=True))
    ratio = np.log(np.maximum(alpha, 1e-8)) + log_p(query, w)
    ratio = ratio + log_sum(at_keys) - own
    return softmax(ratio, -1) @ softmax(at_keys, 0).T


def log_sum(x):
    """log sum exp over the points."""
    largest = x.max(axis=0)
    return np.log(np.exp(x - largest).sum(axis=0)) + largest
