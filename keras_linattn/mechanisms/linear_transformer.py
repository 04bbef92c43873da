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

The paper leaves phi open, as long as similarities are not negative (section
3.2.1). Another one is taken as it is: a query whose products with all visible
keys are 0, or below 1e-35, counts as one that sees none.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_linattn.core.exponential_sums import attend_both_ways_in_pieces
from keras_linattn.core.folded import Factors
from keras_linattn.core.log_products import log_attend_within
from keras_linattn.core.log_products import log_kernel_attention
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.numerics import LOWEST
from keras_linattn.core.numerics import masked_softmax
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import max_along
from keras_linattn.core.numerics import maximum
from keras_linattn.core.numerics import safe_divide
from keras_linattn.core.products import key_value_product
from keras_linattn.mechanisms._feature_map import apply_feature_map
from keras_linattn.mechanisms._feature_map import count_features
from keras_linattn.mechanisms._feature_map import get_feature_map
from keras_linattn.mechanisms._feature_map import serialize_feature_map
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
    positive = ops.relu(x)
    # A sum: under torch a selection is slow where signs are mixed.
    return ops.log1p(positive) + (x - positive)


def relative_features(query):
    """phi of queries over e^(the row's maximum), if that is negative."""
    largest = ops.max(query, axis=-1, keepdims=True)
    return feature_map(query - ops.stop_gradient(-ops.relu(-largest)))


def position_weights(key, key_mask=None, axis=2, pieces=None):
    """phi(k) over its feature's largest below 1, its sums and their logs.

    Args:
        key: tensor of rank 4.
        key_mask: bool tensor `(B, S)`, or `None`.
        axis: int, where S is.
        pieces: `core.devices.Pieces`, of which this device has the keys of
            one, or `None`, its default: of the whole sequence.

    Returns:
        Tensor of the shape of `key`, 0 where masked, and two without `axis`:
        the sums over it, at least 1 where a key is visible, and the logarithm
        of what they are of phi itself.
    """
    shown = apply_mask(key, key_mask, axis, LOWEST)
    most = ops.stop_gradient(max_along(shown, axis, LOWEST))
    if pieces is not None:
        most = pieces.max(most)
    most = -ops.relu(-most)  # at most 0
    weights = apply_mask(feature_map(key - most), key_mask, axis=axis)
    total = ops.sum(weights, axis=axis, keepdims=True)
    if pieces is not None:
        total = pieces.sum(total)
    filled = total > 0
    log = ops.log(ops.where(filled, total, ops.ones_like(total))) + most
    log = ops.where(filled, log, ops.zeros_like(log))
    return weights, ops.squeeze(total, axis), ops.squeeze(log, axis)


def attend_both_ways(
    query, key, value, key_mask=None, documents=None, pieces=None
):
    """The output without a causal mask, exact at any size of the heads."""
    if documents is not None:
        query, key = log_feature_map(query), log_feature_map(key)
        return log_kernel_attention(query, key, value, key_mask, documents)
    weights, total, log = position_weights(key, key_mask, pieces=pieces)
    scores = log_feature_map(query) + ops.expand_dims(log, 2)
    summary = key_value_product(weights, value)
    if pieces is not None:
        summary = pieces.sum(summary)
    summary = safe_divide(summary, ops.expand_dims(total, -1))
    return matmul(masked_softmax(scores), summary)


@register("linear_transformer")
class LinearTransformer(KernelMechanism):
    """Linear attention with the feature map elu(x) + 1, or one of your own.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        feature_map: maps heads `[B, H, T, D]` to features, the same for
            queries and keys. Defaults to `None`: elu(x) + 1. Or one of
            - the name of a Keras activation that is never negative, such as
              `"relu"`, `"softplus"` or `"exponential"`;
            - a callable that is registered with Keras;
            - a `keras.layers.Layer`, which is built and saved with the
              mechanism, and computes in its own dtype.

            It must treat each position separately. The products of features
            must not be negative; this is not checked. If all products of a
            query are 0, which can happen with `"relu"`, its output is 0.
        **kwargs: arguments of `Mechanism`.

    Raises:
        ValueError: if the name is unknown, or if the callable is not
            registered; if a state is asked for and the number of features
            cannot be known.
        TypeError: if `feature_map` is of another type.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> mechanism = mechanisms.LinearTransformer()
    >>> tuple(mechanism(x, x, x, causal=True).shape)
    (1, 2, 6, 4)
    >>> features = keras.layers.Dense(16, activation="softplus")
    >>> mechanism = mechanisms.LinearTransformer(feature_map=features)
    >>> tuple(mechanism(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Katharopoulos et al., 2020, arXiv 2006.16236.
    """

    traits = Traits(
        causal=True,
        recurrent=True,
        packs=True,
        splits=True,
        separable=True,
        cost="(T + S) D V",
        state="D (V + 1)",
        source="Katharopoulos et al. 2020, arXiv 2006.16236",
    )
    head_axes = {}

    def __init__(
        self, feature_map: str | Callable | None = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.feature_map = get_feature_map(feature_map)
        if feature_map is not None:
            self.traits = dataclasses.replace(
                self.traits, separable=False, normalised=False
            )
        self._num_features = {}  # by the size of heads

    def build(self, query_shape, key_shape, value_shape):
        layer = self.feature_map
        if isinstance(layer, keras.layers.Layer) and not layer.built:
            layer.build((None, query_shape[1], None, query_shape[3]))

    def features(self, x):
        return ops.cast(apply_feature_map(self.feature_map, x), x.dtype)

    def query_features(self, query):
        if self.feature_map is not None:
            return self.features(query)
        return relative_features(query)

    def key_features(self, key):
        if self.feature_map is not None:
            return self.features(key)
        return feature_map(key, FLOOR)

    def num_features_for(self, key_dim, num_heads=None):
        if self.feature_map is None:
            return key_dim
        if key_dim not in self._num_features:
            count = count_features(self.feature_map, num_heads, key_dim)
            self._num_features[key_dim] = count
        return self._num_features[key_dim]

    def state_spec(self, num_heads, key_dim, value_dim):
        # Some layers, such as one map for each head, must know the heads.
        self.num_features_for(key_dim, num_heads)
        return super().state_spec(num_heads, key_dim, value_dim)

    def attend_both_ways(self, query, key, value, key_mask, documents=None):
        if self.feature_map is not None:
            return super().attend_both_ways(
                query, key, value, key_mask, documents
            )
        return attend_both_ways(query, key, value, key_mask, documents)

    def attend_pieces(
        self,
        pieces,
        query,
        key,
        value,
        *,
        key_mask,
        causal,
        documents=None,
    ):
        if causal or self.feature_map is not None:
            return super().attend_pieces(
                pieces,
                query,
                key,
                value,
                key_mask=key_mask,
                causal=causal,
                documents=documents,
            )
        if documents is None:
            return attend_both_ways(query, key, value, key_mask, pieces=pieces)
        query, key = log_feature_map(query), log_feature_map(key)
        return attend_both_ways_in_pieces(
            log_attend_within, query, key, value, key_mask, pieces
        )

    def factors(self, query, key, key_mask=None):
        weights, total, log = position_weights(key, key_mask, axis=1)
        scores = log_feature_map(query) + ops.expand_dims(log, 1)
        scale = safe_divide(ops.ones_like(total), total)
        query = masked_softmax(scores)
        return Factors(query, weights, scale, scale * total)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "feature_map": serialize_feature_map(self.feature_map),
        }
