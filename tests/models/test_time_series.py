"""The forecaster: missing values, older steps, the horizon; its loss."""

import inspect

import keras
import numpy as np
import pytest
from helpers import numpy
from helpers import predict
from helpers import slow_under_jax

from keras_linattn.models import QuantileLoss
from keras_linattn.models import TimeSeriesForecaster

SMALL = {
    "horizon": 5,
    "num_targets": 2,
    "num_past_inputs": 1,
    "num_known_inputs": 3,
    "quantiles": (0.2, 0.5, 0.6, 0.9),
    "patch_size": 4,
    "hidden_dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_dim": 24,
    "dropout": 0.2,
    "mechanism": "linear_transformer",
    "sequence_length": 22,
    "remat": True,
}
ALONE = {"horizon": 5, "patch_size": 4, "hidden_dim": 16, "num_layers": 1}


def inputs(steps=11, batch=3, seed=0):
    """History, inputs of the past, and inputs that are known."""
    draw = np.random.default_rng(seed).normal
    history = 100 + 30 * draw(size=(batch, steps, 2))
    past, known = draw(size=(batch, steps, 1)), draw(size=(batch, steps + 5, 3))
    return [x.astype("float32") for x in (history, past, known)]


@pytest.fixture(scope="module")
def model():
    return TimeSeriesForecaster(**SMALL)


def test_config_is_the_constructor(model):
    config = model.get_config()
    for name, parameter in inspect.signature(type(model)).parameters.items():
        if name not in ("dtype", "kwargs"):
            assert config[name] == SMALL[name], name
            assert SMALL[name] != parameter.default, f"{name} is default"
    assert type(model).from_config(config).get_config() == config


def test_quantiles_are_in_order_and_in_the_series_units(model):
    output = predict(model, inputs())
    assert output.shape == (3, 5, 2, 4) and output.dtype == np.float32
    assert (np.diff(output, axis=-1) > 0).all()
    history, *others = inputs()
    factor = np.array([10, 0.1], "float32")
    scaled = predict(model, [factor * history - 7, *others])
    expected = factor[:, None] * output - 7
    np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("more", [1, 3, 8])
def test_older_steps_without_values_change_nothing(model, more):
    given = inputs()
    longer = [
        np.pad(x, [(0, 0), (more, 0), (0, 0)], constant_values=np.nan)
        for x in given
    ]
    np.testing.assert_allclose(
        predict(model, longer), predict(model, given), rtol=1e-5, atol=1e-3
    )


def test_what_is_missing_counts_nowhere(model):
    """Whatever stands for a missing value; and it is not a 0."""
    history, past, known = inputs()
    history[:, 2:7, 0], past[:, 4] = np.nan, np.nan
    output = predict(model, [history, past, known])
    assert np.isfinite(output).all()
    other = np.where(np.isnan(history), np.inf, history)
    same = predict(model, [other, past, known])
    np.testing.assert_array_equal(same, output)
    zero = predict(model, [np.nan_to_num(history), past, known])
    assert np.abs(zero - output).max() > 1e-3
    empty = np.full_like(history, np.nan)
    assert np.isfinite(predict(model, [empty, past, known])).all()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_input_counts(model, place):
    given = inputs()
    output = predict(model, given)
    given[place][:, -1] += 1.5  # the last step, of the horizon if known
    assert np.abs(predict(model, given) - output).max() > 1e-3


def test_saves_and_takes_any_length(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for steps in (1, 4, 26):
        given = inputs(steps)
        expected = predict(model, given)
        np.testing.assert_array_equal(predict(loaded, given), expected)
    by_name = dict(zip(("history", "past_inputs", "known_inputs"), given))
    np.testing.assert_array_equal(predict(loaded, by_name), expected)


@slow_under_jax
def test_learns_a_season_and_the_spread():
    """Noise around a sine, half of whose values are missing."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 8, 64)[:, None]
    wave = np.sin(2 * np.pi * (starts + np.arange(29)) / 8)
    series = wave + 0.3 * rng.normal(size=wave.shape)
    series[:, :24][rng.random((64, 24)) < 0.5] = np.nan
    series = series[..., None].astype("float32")
    model = TimeSeriesForecaster(**ALONE, dropout=0.0)
    loss = QuantileLoss(model.quantiles)
    model.compile(keras.optimizers.Adam(0.01), loss)
    history, future = series[:, :24], series[:, 24:]
    future[::2, 1] = np.nan  # targets may be missing
    options = {"batch_size": 64, "epochs": 100, "verbose": 0}
    losses = model.fit(history, future, **options).history["loss"]
    constant = np.nanquantile(future, model.quantiles)
    constant = np.broadcast_to(constant, (*future.shape, 3))
    assert losses[-1] < 0.85 * float(loss(future, constant)) < losses[0]
    low, _, high = np.moveaxis(predict(model, history), -1, 0)
    inside = ((low <= future) & (future <= high))[np.isfinite(future)]
    assert 0.5 < inside.mean() < 1


def test_half_precision_stays_finite():
    history = inputs()[0][..., :1] * 1e4
    model = TimeSeriesForecaster(**ALONE, dtype="mixed_bfloat16")
    output = predict(model, history)
    assert output.dtype == np.float32 and np.isfinite(output).all()


def test_loss_is_the_pinball_over_values_that_are_there():
    true = np.array([[[1.0], [5.0]], [[np.nan], [2.0]]], "float32")
    forecast = np.zeros((2, 2, 1, 2), "float32") + [0.0, 3.0]
    loss = QuantileLoss((0.25, 0.5), reduction=None)
    # Errors 1 and -2, 5 and 2; then 2 and -1.
    expected = [(0.25 + 1 + 1.25 + 1) / 4, (0.5 + 0.5) / 2]
    found = numpy(loss(true, forecast.astype("float32")))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    nothing = numpy(loss(true * np.nan, forecast.astype("float32")))
    np.testing.assert_array_equal(nothing, [0, 0])
    assert QuantileLoss.from_config(loss.get_config()).quantiles == (0.25, 0.5)


@pytest.mark.once
def test_refuses():
    for wrong in ((), (0.5, 0.2), (0.5, 1.0), (0.5, 0.5)):
        with pytest.raises(
            ValueError, match="between 0 and 1. Received: quantiles"
        ):
            TimeSeriesForecaster(3, quantiles=wrong)
    with pytest.raises(ValueError, match="`horizon` must be a positive"):
        TimeSeriesForecaster(0)
    with pytest.raises(ValueError, match="num_past_inputs=-1"):
        TimeSeriesForecaster(3, num_past_inputs=-1)
