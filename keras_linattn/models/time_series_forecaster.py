"""Forecaster of time series."""

from typing import Any

import keras

from keras_linattn.core.chunks import num_chunks
from keras_linattn.layers._arguments import positive
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.layers.stems._series import PatchPositions
from keras_linattn.layers.stems._series import QuantileSteps
from keras_linattn.layers.stems._series import SeriesPatching
from keras_linattn.layers.stems._series import SeriesScaling
from keras_linattn.mechanisms import Mechanism
from keras_linattn.models._base import FunctionalModel
from keras_linattn.models._base import add_encoder
from keras_linattn.models._base import output_dense
from keras_linattn.models._base import shortened
from keras_linattn.models._base import stores_arguments
from keras_linattn.models.quantile_loss import check_quantiles


@keras.saving.register_keras_serializable("keras_linattn")
class TimeSeriesForecaster(FunctionalModel):
    """Forecasts quantiles of time series from long histories, in linear time.

    The tokens of a linear-attention encoder are patches of the history and of
    the horizon. The quantiles of each step are computed from the tokens of the
    horizon. A history may have any length. Each series of a row is scaled by
    the mean and the standard deviation of its own history, so that series of
    different magnitudes can share a model.

    Missing values are NaN. They are ignored, and patches without any value are
    masked. To batch shorter histories, pad them with NaN at the front.

    Train it with `models.QuantileLoss(quantiles)`, whose targets may have
    missing values too.

    Args:
        horizon: int > 0, H, steps to forecast.
        num_targets: int > 0, C, series that are forecast. Defaults to 1.
        num_past_inputs: int >= 0, further series that are known for the
            history only, such as measured weather. Defaults to 0.
        num_known_inputs: int >= 0, series that are known for the history and
            for the horizon, such as the calendar or prices. Scale them to
            about 1. Defaults to 0.
        quantiles: tuple of increasing floats in (0, 1). Defaults to
            `(0.1, 0.5, 0.9)`.
        patch_size: int > 0, steps of a token. It should divide the season: 24
            for hours, 7 for days. Defaults to 24.
        hidden_dim: int > 0, F. Defaults to 64.
        num_layers: int > 0, encoder blocks. Defaults to 2.
        num_heads: int > 0. Defaults to 4.
        intermediate_dim: int > 0 or `None`, of the feedforward networks.
            Defaults to `None`: 2 * `hidden_dim`.
        dropout: float in [0, 1). Defaults to 0.1.
        mechanism: name, dict, class or object, see `mechanisms.get`, or a
            list of them, one for each block; a shorter list repeats, and the
            last repetition may be cut. An object is shared by all of its
            blocks. Defaults to `"modified_linformer"`.
        sequence_length: int > 0 or `None`, steps of the longest history. Only
            mechanisms with the trait `needs_length` use it, such as
            `"linformer"`. Defaults to `None`: unknown.
        remat: bool, recompute the encoder blocks in the backward pass, see
            `LinearTransformerEncoder`. Defaults to `False`.
        dtype: dtype policy; scaling and output stay in float32. Defaults to
            `None`: Keras' global policy.
        **kwargs: `name` and `trainable` of `keras.Model`.

    Call arguments:
        history: float tensor `(B, T, C)`. With further series, pass a list in
            this order, or a dict by these names: `history`, `past_inputs`
            (float tensor `(B, T, num_past_inputs)`) and `known_inputs` (float
            tensor `(B, T + H, num_known_inputs)`).

    Returns:
        float32 tensor `(B, H, C, Q)`, quantiles that never cross.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> model = keras_linattn.models.TimeSeriesForecaster(
    ...     horizon=24, num_known_inputs=2, hidden_dim=16, num_layers=1)
    >>> history = np.random.default_rng(0).normal(size=(2, 100, 1))
    >>> known = np.zeros((2, 124, 2))
    >>> tuple(model([history, known]).shape)
    (2, 24, 1, 3)

    Source: Nie et al., 2023, arXiv 2211.14730 (patches of series as tokens);
    Kim et al., ICLR 2022 (scaling by the history); Wen et al., 2017, arXiv
    1711.11053 (quantiles of all steps at once, known inputs); Verma, 2020,
    arXiv 2101.10277 (the attention).
    """

    @stores_arguments
    def __init__(
        self,
        horizon: int,
        num_targets: int = 1,
        num_past_inputs: int = 0,
        num_known_inputs: int = 0,
        quantiles: tuple[float, ...] = (0.1, 0.5, 0.9),
        patch_size: int = 24,
        hidden_dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        intermediate_dim: int | None = None,
        dropout: float = 0.1,
        mechanism: str | dict | type | Mechanism | list = "modified_linformer",
        sequence_length: int | None = None,
        remat: bool = False,
        dtype: str | keras.DTypePolicy | None = None,
        **kwargs: Any,
    ):
        policy = keras.dtype_policies.get(dtype)
        quantiles = check_quantiles(quantiles)
        ahead = num_chunks(
            positive("horizon", horizon), positive("patch_size", patch_size)
        )
        inputs = _inputs(num_targets, num_past_inputs, num_known_inputs)
        x, center, scale = _scaled(inputs, num_targets)
        x = SeriesPatching(
            patch_size, horizon, dtype="float32", name="patching"
        )(x)
        x = keras.layers.Dense(
            hidden_dim, dtype=sublayer_policy(policy, "tokens"), name="tokens"
        )(x)
        x = PatchPositions(
            ahead,
            dtype=sublayer_policy(policy, "positions"),
            name="positions",
        )(x)
        block = {
            "num_heads": num_heads,
            "intermediate_dim": intermediate_dim,
            "dropout": dropout,
            "mechanism": mechanism,
            "remat": remat,
        }
        longest = shortened(sequence_length, patch_size)
        longest = None if longest is None else longest + ahead
        x = add_encoder(x, num_layers, block, policy, sequence_length=longest)
        numbers = patch_size * num_targets * len(quantiles)
        x = output_dense("numbers", numbers, policy)(x[:, -ahead:])
        outputs = QuantileSteps(
            horizon, len(quantiles), dtype="float32", name="quantiles"
        )([x, center, scale])
        given = inputs if len(inputs) > 1 else inputs[0]
        super().__init__(inputs=given, outputs=outputs, **kwargs)
        self.policy = policy
        self.quantiles = quantiles


def _inputs(num_targets, num_past_inputs, num_known_inputs):
    """The inputs of the model, in their order."""
    sizes = {"history": positive("num_targets", num_targets)}
    for name, size in (
        ("past_inputs", num_past_inputs),
        ("known_inputs", num_known_inputs),
    ):
        if not isinstance(size, int) or size < 0:
            raise ValueError(
                f"`num_{name}` must be an integer >= 0. "
                f"Received: num_{name}={size!r}."
            )
        if size:
            sizes[name] = size
    return [
        keras.Input((None, size), dtype="float32", name=name)
        for name, size in sizes.items()
    ]


def _scaled(inputs, num_targets):
    """The series to patch, and mean and deviation of the targets."""
    history, *others = inputs
    known = [x for x in others if x.name == "known_inputs"]
    past = [x for x in others if x.name == "past_inputs"]
    scaling = SeriesScaling(dtype="float32", name="scaling")
    series, given, center, scale = scaling(history)
    if past:
        scaling = SeriesScaling(dtype="float32", name="past_scaling")
        more, more_given, _, _ = scaling(past[0])
        join = keras.layers.Concatenate
        series = join(dtype="float32", name="series")([series, more])
        given = join(dtype="float32", name="given")([given, more_given])
    return [series, given, *known], center, scale
