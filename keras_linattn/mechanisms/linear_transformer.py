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

from keras_linattn.core.masks import hide
from keras_linattn.core.numerics import accumulation_dtype
from keras_linattn.core.products import append_ones
from keras_linattn.core.products import causal_product
from keras_linattn.core.products import divide_by_last
from keras_linattn.core.products import kernel_attention
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._base import Traits
from keras_linattn.mechanisms._registry import register


def feature_map(x):
    """phi(x) = elu(x) + 1 > 0, elementwise."""
    return ops.elu(x) + 1


def attend_causally(query, key, value, key_mask=None, state=None):
    """Equations 9 to 12, in chunks. Returns the output and the new state."""
    features = hide(feature_map(key), key_mask)
    summed, state = causal_product(
        feature_map(query), features, append_ones(value), state
    )
    return divide_by_last(summed), state


@register("linear_transformer")
class LinearTransformer(Mechanism):
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
        cost="(T + S) D V",
        state="D (V + 1)",
        source="Katharopoulos et al. 2020, arXiv 2006.16236",
    )

    def attend(self, query, key, value, key_mask, query_mask, causal, training):
        if causal:
            return attend_causally(query, key, value, key_mask)[0]
        features = hide(feature_map(key), key_mask)
        return kernel_attention(feature_map(query), features, value)

    def initial_state(self, batch_size, num_heads, key_dim, value_dim):
        """Zeros `[B, H, D, V + 1]`; the last column sums the normaliser."""
        return ops.zeros(
            (batch_size, num_heads, key_dim, value_dim + 1),
            dtype=accumulation_dtype(self.compute_dtype),
        )

    def step(self, state, query, key, value, key_mask=None):
        dtype = query.dtype
        query, key, value = self._prepare(query, key, value, key_mask)
        output, state = attend_causally(query, key, value, key_mask, state)
        return ops.cast(output, dtype), state
