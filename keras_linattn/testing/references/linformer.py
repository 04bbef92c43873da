"""Reference of linformer: softmax(Q (E K)^T / sqrt D) (F V), E and F `[k, S]`.

A sequence shorter than the projections uses their first columns.
"""

import numpy as np

from keras_linattn.testing.references._common import softmax
from keras_linattn.testing.references._common import transpose

CONFIGS = (
    {"projection_dim": 3},
    {"projection_dim": 4, "sharing": "none"},
    {"projection_dim": 2, "sharing": "key_value", "sequence_length": 5000},
)


def attend(mechanism, weights, query, key, value, key_mask, query_mask, causal):
    length = key.shape[2]
    key_projection = weights["key_projection"][..., :length]
    value_projection = key_projection
    if mechanism.sharing != "key_value":
        value_projection = weights["value_projection"][..., :length]
    visible = key_mask[:, None, :, None]
    keys = key_projection @ np.where(visible, key, 0.0)
    values = value_projection @ np.where(visible, value, 0.0)
    scores = query @ transpose(keys) / np.sqrt(key.shape[-1])
    return softmax(scores, -1) @ values
