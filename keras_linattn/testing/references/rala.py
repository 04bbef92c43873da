"""Reference of rala: rows of phi(Q) phi(K)^T diag(alpha) that sum to 1, alpha =
softmax(q-bar phi(K)^T / sqrt D), plus a depthwise convolution of V, times a
linear map of the input."""

import numpy as np

from keras_linattn.testing.references import _state
from keras_linattn.testing.references._common import log_kernel_weights
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._common import visible_pairs
from keras_linattn.testing.references._landmarks import convolve
from keras_linattn.testing.references.mala import features
from keras_linattn.testing.references.mala import log_features

CONFIGS = (
    {},
    {"output_gate": False, "kernel_size": 3},
    {"kernel_size": None},
    {"output_gate": False, "kernel_size": None},
)


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    pairs = visible_pairs(key_mask, query.shape[2], causal)
    visible = query_mask[:, None, :, None]
    hidden_query = np.where(visible, query, 0.0)
    mean = np.sum(features(hidden_query) * visible, axis=2, keepdims=True)
    mean = mean / np.maximum(visible.sum(axis=2, keepdims=True), 1)
    scores = features(key) @ transpose(mean) / np.sqrt(key.shape[-1])
    # log alpha up to a constant, which the normalisation cancels.
    key = log_features(key) + scores
    matrix = log_kernel_weights(log_features(query), key, pairs)
    hidden = np.where(key_mask[:, None, :, None], value, 0.0)
    output = matrix @ hidden
    if mechanism.kernel_size is not None:
        output = output + convolve(hidden, weights["kernel"], mechanism.grid)
    if not mechanism.output_gate:
        return output
    inputs = _state.side_by_side(hidden_query)
    gate = np.einsum("btf,fhv->bhtv", inputs, weights["gate"])
    return output * (gate + weights["bias"][:, None])
