"""Reference of nystromformer: softmax(Q K~^T) Z softmax(Q~ K^T) V, all scores
/ sqrt D, as an explicit `[T, S]` matrix; Z after the stated number of steps.

The empty landmarks are removed here, not masked, one sequence at a time.
"""

import numpy as np

from keras_linattn.testing.references._common import softmax
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._landmarks import convolve
from keras_linattn.testing.references._landmarks import landmark_means

CONFIGS = (
    {},
    {"num_landmarks": 3},
    {"num_landmarks": 4, "num_iterations": 3, "kernel_size": 5},
)


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    count = mechanism.num_landmarks
    queries, query_exists = landmark_means(query, count, query_mask)
    keys, key_exists = landmark_means(key, count, key_mask)
    output = np.zeros((*query.shape[:3], value.shape[3]))
    hidden = np.where(key_mask[:, None, :, None], value, 0.0)
    for row, head in np.ndindex(query.shape[:2]):
        if key_mask[row].any() and query_mask[row].any():
            matrix = explicit_matrix(
                query[row, head],
                key[row, head],
                queries[row, head][query_exists[row]],
                keys[row, head][key_exists[row]],
                key_mask[row],
                mechanism.num_iterations,
            )
            output[row, head] = matrix @ hidden[row, head]
    if mechanism.kernel_size is not None:
        kernel = np.repeat(weights["kernel"], value.shape[3], axis=2)
        output = output + convolve(hidden, kernel)
    return output


def explicit_matrix(query, key, queries, keys, visible, steps):
    """`[T, S]`, for one sequence and head."""
    root = np.sqrt(key.shape[-1])
    core = softmax(queries @ keys.T / root, -1)
    weights = softmax(query @ keys.T / root, -1)
    gathered = softmax(queries @ key.T / root, -1, visible)
    return weights @ inverse(core, steps) @ gathered


def inverse(core, steps):
    largest = core.sum(axis=0).max() * core.sum(axis=1).max()
    z = transpose(core) / largest
    one = np.eye(core.shape[0])
    for _ in range(steps):
        az = core @ z
        z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
    return z
