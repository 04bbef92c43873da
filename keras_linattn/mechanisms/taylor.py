"""Taylor: kernel attention with the second-order Taylor polynomial of exp.

phi(q) . phi(k) = 1 + x + x^2 / 2 >= 1/2,   x = q . k / sqrt D,
phi(u) = [1, u, (u kron u) / sqrt 2] for u = q / D^(1/4), k / D^(1/4).

Cost: O((T + S) D^2 V) time; state (1 + D + D (D + 1) / 2) (V + 1) for each
head. Meant for a small D, such as `key_dim=16`.
Source: Arora, Eyuboglu, Zhang, Timalsina, Alberti, Zinsley, Zou, Rudra, Re,
"Simple linear attention language models balance the recall-throughput
tradeoff", 2024, arXiv 2402.18668, section 4.1; the map is that of Zhang et
al., "The hedgehog and the porcupine", 2024, arXiv 2402.04347, section 4.1.
Differs from the paper: u_i u_j and u_j u_i are one feature, which gives the
same products at half the cost; the paper projects to a small feature
dimension of its own (16), here D is the `key_dim` of the layer; Based pairs
this with sliding-window attention, which is another mechanism.

Features grow with the square of a head. Those of a query are relative to
their largest, and without a causal mask those of the keys too: the factors
cancel. Causally a maximum would look ahead, so sums of features times values
must stay below 3e38: values of 1e30 allow keys of about 100.
"""

import math

from keras import ops

from keras_linattn.core.documents import attend_documents
from keras_linattn.core.documents import largest_within
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.numerics import max_along
from keras_linattn.core.products import kernel_attention
from keras_linattn.mechanisms._kernel import KernelMechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits


def feature_map(x):
    """phi: `[B, H, T, D]` to `[B, H, T, 1 + D + D (D + 1) / 2]`."""
    dim = x.shape[-1]
    x = x / dim**0.25
    features = [ops.ones_like(x[..., :1]), x]
    for i in range(dim):
        # x_i x_i / sqrt 2, then x_i x_j for j > i, which stands for two.
        features += [x[..., i : i + 1] ** 2 / math.sqrt(2)]
        features += [x[..., i : i + 1] * x[..., i + 1 :]] * (i + 1 < dim)
    return ops.concatenate(features, axis=-1)


def over_largest(features, axis, documents=None):
    """Features over their largest magnitude along `axis`, if that is over 1.

    And, with `Documents` of their positions, in the whole document.
    """
    most = max_along(ops.abs(features), axis, 1)
    if documents is not None:
        most = largest_within(most, documents)
    return features / ops.stop_gradient(most)


def attend_alone(query, key, value):
    """Attention both ways, of features."""
    return kernel_attention(query, over_largest(key, axis=(2, 3)), value)


def attend_within(query, key, value, documents):
    """`attend_alone` of documents in one sequence."""
    key = over_largest(key, -1, documents)
    return kernel_attention(query, key, value, documents)


@register("taylor")
class Taylor(KernelMechanism):
    """Linear attention with the kernel 1 + x + x^2 / 2 of x = q.k / sqrt D.

    The feature rank is quadratic in the `key_dim` of the layer: choose a
    small one, and any `value_dim`. Call arguments, result and errors: see
    `Mechanism`.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> tuple(mechanisms.get("taylor")(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Arora et al., 2024, arXiv 2402.18668.
    """

    traits = Traits(
        causal=True,
        recurrent=True,
        packs=True,
        cost="(T + S) D^2 V",
        state="(1 + D + D (D + 1) / 2) (V + 1)",
        source="Arora et al. 2024, arXiv 2402.18668",
    )
    head_axes = {}

    def query_features(self, query):
        return over_largest(feature_map(query), axis=-1)

    def key_features(self, key):
        return feature_map(key)

    def attend_both_ways(self, query, key, value, key_mask, documents=None):
        query = self.query_features(query)
        key = apply_mask(self.key_features(key), key_mask)
        if documents is not None:
            forms = attend_within, attend_alone
            return attend_documents(*forms, query, key, value, documents)
        return attend_alone(query, key, value)

    def num_features_for(self, key_dim):
        return 1 + key_dim + key_dim * (key_dim + 1) // 2
