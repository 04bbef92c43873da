"""PolaFormer: linear attention that keeps the signs of queries and keys.

With x+ = relu(x / c)^p, x- = relu(-x / c)^p by element, for x = q and x = k:

    same     = [q+, q-] . [k+, k-]     entries of equal sign
    opposite = [q-, q+] . [k+, k-]     entries of opposite sign
    V = [V1, V2]:  out = [same V1 / its row sums, opposite V2 / its row sums]
                         + DWC(V)

c = softplus(scale) and p = 1 + alpha sigmoid(power), both learned for each
head and feature, alpha = 4. DWC is a depthwise convolution of the values,
kernel 5 (5 x 5 on a grid), one for all heads. At p = 1, c = 1: same -
opposite = q . k.

Cost: O((T + S) D V + K S V) time, K^2 on a grid; state 2 D (V + 2) for each
head without the convolution.
Source: Meng, Luo, Li, Jiang, Zhang, "PolaFormer: polarity-aware linear
attention for vision transformers", ICLR 2025, arXiv 2501.15061, section 4.
Differs from the paper: its gate, a projection of the input that multiplies
the output, is the layer's `use_gate=True`, which passes through a sigmoid;
no position embedding of keys; no bias in the convolution and no epsilon, so
that a row that sees no key is 0, and a query that meets no key in one
polarity is 0 in that half.

Both ways we work on the logarithms of the features, which is exact at any
size. Causally queries are relative to their row's largest feature, keys are
not: their features x^p must be float32 numbers, from 1e-30 to 1e38 over the
length and the size of the values (with p = 5 heads from 1e-6 to 1e7).
"""

from typing import Any

from keras import ops

from keras_linattn.core.annotations import Tree
from keras_linattn.core.causal import attend_causally
from keras_linattn.core.log_products import log_kernel_attention
from keras_linattn.core.log_products import log_summary
from keras_linattn.core.log_products import read_log_summary
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.numerics import LOWEST
from keras_linattn.core.numerics import exp_of_logs
from keras_linattn.core.numerics import masked_exp
from keras_linattn.mechanisms._convolved_values import ConvolvedValues
from keras_linattn.mechanisms._kernel import KernelMechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits


def polarities(x, exponent):
    """log x+ and log x-, each `[B, H, T, D]`; at p = 1, x+ - x- is x.

    log 0 is about `LOWEST`: a weight of 0, and with it derivatives of 0.
    """
    size = ops.abs(x)
    # log 0 must not be formed: 0 times its infinite derivative is NaN.
    size = ops.where(size > 0, size, ops.ones_like(size))
    log = exponent * ops.log(size)
    # A sum: under torch a selection is slow where signs are mixed.
    return tuple(
        log + LOWEST * ops.cast(ops.logical_not(sign > 0), x.dtype)
        for sign in (x, -x)
    )


def paired_features(query, key, exponent):
    """Logarithms `[B, H, ., 2 D]` of same-sign and opposite-sign query, key."""
    plus, minus = polarities(query, exponent)
    same = ops.concatenate([plus, minus], axis=-1)
    opposite = ops.concatenate([minus, plus], axis=-1)
    return same, opposite, ops.concatenate(polarities(key, exponent), axis=-1)


def relative_features(x):
    """e^x over its row's largest entry; 0 for `LOWEST`."""
    return ops.where(x > LOWEST / 2, masked_exp(x), ops.zeros_like(x))


def halves(value):
    """The first floor(V / 2) and the other columns."""
    middle = value.shape[-1] // 2
    return value[..., :middle], value[..., middle:]


