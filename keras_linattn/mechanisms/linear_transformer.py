"""Linear transformer: kernel attention with the feature map elu + 1.

out_t = phi(q_t) . sum_s phi(k_s) v_s^T / (phi(q_t) . sum_s phi(k_s)),
phi(x) = elu(x) + 1.  Causal: the sums run over s <= t.

Cost: O((T + S) D V) time; state D (V + 1) for each head, free of the length.
Source: Katharopoulos, Vyas, Pappas, Fleuret, "Transformers are RNNs", ICML
2020, arXiv 2006.16236, equations 5 and 7 to 12.
Differs from the paper: no epsilon in the normaliser (a row that sees no key
is 0 by selection); the causal form is chunked, not a loop over positions.

phi(x) = e^x vanishes below -87, and e^x times e^x sooner. Both ways we form

    w_tj = softmax_j(log phi(q_tj) + log Z_j),   Z_j = sum_s phi(k_sj),
    out_t = sum_j w_tj sum_s (phi(k_sj) / Z_j) v_s

from logarithms, which is exact at any size. Causally a query is relative to
its row's maximum and 1e-30 is added to phi of negative keys: weights are exact
where phi(k) > 1e-25 for a visible key in a feature where the query is largest,
and tend to equal ones below; sums of features times values must stay below
3e38.
"""

from keras import ops

from keras_linattn.core.folded import Factors
from keras_linattn.core.masks import hide
from keras_linattn.core.numerics import LOWEST
from keras_linattn.core.numerics import masked_softmax
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import maximum
from keras_linattn.core.numerics import safe_divide
from keras_linattn.core.products import key_value_product
from keras_linattn.core.products import log_kernel_attention
from keras_linattn.mechanisms._kernel import KernelMechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits

FLOOR = 1e-30  # added to phi of negative keys: no visible row counts as empty


def feature_map(x, floor=0.0):
    """phi(x) = elu(x) + 1, elementwise, `floor` more where x < 0."""
    # elu(x) + 1 itself has no digits left below -17.
    positive = ops.relu(x) if floor == 0 else maximum(x, floor)
    return ops.exp(x - positive) + positive


def log_feature_map(x):
    """log phi(x): x where x < 0, log(1 + x) elsewhere."""
    return ops.where(x > 0, ops.log1p(ops.relu(x)), x)


def relative_features(query):
    """phi of queries over e^(the row's maximum), if that is negative."""
    largest = ops.max(query, axis=-1, keepdims=True)
    return feature_map(query - ops.stop_gradient(-ops.relu(-largest)))


def position_weights(key, key_mask=None, axis=2):
    """phi(k) over its feature's largest below 1, its sums and their logs.

    Args:
        key: tensor of rank 4.
        key_mask: bool tensor `(B, S)`, or `None`.
        axis: int, where S is.

    Returns:
        Tensor of the shape of `key`, 0 where masked, and two without `axis`:
        the sums over it, at least 1 where a key is visible, and the logarithm
        of what they are of phi itself.
    """
    shown = hide(key, key_mask, axis, LOWEST)
    largest = ops.max(shown, axis=axis, keepdims=True, initial=LOWEST)
    largest = ops.stop_gradient(largest)
    largest = -ops.relu(-largest)  # at most 0
    weights = hide(feature_map(key - largest), key_mask, axis=axis)
    total = ops.sum(weights, axis=axis, keepdims=True)
    filled = total > 0
    log = ops.log(ops.where(filled, total, ops.ones_like(total))) + largest
    log = ops.where(filled, log, ops.zeros_like(log))
    return weights, ops.squeeze(total, axis), ops.squeeze(log, axis)


@register("linear_transformer")
class LinearTransformer(KernelMechanism):
    """Linear attention with the feature map elu(x) + 1.

    Call arguments, result and errors: see `Mechanism`.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> mechanism = mechanisms.LinearTransformer()
    >>> tuple(mechanism(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Katharopoulos et al., 2020, arXiv 2006.16236.
    """

    traits = Traits(
        causal=True,
        recurrent=True,
        packs=True,
        separable=True,
        cost="(T + S) D V",
        state="D (V + 1)",
        source="Katharopoulos et al. 2020, arXiv 2006.16236",
    )

    def query_features(self, query):
        return relative_features(query)

    def key_features(self, key):
        return feature_map(key, FLOOR)

    def attend_both_ways(self, query, key, value, key_mask, documents=None):
        if documents is not None:
            query, key = log_feature_map(query), log_feature_map(key)
            heads = query, key, value
            return log_kernel_attention(*heads, key_mask, documents)
        weights, total, log = position_weights(key, key_mask)
        scores = log_feature_map(query) + ops.expand_dims(log, 2)
        summary = key_value_product(weights, value)
        summary = safe_divide(summary, ops.expand_dims(total, -1))
        return matmul(masked_softmax(scores), summary)

    def factors(self, query, key, key_mask=None):
        weights, total, log = position_weights(key, key_mask, axis=1)
        scores = log_feature_map(query) + ops.expand_dims(log, 1)
        scale = safe_divide(ops.ones_like(total), total)
        query = masked_softmax(scores)
        return Factors(query, weights, scale, scale * total)
