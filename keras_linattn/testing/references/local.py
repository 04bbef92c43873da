"""Reference of local: softmax(Q K^T / sqrt D) V within a band."""

import numpy as np

from keras_linattn.testing.references._common import softmax
from keras_linattn.testing.references._common import transpose

CONFIGS = ({"window": 5}, {"window": 100, "skip_hidden": False})


def distances(mechanism, key_mask):
    """t - s, `[B, 1, T, S]`, in positions or in visible positions."""
    place = np.arange(key_mask.shape[1]) + np.zeros_like(key_mask, int)
    if mechanism.skip_hidden:
        place = np.cumsum(key_mask, axis=1) - key_mask
    return (place[:, :, None] - place[:, None, :])[:, None]


def near_pairs(mechanism, key_mask, causal):
    """Bool `[B, 1, T, S]`: which query sees which key."""
    near = np.abs(distances(mechanism, key_mask)) < mechanism.window
    if causal:
        near = np.tril(near)
    return near & key_mask[:, None, None, :]


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    scores = query @ transpose(key) / np.sqrt(key.shape[-1])
    return softmax(scores, -1, near_pairs(mechanism, key_mask, causal)) @ value
