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

    def attend(self, query, key, value, *unused):
        return 0 * (query + key + value)  # not zeros_like: all get gradients


@dataclasses.dataclass
class Task:
    """What is trained on what.

    Args:
        name: str, of the dataset.
        build: function of a mechanism that returns a model.
        train: function that returns a new `keras.utils.PyDataset`, with
            one-hot labels; so that every mechanism sees the same batches.
        validation: `keras.utils.PyDataset`, held out from the training data.
        test: `keras.utils.PyDataset`.
        sample: array, inputs for which a saved model is compared.
        tokens: int, the longest sequence that the attention sees.
        learning_rate: float, at the peak.
        grid: tuple `(rows, columns)` if the tokens are an image row by row.
            Defaults to `None`.
        weight_decay: float. Defaults to 0.05.
        label_smoothing: float. Defaults to 0.1.
    """

    name: str
    build: Callable
    train: Callable
    validation: keras.utils.PyDataset
    test: keras.utils.PyDataset
    sample: np.ndarray
    tokens: int
    learning_rate: float
    grid: tuple | None = None
    weight_decay: float = 0.05
    label_smoothing: float = 0.1


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
    model.compile(
        optimizer=_optimizer(task, steps),
        loss=keras.losses.CategoricalCrossentropy(
            label_smoothing=task.label_smoothing
        ),
        metrics=["accuracy"],
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
    # The only look at the test data.
    tested = model.evaluate(task.test, verbose=0, return_dict=True)
    print(f"test accuracy {100 * tested['accuracy']:.2f} %")
    return {
        "test_accuracy": tested["accuracy"],
        "test_loss": tested["loss"],
        "seconds_per_epoch": timer.seconds,
        "history": {
            name: [float(value) for value in values]
            for name, values in history.history.items()
        },
    }


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
