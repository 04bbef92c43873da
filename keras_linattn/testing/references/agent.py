"""Reference of agent: softmax(Q P^T / sqrt D) softmax(P K^T / sqrt D) V as an
explicit `[T, S]` matrix, plus a depthwise convolution of V."""

import numpy as np

from keras_linattn.testing.references._common import softmax
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._landmarks import convolve
from keras_linattn.testing.references._landmarks import landmark_means

CONFIGS = (
    {},
    {"num_landmarks": 4, "kernel_size": 5},
    {"num_landmarks": 4, "kernel_size": None},
)


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    agents, exist = landmark_means(
        query, mechanism.num_landmarks, query_mask, mechanism.grid
    )
    root = np.sqrt(key.shape[-1])
    exist = exist[:, None, None, :]
    visible = key_mask[:, None, None, :]
    tell = softmax(query @ transpose(agents) / root, -1, exist)
    gather = softmax(agents @ transpose(key) / root, -1, visible)
    hidden = np.where(key_mask[:, None, :, None], value, 0.0)
    output = (tell @ gather) @ hidden
    if mechanism.kernel_size is not None:
        output = output + convolve(hidden, weights["kernel"], mechanism.grid)
    return output
