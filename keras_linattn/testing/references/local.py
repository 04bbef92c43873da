"""Reference of local: softmax(Q K^T / sqrt D) V within a band."""

import numpy as np

from keras_linattn.testing.references._common import softmax
from keras_linattn.testing.references._common import transpose

CONFIGS = ({"window": 5}, {"window": 100, "skip_hidden": False})


def distances(mechanism, key_mask):
    """From s to t, `[B, T, S]`, in positions or in visible positions."""
    place = np.arange(key_mask.shape[1]) + np.zeros_like(key_mask, int)
    after = place + 1
    if mechanism.skip_hidden:
        after = np.cumsum(key_mask, axis=1)
        place = after - key_mask
    back = place[:, :, None] - place[:, None, :]
    forth = place[:, None, :] - after[:, :, None] + 1
    earlier = np.tril(np.ones(back.shape[1:], bool))
    return np.where(earlier, back, forth)


def near_pairs(mechanism, key_mask, causal):
    """Bool `[B, 1, T, S]`: which query sees which key."""
    near = distances(mechanism, key_mask)[:, None] < mechanism.window
    if causal:
        near = np.tril(near)
    return near & key_mask[:, None, None, :]


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    scores = query @ transpose(key) / np.sqrt(key.shape[-1])
    return softmax(scores, -1, near_pairs(mechanism, key_mask, causal)) @ value
