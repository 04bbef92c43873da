"""Reference of modified_linformer, as an explicit `[T, S]` matrix times V.

A = softmax_S(K); factorised: softmax_D(Q) A^T; projected:
softmax(Q (A^T K)^T / sqrt D) A^T.
"""

import numpy as np

from keras_linattn.testing.references._common import softmax
from keras_linattn.testing.references._common import transpose

CONFIGS = ({}, {"reading": "projected"})


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    if causal:
        return attend_causally(query, key, value, key_mask)
    visible = key_mask[:, None, :, None]
    where = transpose(softmax(key, 2, visible))  # A^T, [B, H, D, S]
    if mechanism.reading == "factorised":
        return (softmax(query, -1) @ where) @ value
    summary = where @ np.where(visible, key, 0.0)
    scores = query @ transpose(summary) / np.sqrt(key.shape[-1])
    return (softmax(scores, -1) @ where) @ value


def attend_causally(query, key, value, key_mask):
    """The factorised reading anew for each position, on the keys up to it."""
    rows = []
    for t in range(query.shape[2]):
        visible = key_mask[:, None, : t + 1, None]
        where = transpose(softmax(key[:, :, : t + 1], 2, visible))
        summary = where @ value[:, :, : t + 1]
        rows.append(softmax(query[:, :, t : t + 1], -1) @ summary)
    return np.concatenate(rows, axis=2)
