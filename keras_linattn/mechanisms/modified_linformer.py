"""Modified Linformer: linear attention with no projection dimension to tune.

Linformer's head is softmax(Q (E K)^T / sqrt D) (F V) with learned E, F of
shape [k, S]. Here the keys themselves say how positions are summarised:

    A  = softmax_S(K)      [S, D]   where along the sequence feature j lives
    K~ = A^T K  [D, D]     V~ = A^T V  [D, V]
    reading="projected":   out = softmax(Q K~^T / sqrt D) V~
    reading="factorised":  out = softmax_D(Q) V~

Cost: O((T + S) D V) factorised, O((T + S) D (D + V)) projected; the summary
is D V (and D D); no parameter, nothing depends on a k or fixes a length.
Source: Verma, "Revisiting Linformer with a modified self-attention with
linear complexity", 2020, arXiv 2101.10277. The factorised reading is the
efficient attention of Shen et al., 2021, arXiv 1812.01243, section 3.
Differs from the paper: we hold its abstract, which states the properties
(linear time and space, independent of the projection dimension, for text,
images and audio), and no formula. Both readings are this project's.
"""

import math

from keras import ops

from keras_linattn.core.masks import spread
from keras_linattn.core.numerics import masked_exp
from keras_linattn.core.numerics import masked_softmax
from keras_linattn.core.numerics import safe_divide
from keras_linattn.core.products import key_value_product
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._base import Traits
from keras_linattn.mechanisms._registry import register

READINGS = ("factorised", "projected")


def position_weights(key, key_mask=None):
    """exp(K - max_S K), and its sum over positions as a column `[D, 1]`.

    A = exp / sum; the division is left to the `[D, V]` summaries, which saves
    one pass over the `[S, D]` array.
    """
    visible = None if key_mask is None else spread(key_mask, 4, 2)
    weights = masked_exp(key, visible, axis=2)
    return weights, ops.expand_dims(ops.sum(weights, axis=2), -1)


def attend_factorised(query, key, value, key_mask=None):
    """softmax_D(Q) (A^T V)."""
    weights, total = position_weights(key, key_mask)
    summary = safe_divide(key_value_product(weights, value), total)
    return ops.matmul(masked_softmax(query, axis=-1), summary)


def attend_projected(query, key, value, key_mask=None):
    """softmax(Q (A^T K)^T / sqrt D) (A^T V)."""
    weights, total = position_weights(key, key_mask)
    key_summary = safe_divide(key_value_product(weights, key), total)
    value_summary = safe_divide(key_value_product(weights, value), total)
    scores = ops.matmul(query, ops.swapaxes(key_summary, -1, -2))
    scores = scores / math.sqrt(key.shape[-1])
    return ops.matmul(masked_softmax(scores, axis=-1), value_summary)


@register("modified_linformer")
class ModifiedLinformer(Mechanism):
    """Linear attention whose projection comes from the keys themselves.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        reading: `"factorised"` or `"projected"`, see the module's docstring:
            our two readings of the paper. Defaults to `"factorised"`.
        **kwargs: arguments of `keras.layers.Layer`.

    Raises:
        ValueError: if `reading` is neither.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> mechanism = mechanisms.ModifiedLinformer(reading="projected")
    >>> tuple(mechanism(x, x, x).shape)
    (1, 2, 6, 4)

    Source: Verma, 2020, arXiv 2101.10277; Shen et al., 2021, arXiv 1812.01243.
    """

    traits = Traits(
        cost="(T + S) D V",
        state="D V",
        source="Verma 2020, arXiv 2101.10277",
    )

    def __init__(self, reading="factorised", **kwargs):
        super().__init__(**kwargs)
        if reading not in READINGS:
            raise ValueError(
                f"`reading` must be one of {READINGS}. "
                f"Received: reading={reading!r}."
            )
        self.reading = reading

    def attend(self, query, key, value, key_mask, query_mask, causal, training):
        if self.reading == "projected":
            return attend_projected(query, key, value, key_mask)
        return attend_factorised(query, key, value, key_mask)
