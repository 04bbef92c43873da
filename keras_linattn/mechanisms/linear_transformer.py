"""Linear transformer: kernel attention with the feature map elu + 1.

out_t = phi(q_t) . sum_s phi(k_s) v_s^T / (phi(q_t) . sum_s phi(k_s)),
phi(x) = elu(x) + 1.  Causal: the sums run over s <= t.

Cost: O((T + S) D V) time; state D (V + 1) for each head, free of the length.
Source: Katharopoulos, Vyas, Pappas, Fleuret, "Transformers are RNNs", ICML
2020, arXiv 2006.16236, equations 5 and 7 to 12.
Differs from the paper: no epsilon in the normaliser (a row that sees no key
is 0 by selection); the causal form is chunked, not a loop over positions.
"""

from keras import ops

from keras_linattn.core.folded import Factors
from keras_linattn.core.masks import hide
from keras_linattn.core.numerics import safe_divide
from keras_linattn.mechanisms._kernel import KernelMechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits


def feature_map(x):
    """phi(x) = elu(x) + 1 > 0, elementwise."""
    return ops.elu(x) + 1


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
        separable=True,
        cost="(T + S) D V",
        state="D (V + 1)",
        source="Katharopoulos et al. 2020, arXiv 2006.16236",
    )

    def query_features(self, query):
        return feature_map(query)

    def factors(self, query, key, key_mask=None):
        query = feature_map(query)
        key = hide(feature_map(key), key_mask, axis=1)
        total = ops.sum(key, axis=1)
        weight = ops.sum(query * ops.expand_dims(total, 1), -1, keepdims=True)
        query = query * safe_divide(ops.ones_like(weight), weight)
        return Factors(query, key, None, total)
