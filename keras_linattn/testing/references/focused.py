"""Reference of focused: phi(Q) phi(K)^T with its rows summing to 1, phi(x) =
|u| u^p / |u^p|, u = relu(x), plus a depthwise convolution of V."""

import numpy as np

from keras_linattn.testing.references._common import normalise
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._common import visible_pairs
from keras_linattn.testing.references._landmarks import convolve

CONFIGS = ({}, {"focusing_power": 2.5, "kernel_size": 3}, {"kernel_size": None})


def features(x, power):
    x = np.maximum(x, 0)
    lengths = [
        np.sqrt(np.sum(y**2, axis=-1, keepdims=True)) for y in (x, x**power)
    ]
    empty = lengths[1] == 0
    return x**power * lengths[0] / np.where(empty, 1.0, lengths[1])


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    query, key = (features(x, mechanism.focusing_power) for x in (query, key))
    pairs = visible_pairs(key_mask, query.shape[2], causal)
    output = normalise(np.where(pairs, query @ transpose(key), 0.0)) @ value
    if mechanism.kernel_size is None:
        return output
    hidden = np.where(key_mask[:, None, :, None], value, 0.0)
    return output + convolve(hidden, weights["kernel"], mechanism.grid)
