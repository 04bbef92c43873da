"""Series of numbers to tokens and back, inside `TimeSeriesForecaster`."""

import keras
from keras import ops

from keras_linattn.core.chunks import num_chunks
from keras_linattn.core.masks import select
from keras_linattn.core.numerics import safe_divide
from keras_linattn.layers._base_layer import BaseLayer

LONGEST_PERIOD = 10000.0  # tokens, of the encoding of positions


def to_patches(x, size, horizon):
    """`(B, T + horizon, F)` to `(B, N, size, F)`, 0 at both ends.

    A patch ends where the horizon begins, whatever T is: the oldest patch and
    the last are filled up.
    """
    batch, length, features = ops.shape(x)
    past = length - horizon
    count, ahead = num_chunks(past, size), num_chunks(horizon, size)
    ends = (count * size - past, ahead * size - horizon)
    x = ops.pad(x, [(0, 0), ends, (0, 0)])
    return ops.reshape(x, (batch, count + ahead, size, features))


@keras.saving.register_keras_serializable("keras_linattn")
class SeriesScaling(BaseLayer):
    """Scales each series of each row to mean 0 and standard deviation 1.

    Call arguments:
        series: float tensor `(B, T, C)`; what is not finite is missing.

    Returns:
        The scaled series, 0 where missing; 1 where a value is given and 0
        where it is missing, both `(B, T, C)`; means and deviations, both
        `(B, 1, C)`. A constant series has a deviation of 1.

    Source: Kim et al., "Reversible instance normalization", ICLR 2022.
    """

    def call(self, series):
        finite = ops.isfinite(series)
        given = ops.cast(finite, series.dtype)
        series = select(finite, series)
        count = ops.sum(given, axis=1, keepdims=True)
        center = safe_divide(ops.sum(series, axis=1, keepdims=True), count)
        series = select(finite, series - center)
        squares = ops.sum(ops.square(series), axis=1, keepdims=True)
        scale = ops.sqrt(safe_divide(squares, count))
        scale = ops.where(scale > 0, scale, ops.ones_like(scale))
        return series / scale, given, center, scale

    def compute_output_shape(self, series_shape):
        batch, _, channels = series_shape
        moments = (batch, 1, channels)
        return series_shape, series_shape, moments, moments

    def compute_output_spec(self, series):
        shapes = self.compute_output_shape(series.shape)
        return tuple(keras.KerasTensor(s, dtype="float32") for s in shapes)


@keras.saving.register_keras_serializable("keras_linattn")
class PatchMask(keras.Operation):
    """Which patches have a value or lie in the horizon: `(B, N)`.

    A separate operation for the same reason as `MergeMask`.
    """

    def __init__(self, patch_size, horizon, name=None):
        super().__init__(name=name)
        self.patch_size = patch_size
        self.horizon = horizon

    def call(self, given):
        given = ops.max(given, axis=-1, keepdims=True)
        ahead = [(0, 0), (0, self.horizon), (0, 0)]
        given = ops.pad(given, ahead, constant_values=1)
        given = to_patches(given, self.patch_size, self.horizon)
        # Not `any`: under torch, that of Keras 3.11 takes axes one by one.
        return ops.max(given, axis=(2, 3)) > 0

    def compute_output_spec(self, given):
        shape = patches_shape(given.shape, self.patch_size, self.horizon)
        return keras.KerasTensor(shape, dtype="bool")

    def get_config(self):
        return {
            **super().get_config(),
            "patch_size": self.patch_size,
            "horizon": self.horizon,
        }


def patches_shape(given_shape, patch_size, horizon):
    """`(B, N)` of a history of shape `(B, T, C)`."""
    batch, length = given_shape[:2]
    if length is not None:
        length = num_chunks(length, patch_size) + num_chunks(
            horizon, patch_size
        )
    return (batch, length)


