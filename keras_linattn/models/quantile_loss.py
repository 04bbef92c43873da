"""The loss of quantile forecasts."""

from typing import Any

import keras
from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.masks import select
from keras_linattn.core.numerics import safe_divide


@keras.saving.register_keras_serializable("keras_linattn")
class QuantileLoss(keras.losses.Loss):
    """Computes the pinball loss of quantiles, over the values that are given.

    loss = max(q (y - f), (q - 1) (y - f)), averaged over the quantiles q, the
    steps and the series of a row. Values y that are not finite are missing and
    are ignored. A row without values has a loss of 0. The expected loss is
    smallest if f is the quantile q of y.

    Args:
        quantiles: tuple of floats in (0, 1), q. Defaults to
            `(0.1, 0.5, 0.9)`.
        name: str. Defaults to `"quantile_loss"`.
        **kwargs: `reduction` and `dtype` of `keras.losses.Loss`.

    Call arguments:
        y_true: float tensor `(B, H, C)`.
        y_pred: float tensor `(B, H, C, Q)`.
        sample_weight: optional tensor `(B,)`.

    Returns:
        Scalar tensor; a tensor `(B,)` with `reduction=None`.

    Raises:
        ValueError: if a quantile is not between 0 and 1, or if the quantiles
            are not increasing.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import models
    >>> loss = models.QuantileLoss(quantiles=(0.5,))
    >>> true = np.array([[[3.0], [np.nan]]])
    >>> float(loss(true, np.ones((1, 2, 1, 1))))
    1.0

    Source: Koenker, Bassett, "Regression quantiles", Econometrica 1978.
    """

    def __init__(
        self,
        quantiles: tuple[float, ...] = (0.1, 0.5, 0.9),
        name: str = "quantile_loss",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        self.quantiles = check_quantiles(quantiles)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true = ops.expand_dims(y_true, -1)
        given = ops.isfinite(y_true)
        # NaN of a missing value must not reach a gradient.
        error = select(given, select(given, y_true) - y_pred)
        levels = ops.convert_to_tensor(self.quantiles, dtype=y_pred.dtype)
        loss = ops.mean(ops.maximum(levels * error, (levels - 1) * error), -1)
        count = ops.sum(ops.cast(given[..., 0], loss.dtype), axis=(1, 2))
        return safe_divide(ops.sum(loss, axis=(1, 2)), count)

    def get_config(self) -> dict:
        return {**super().get_config(), "quantiles": self.quantiles}


def check_quantiles(quantiles):
    """The quantiles as a tuple; raises a `ValueError` unless they rise."""
    levels = tuple(quantiles)
    bounds = (0, *levels, 1)
    if not levels or any(a >= b for a, b in zip(bounds, bounds[1:])):
        raise ValueError(
            "`quantiles` must be numbers between 0 and 1 that rise. "
            f"Received: quantiles={quantiles!r}."
        )
    return levels
