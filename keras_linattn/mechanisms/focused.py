"""Focused linear attention: directions of relu features drawn to the axes.

out_t = phi(q_t) . sum_s phi(k_s) v_s^T / (phi(q_t) . sum_s phi(k_s))
        + (DWC(V))_t,
phi(x) = |u| u^p / |u^p|,   u = relu(x),   p = 3, powers by element.

DWC is a depthwise convolution of the values, kernel 5 (5 x 5 on a grid), one
for all heads: local detail, and rank that the first term lacks.

Cost: O((T + S) D V + K S V) time, K^2 on a grid; state D (V + 1) for each
head without the convolution.
Source: Han, Pan, Han, Song, Huang, "FLatten transformer: vision transformer
using focused linear attention", ICCV 2023, arXiv 2308.00442, equations 5 to 9.
Differs from the paper: no learned scale of queries and keys and no position
embedding of keys, which the authors' code has and the projections and the
model can give; no bias in the convolution, so that a row that sees no key is
0; nothing is added to relu(x), so that a query whose features meet no key's
gives 0 (and DWC).
"""

from typing import Any

from keras import ops

from keras_linattn.mechanisms._convolved_values import ConvolvedValues
from keras_linattn.mechanisms._kernel import KernelMechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits


def feature_map(x, power):
    """|u| u^p / |u^p| for u = relu(x), `[B, H, T, D]`; 0 where u is 0."""
    x = ops.relu(x)
    # Of first degree in x: with the largest entry scaled to 1, no power
    # overflows and no norm vanishes.
    largest = ops.stop_gradient(ops.max(x, axis=-1, keepdims=True))
    empty = ops.equal(largest, 0)
    x = x / ops.where(empty, ops.ones_like(largest), largest)
    powered = _power(x, power)
    squares, sharper = (
        ops.sum(ops.square(y), axis=-1, keepdims=True) for y in (x, powered)
    )
    one = ops.ones_like(squares)
    ratio = ops.where(empty, one, squares) / ops.where(empty, one, sharper)
    return largest * ops.sqrt(ratio) * powered


def _power(x, exponent):
    """x^exponent for x >= 0; a small whole one by products, which are cheap.

    `ops.power` makes a tensor of the exponent: a logarithm for each entry.
    """
    if exponent not in range(1, 9):
        return ops.power(x, exponent)
    result = x
    for _ in range(int(exponent) - 1):
        result = result * x
    return result


@register("focused")
class Focused(ConvolvedValues, KernelMechanism):
    """Linear attention of focused relu features, plus a convolution of V.

    Without the convolution (`kernel_size=None`) causal attention, a state and
    cross-attention are possible, and the order of the keys does not matter.
    Call arguments, result and errors: see `Mechanism`.

    Args:
        focusing_power: float >= 1, p, the power of the features. Defaults to
            3.
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
    >>> mechanism = mechanisms.get("focused", grid=(2, 3))
    >>> tuple(mechanism(x, x, x).shape)
    (1, 2, 6, 4)

    Source: Han et al., 2023, arXiv 2308.00442, equations 5 to 9.
    """

    traits = Traits(
        cross=False,
        normalised=False,
        explicit=False,
        key_order_free=False,
        grid=True,
        packs=True,
        cost="(T + S) D V + K S V",
        state="D (V + 1)",
        source="Han et al. 2023, arXiv 2308.00442",
    )
    head_axes = {"kernel": None}

    def __init__(
        self,
        focusing_power: float = 3,
        kernel_size: int | None = 5,
        grid: tuple[int, int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(focusing_power, (int, float)) or focusing_power < 1:
            raise ValueError(
                "`focusing_power` must be a number >= 1: below, derivatives "
                "at 0 are infinite. "
                f"Received: focusing_power={focusing_power!r}."
            )
        self.focusing_power = focusing_power
        self._set_convolution(
            kernel_size,
            grid,
            causal=True,
            cross=True,
            recurrent=True,
            explicit=True,
        )

    def build(self, query_shape, key_shape, value_shape):
        self._build_convolution(value_shape[3])

    def features(self, x):
        return feature_map(x, self.focusing_power)

    def attend(self, query, key, value, *, documents=None, **options):
        output = super().attend(
            query, key, value, documents=documents, **options
        )
        return self._add_convolution(output, value, documents)