@keras.saving.register_keras_serializable("keras_linattn")
class SeriesPatching(BaseLayer):
    """The steps of a history and of a horizon, as patches side by side.

    Args:
        patch_size: int > 0, steps of a patch.
        horizon: int > 0, steps ahead.

    Call arguments:
        inputs: list of tensors: the series `(B, T, C)`, scaled, 0 where
            missing or unknown; `(B, T, G)`, 1 where a value is given; and, if
            there are any, inputs known for both parts, `(B, T + horizon, K)`,
            of which what is not finite counts as 0.

    Returns:
        Tensor `(B, N, patch_size * (C + G + K + 1))`, the last feature of a
        step being 1 in the horizon. Its mask is `True` for patches that have a
        given value or lie in the horizon.
    """

    def __init__(self, patch_size, horizon, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.patch_size = patch_size
        self.horizon = horizon

    def call(self, inputs):
        series, given, *known = inputs
        known = [select(ops.isfinite(x), x) for x in known]
        ahead = ops.ones_like(given[:, :1, :1])
        ahead = ops.repeat(ahead, self.horizon, axis=1)
        ahead = ops.concatenate([ops.zeros_like(given[..., :1]), ahead], axis=1)
        end = [(0, 0), (0, self.horizon), (0, 0)]
        steps = [ops.pad(series, end), ops.pad(given, end), *known, ahead]
        x = ops.concatenate(steps, axis=-1)
        x = to_patches(x, self.patch_size, self.horizon)
        batch, count, size, features = ops.shape(x)
        return ops.reshape(x, (batch, count, size * features))

    def compute_mask(self, inputs, mask=None):
        return PatchMask(self.patch_size, self.horizon)(inputs[1])

    def compute_output_shape(self, inputs_shape):
        features = 1 + sum(shape[-1] for shape in inputs_shape)
        shape = patches_shape(inputs_shape[0], self.patch_size, self.horizon)
        return (*shape, self.patch_size * features)

    def compute_output_spec(self, inputs):
        shape = self.compute_output_shape([x.shape for x in inputs])
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "patch_size": self.patch_size,
            "horizon": self.horizon,
        }


@keras.saving.register_keras_serializable("keras_linattn")
class PatchPositions(BaseLayer):
    """Adds sines and cosines of how far a patch is from the horizon's first.

    Args:
        ahead: int > 0, patches of the horizon.

    Call arguments:
        tokens: tensor `(B, N, F)`.

    Returns:
        Tensor `(B, N, F)`.

    Source: Vaswani et al., 2017, arXiv 1706.03762, section 3.5, with positions
    counted from the end, so that older patches change nothing.
    """

    def __init__(self, ahead, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.ahead = ahead

    def call(self, tokens):
        length, features = ops.shape(tokens)[1], tokens.shape[2]
        count = (features + 1) // 2
        place = ops.arange(length, dtype="float32")
        place = place - ops.cast(length - self.ahead, "float32")
        power = ops.arange(count, dtype="float32") / count
        angle = ops.expand_dims(place, 1) * LONGEST_PERIOD**-power
        waves = ops.concatenate([ops.sin(angle), ops.cos(angle)], axis=-1)
        return tokens + ops.cast(waves[:, :features], tokens.dtype)

    def compute_output_shape(self, tokens_shape):
        return tokens_shape

    def get_config(self):
        return {**super().get_config(), "ahead": self.ahead}


@keras.saving.register_keras_serializable("keras_linattn")
class QuantileSteps(BaseLayer):
    """Patches of numbers to quantiles of each step, in the series' own units.

    The first number of a step and series is the lowest quantile. The softplus
    of each other number is the distance to the next quantile, so none cross.

    Args:
        horizon: int > 0, steps ahead.
        num_quantiles: int > 0, Q.

    Call arguments:
        inputs: list of tensors: numbers `(B, N, patch_size * C * Q)`, means
            and deviations `(B, 1, C)`.

    Returns:
        Tensor `(B, horizon, C, Q)`.
    """

    def __init__(self, horizon, num_quantiles, **kwargs):
        super().__init__(**kwargs)
        self.horizon = horizon
        self.num_quantiles = num_quantiles

    def call(self, inputs):
        x, center, scale = inputs
        batch, count, size = ops.shape(x)
        channels = center.shape[2]
        steps = count * size // (channels * self.num_quantiles)
        x = ops.reshape(x, (batch, steps, channels, self.num_quantiles))
        x = x[:, : self.horizon]
        gaps = ops.softplus(x[..., 1:])
        x = ops.cumsum(ops.concatenate([x[..., :1], gaps], axis=-1), axis=-1)
        return x * ops.expand_dims(scale, -1) + ops.expand_dims(center, -1)

    def compute_output_shape(self, inputs_shape):
        batch, _, channels = inputs_shape[1]
        return (batch, self.horizon, channels, self.num_quantiles)

    def get_config(self):
        return {
            **super().get_config(),
            "horizon": self.horizon,
            "num_quantiles": self.num_quantiles,
        }