@register("polaformer")
class PolaFormer(ConvolvedValues, KernelMechanism):
    """Linear attention of same-sign and opposite-sign features.

    For the paper's gate, pass `use_gate=True` to the layer. Without the
    convolution (`kernel_size=None`) causal attention, a state and
    cross-attention are possible, and the order of the keys does not matter.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        alpha: float >= 0. The learned powers are between 1 and 1 + alpha.
            Defaults to 4.
        kernel_size: odd int > 0, width of the depthwise convolution of the
            values that is added to the output, or `None` for no convolution.
            Defaults to 5.
        grid: tuple `(rows, columns)`, for keys that are the patches of an
            image, row by row: the convolution is in two dimensions. Defaults
            to `None`: a sequence.
        **kwargs: arguments of `Mechanism`.

    Raises:
        ValueError: if an argument is out of range, if there is a
            grid but no convolution, or if the length is not that of the grid.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> tuple(mechanisms.get("polaformer")(x, x, x).shape)
    (1, 2, 6, 4)

    Source: Meng et al., 2025, arXiv 2501.15061, section 4.
    """

    traits = Traits(
        cross=False,
        normalised=False,
        explicit=False,
        key_order_free=False,
        grid=True,
        packs=True,
        cost="(T + S) D V + K S V",
        state="2 D (V + 2)",
        source="Meng et al. 2025, arXiv 2501.15061",
    )
    head_axes = {"scale": 0, "power": 0, "kernel": None}

    def __init__(
        self,
        alpha: float = 4.0,
        kernel_size: int | None = 5,
        grid: tuple[int, int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(alpha, (int, float)) or alpha < 0:
            raise ValueError(
                f"`alpha` must be a number >= 0. Received: alpha={alpha!r}."
            )
        self.alpha = alpha
        self._set_convolution(
            kernel_size, grid, causal=True, cross=True, recurrent=True
        )

    def build(self, query_shape, key_shape, value_shape):
        for name in ("scale", "power"):
            weight = self.add_weight(
                name=name,
                shape=(query_shape[1], query_shape[3]),
                initializer="zeros",
                autocast=False,
            )
            setattr(self, name, weight)
        self._build_convolution(value_shape[3])

    def _features(self, query, key):
        scale, power = (
            ops.expand_dims(ops.cast(weight, query.dtype), 1)  # [H, 1, D]
            for weight in (self.scale, self.power)
        )
        scale = ops.softplus(scale)
        exponent = 1 + self.alpha * ops.sigmoid(power)
        return paired_features(query / scale, key / scale, exponent)

    def attend(
        self,
        query,
        key,
        value,
        *,
        key_mask,
        query_mask,
        causal,
        training,
        documents=None,
    ):
        options = {"key_mask": key_mask, "documents": documents}
        if causal:  # there is no convolution then
            nothing = (None, None)
            return self.advance(nothing, query, key, value, **options)[0]
        *queries, key = self._features(query, key)
        if documents is None:
            log_sums, means = log_summary(
                apply_mask(key, key_mask, value=LOWEST), value
            )
            output = [
                read_log_summary(features, log_sums, half)
                for features, half in zip(queries, halves(means))
            ]
        else:
            output = [
                log_kernel_attention(features, key, half, **options)
                for features, half in zip(queries, halves(value))
            ]
        output = ops.concatenate(output, axis=-1)
        return self._add_convolution(output, value, documents)

    def num_features_for(self, key_dim):
        return 2 * key_dim

    def state_spec(self, num_heads: int, key_dim: int, value_dim: int) -> Tree:
        """Returns the specs of the two states, one for each polarity.

        Their shapes are `[B, H, 2 D, floor(V / 2) + 1]` and
        `[B, H, 2 D, ceil(V / 2) + 1]`. The last column of each sums the
        normaliser.
        """
        first = value_dim // 2
        return tuple(
            super(PolaFormer, self).state_spec(num_heads, key_dim, size)
            for size in (first, value_dim - first)
        )

    def advance(self, state, query, key, value, *, key_mask, documents=None):
        *queries, key = self._features(query, key)
        key = exp_of_logs(key)
        stepped = [
            attend_causally(
                relative_features(features), key, half, before, documents
            )
            for features, half, before in zip(queries, halves(value), state)
        ]
        outputs, state = zip(*stepped)
        return ops.concatenate(outputs, axis=-1), state
