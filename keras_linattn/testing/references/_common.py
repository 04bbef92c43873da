"""What the references share."""

import numpy as np


def visible_pairs(key_mask, queries, causal):
    """Bool `[B, 1, T, S]`: which query sees which key."""
    keys = key_mask.shape[1]
    pairs = np.ones((queries, keys), bool)
    if causal:
        pairs = np.tril(pairs)
    return pairs[None, None] & key_mask[:, None, None, :]


def softmax(x, axis, visible=True):
    """Softmax over the visible entries of `axis`, all 0 where none is."""
    visible = np.broadcast_to(visible, x.shape)
    x = np.where(visible, x, -np.inf)
    largest = np.max(x, axis=axis, keepdims=True, initial=-1e300)
    weights = np.where(visible, np.exp(x - largest), 0.0)
    return normalise(weights, axis)


def normalise(weights, axis=-1):
    """Divides by the sum along `axis`; all 0 where it is 0."""
    total = weights.sum(axis=axis, keepdims=True)
    return weights / np.where(total == 0, 1.0, total)


def log_kernel_weights(query, key, pairs):
    """Rows of phi(Q) phi(K)^T that sum to 1, from log phi: none underflows."""
    weights = np.zeros((*query.shape[:3], key.shape[2]))
    for s in range(key.shape[2]):  # no array [T, S, R]
        x = query + key[:, :, s, None]
        largest = x.max(axis=-1)
        total = np.exp(x - largest[..., None]).sum(axis=-1)
        weights[..., s] = largest + np.log(total)
    return softmax(weights, -1, pairs)


def transpose(x):
    return np.swapaxes(x, -1, -2)
