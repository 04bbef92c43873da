"""Training with one mechanism or another: what is shared by all who compare."""

import dataclasses
import sys
import time
from collections.abc import Callable

import keras
import numpy as np

import keras_linattn

WARM_UP = 0.1  # part of all steps in which the learning rate rises


@keras_linattn.mechanisms.register("no_attention", package="examples")
class NoAttention(keras_linattn.Mechanism):
    """Zeros: what the rest of the model can do without its attention."""

    traits = keras_linattn.mechanisms.Traits(explicit=False)

    def attend(self, query, key, value, **unused):
        return 0 * (query + key + value)  # not zeros_like: all get gradients


@dataclasses.dataclass
class Task:
    """What is trained on what.

    Args:
        name: str, of the dataset.
        split: str, how many examples there are to train on, held out from
            them and to test on, and how they were parted.
        build: function of a mechanism that returns a model.
        train: function that returns a new `keras.utils.PyDataset`, with
            labels as `loss` wants them; so that every mechanism sees the same
            batches.
        validation: `keras.utils.PyDataset`, held out from the training data.
        test: `keras.utils.PyDataset`, or a dict of some by name.
        sample: array, inputs for which a saved model is compared.
        tokens: int, the longest sequence that the attention sees.
        learning_rate: float, at the peak.
        grid: tuple `(rows, columns)` if the tokens are an image row by row.
            Defaults to `None`.
        weight_decay: float. Defaults to 0.05.
        label_smoothing: float, of the default loss. Defaults to 0.1.
        loss: Keras loss. Defaults to `None`: cross-entropy of probabilities
            and one-hot labels.
        unit: str, what the loss is a mean over. Defaults to `"example"`.
        export: bool, whether a SavedModel is written. Defaults to `True`.
        extra: function of the trained model and of its results, which returns
            more of them. Defaults to `None`.
        notes: dict of what else there is to say in `results.json`.
        card: dict of more rows of `MODEL_CARD.md`.
        files: dict, by their names the texts of files that a saved model is
            of no use without.
    """

    name: str
    split: str
    build: Callable
    train: Callable
    validation: keras.utils.PyDataset
    test: keras.utils.PyDataset | dict
    sample: np.ndarray
    tokens: int
    learning_rate: float
    grid: tuple | None = None
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    loss: keras.losses.Loss | None = None
    unit: str = "example"
    export: bool = True
    extra: Callable | None = None
    notes: dict = dataclasses.field(default_factory=dict)
    card: dict = dataclasses.field(default_factory=dict)
    files: dict = dataclasses.field(default_factory=dict)


def fit_to(identifier, task):
    """Tells a mechanism how long the sequences or how wide the images are.

    Args:
        identifier: name or dict of a mechanism.
        task: `Task`.

    Returns:
        `identifier`, with the arguments that its traits ask for and that it
        does not hold itself.
    """
    traits = keras_linattn.mechanisms.get(identifier).traits
    arguments = {}
    if traits.needs_length:
        arguments["sequence_length"] = task.tokens
    if traits.grid and task.grid is not None:
        arguments["grid"] = task.grid
    if not arguments:
        return identifier
    if isinstance(identifier, str):
        identifier = {"name": identifier}
    return {**arguments, **identifier}


class EpochTimer(keras.callbacks.Callback):
    """Seconds of training in each epoch, validation left out."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_test_begin(self, logs=None):
        self.seconds.append(time.perf_counter() - self._start)


def compile_model(model, task, steps):
    """Compiles for a training of so many steps."""
    loss = task.loss
    if loss is None:
        loss = keras.losses.CategoricalCrossentropy(
            label_smoothing=task.label_smoothing
        )
    # Weighted: a batch may say which of its labels count.
    model.compile(
        optimizer=_optimizer(task, steps),
        loss=loss,
        weighted_metrics=["accuracy"],
    )


def train(model, task, epochs):
    """Trains and tests; returns a dict of accuracies, losses and times."""
    batches, timer = task.train(), EpochTimer()
    compile_model(model, task, len(batches) * epochs)
    history = model.fit(
        batches,
        validation_data=task.validation,
        epochs=epochs,
        callbacks=[timer],
        verbose=1 if sys.stdout.isatty() else 2,  # no bar in a log file
    )
    return {
        **test(model, task),
        "seconds_per_epoch": timer.seconds,
        "history": {
            name: [float(value) for value in values]
            for name, values in history.history.items()
        },
    }


def test(model, task):
    """Accuracy and loss on the test data; for a dict of some, on each."""
    if not isinstance(task.test, dict):
        return {f"test_{k}": x for k, x in _tested(model, task.test).items()}
    return {
        "test": {
            name: _tested(model, batches, f" ({name})")
            for name, batches in task.test.items()
        }
    }


def _tested(model, batches, name=""):
    # The only look at the test data.
    tested = model.evaluate(batches, verbose=0, return_dict=True)
    print(f"test accuracy{name} {100 * tested['accuracy']:.2f} %")
    return {key: tested[key] for key in ("accuracy", "loss")}


def _optimizer(task, steps):
    """AdamW; the learning rate rises in a line and falls as a cosine."""
    warm_up = max(1, round(WARM_UP * steps))
    optimizer = keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=max(1, steps - warm_up),
            warmup_target=task.learning_rate,
            warmup_steps=warm_up,
        ),
        weight_decay=task.weight_decay,
        clipnorm=1.0,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
