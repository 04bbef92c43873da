"""Reference of mala: rows of phi(Q) phi(K)^T that sum to 1, and a covariance
mean_s (phi(q_t) . phi(k_s) / sqrt D) (v_s - v-bar), both of visible keys, plus
a depthwise convolution of V. tests/mechanisms/test_mala.py compares it with
the weights beta s - gamma of the paper, which lose digits at large sizes."""

import numpy as np

from keras_linattn.testing.references._common import log_kernel_weights
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._common import visible_pairs
from keras_linattn.testing.references._landmarks import convolve

CONFIGS = ({}, {"kernel_size": 3}, {"kernel_size": None})


def features(x):
    """elu(x) + 1."""
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def log_features(x):
    return np.where(x > 0, np.log1p(np.maximum(x, 0)), x)


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    visible = key_mask[:, None, :, None]
    hidden = np.where(visible, value, 0.0)
    pairs = visible_pairs(key_mask, query.shape[2], causal)
    plain = log_kernel_weights(log_features(query), log_features(key), pairs)
    count = np.maximum(visible.sum(axis=2, keepdims=True), 1)
    center = hidden.sum(axis=2, keepdims=True) / count
    spread = np.where(visible, value - center, 0.0) / count
    scores = features(query) @ transpose(features(key))
    scores = np.where(pairs, scores, 0.0) / np.sqrt(query.shape[-1])
    output = plain @ hidden + scores @ spread
    if mechanism.kernel_size is None:
        return output
    return output + convolve(hidden, weights["kernel"], mechanism.grid)
