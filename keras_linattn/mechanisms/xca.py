"""XCA: attention between features instead of between positions.

A = softmax over the key features of tau Q^^T K^ [D, D],   out = V A^T,
Q^, K^ with columns of length 1 along the sequence, tau learned for each head.

Cost: O(T D^2) time; the summary is D^2 for each head. Self-attention only,
with V = D; no causal form, since every entry of A sums over all positions.
Source: El-Nouby, Touvron, Caron, Bojanowski, Douze, Joulin, Laptev, Neverova,
Synnaeve, Verbeek, Jegou, "XCiT: cross-covariance image transformers", NeurIPS
2021, arXiv 2106.09681, equations 4 and 5.
Differs from the paper: tau multiplies, as in the authors' code, and starts
at 1. Hidden positions add nothing to lengths and covariances. The paper's
local patch interaction is a part of the block, not of the attention.
"""

from keras import ops

from keras_linattn.core.numerics import masked_softmax
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import maximum
from keras_linattn.core.products import key_value_product
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits

SMALLEST_SQUARE = 1e-24  # lengths below 1e-12 are taken for 1e-12


def unit_columns(x):
    """Each feature divided by its length along the sequence."""
    squares = ops.sum(ops.square(x), axis=2, keepdims=True)
    return x * ops.rsqrt(maximum(squares, SMALLEST_SQUARE))


def attend(query, key, value, temperature):
    """`temperature` is `[H, 1, 1]`; hidden rows of query and key are 0."""
    covariance = key_value_product(unit_columns(query), unit_columns(key))
    weights = masked_softmax(temperature * covariance, axis=-1)  # [.., D, D]
    return matmul(value, ops.swapaxes(weights, -1, -2))


@register("xca")
class XCA(Mechanism):
    """Cross-covariance attention: features attend to features.

    Each output mixes the features of the value at its own position. The
    weights of this mixture depend on all visible positions. `value_dim` must
    equal `key_dim`. Call arguments, result and errors: see `Mechanism`.

    Raises:
        ValueError: if the last dimensions of value and key differ.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> tuple(mechanisms.get("xca")(x, x, x).shape)
    (1, 2, 6, 4)

    Source: El-Nouby et al., 2021, arXiv 2106.09681, equations 4 and 5.
    """

    traits = Traits(
        cross=False,
        normalised=False,
        explicit=False,
        key_order_free=False,
        pools_queries=True,
        equal_dims=True,
        cost="T D^2",
        state="D^2",
        source="El-Nouby et al. 2021, arXiv 2106.09681",
    )
    head_axes = {"temperature": 0}

    def build(self, query_shape, key_shape, value_shape):
        self.temperature = self.add_weight(
            name="temperature",
            shape=(query_shape[1],),
            initializer="ones",
            autocast=False,
        )

    def attend(
        self, query, key, value, *, key_mask, query_mask, causal, training
    ):
        temperature = ops.cast(self.temperature, query.dtype)
        temperature = ops.reshape(temperature, (-1, 1, 1))
        return attend(query, key, value, temperature)
