"""Reference of linear_transformer: phi(Q) phi(K)^T V with its rows summing
to 1, phi = elu + 1."""

import numpy as np

from keras_linattn.testing.references._common import elu_plus_one
from keras_linattn.testing.references._common import normalise
from keras_linattn.testing.references._common import transpose
from keras_linattn.testing.references._common import visible_pairs

CONFIGS = ({},)


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    similarity = elu_plus_one(query) @ transpose(elu_plus_one(key))
    pairs = visible_pairs(key_mask, query.shape[2], causal)
    return normalise(np.where(pairs, similarity, 0.0)) @ value
