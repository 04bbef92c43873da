"""Reference of polaformer: the matrices of entries of equal and of opposite
sign, each with its rows summing to 1, one for each half of V, plus a depthwise
convolution of V."""

import numpy as np

from keras_linattn.testing.references._common import normalise
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._common import visible_pairs
from keras_linattn.testing.references._landmarks import convolve

CONFIGS = ({}, {"alpha": 1.5, "kernel_size": 3}, {"kernel_size": None})


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    scale = np.log1p(np.exp(weights["scale"]))[:, None]
    sigmoid = 1 / (1 + np.exp(-weights["power"]))[:, None]
    power = 1 + mechanism.alpha * sigmoid
    query_plus, query_minus, key_plus, key_minus = (
        np.maximum(sign * x / scale, 0) ** power
        for x in (query, key)
        for sign in (1, -1)
    )
    same = query_plus @ transpose(key_plus) + query_minus @ transpose(key_minus)
    opposite = query_plus @ transpose(key_minus) + query_minus @ transpose(
        key_plus
    )
    pairs = visible_pairs(key_mask, query.shape[2], causal)
    middle = value.shape[-1] // 2
    output = [
        normalise(np.where(pairs, similarity, 0.0)) @ half
        for similarity, half in (
            (same, value[..., :middle]),
            (opposite, value[..., middle:]),
        )
    ]
    output = np.concatenate(output, axis=-1)
    if mechanism.kernel_size is None:
        return output
    hidden = np.where(key_mask[:, None, :, None], value, 0.0)
    return output + convolve(hidden, weights["kernel"], mechanism.grid)
