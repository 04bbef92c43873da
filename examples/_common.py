"""What the example pipelines share: options, training, files and the table."""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Callable

import keras
import matplotlib
import numpy as np

import keras_linattn

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot  # noqa: E402  (after the choice above)

WARM_UP = 0.1  # part of all steps in which the learning rate rises
TOLERANCE = 1e-4  # between probabilities of one model, run in two ways


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
    weight_decay: float = 0.05
    label_smoothing: float = 0.1


def parser(description, out, epochs, batch_size):
    """The options that all examples have."""
    result = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    result.add_argument(
        "--mechanism",
        nargs="+",
        type=mechanism,
        default=["modified_linformer"],
        help="names, or JSON such as "
        '\'{"name": "modified_linformer", "reading": "projected"}\'; '
        "softmax and no_attention are for comparison",
    )
    result.add_argument("--epochs", type=positive, default=epochs)
    result.add_argument("--batch-size", type=positive, default=batch_size)
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--out", type=pathlib.Path, default=pathlib.Path(out))
    result.add_argument("--smoke", action="store_true", help="does it run?")
    return result


def mechanism(text):
    """A mechanism on the command line, checked: a name or a JSON dict."""
    try:
        identifier = json.loads(text) if text.startswith("{") else text
        keras_linattn.mechanisms.get(identifier)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return identifier


def positive(text):
    """An int > 0 on the command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(
            f"must be a positive integer. Received: {text!r}."
        )
    return int(text)


def label_of(identifier):
    """`modified_linformer` or `modified_linformer-reading=projected`."""
    if isinstance(identifier, str):
        return identifier
    arguments = [f"{k}={v}" for k, v in identifier.items() if k != "name"]
    return "-".join([identifier["name"], *arguments])


def run(task, options):
    """Trains, tests, saves and exports with each mechanism of the options.

    Writes `results.json`, `learning_curves.png` and for each mechanism a
    folder with `model.keras` and `saved_model`. Returns the results, a dict
    for each mechanism.
    """
    results = []
    for identifier in options.mechanism:
        label = label_of(identifier)
        print(f"\n{label} on {task.name}, {keras.backend.backend()} backend")
        keras.utils.set_random_seed(options.seed)
        model = task.build(_with_length(identifier, task.tokens))
        result = {"mechanism": label, "parameters": model.count_params()}
        result.update(_train(model, task, options.epochs))
        folder = options.out / label
        folder.mkdir(parents=True, exist_ok=True)
        result.update(_save(model, folder, task.sample))
        results.append(result)
        _write_results(results, task, options)  # a later one may fail
    _plot(results, task.name, options.out / "learning_curves.png")
    print("\n" + table(results))
    print(f"\nFiles in {options.out}")
    return results


def _with_length(identifier, tokens):
    """Tells mechanisms of fixed length how long the longest input is."""
    traits = keras_linattn.mechanisms.get(identifier).traits
    if not traits.needs_length:
        return identifier
    if isinstance(identifier, str):
        identifier = {"name": identifier}
    return {"sequence_length": tokens, **identifier}


class EpochTimer(keras.callbacks.Callback):
    """Seconds of training in each epoch, validation left out."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_test_begin(self, logs=None):
        self.seconds.append(time.perf_counter() - self._start)


def _train(model, task, epochs):
    train, timer = task.train(), EpochTimer()
    model.compile(
        optimizer=_optimizer(task, len(train) * epochs),
        loss=keras.losses.CategoricalCrossentropy(
            label_smoothing=task.label_smoothing
        ),
        metrics=["accuracy"],
    )
    history = model.fit(
        train,
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


def _save(model, folder, sample):
    """Saves in both formats; how far what comes back differs from `model`."""
    expected = model.predict(sample, verbose=0)
    path = folder / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path).predict(sample, verbose=0)
    differences = {"reload_difference": _difference(path, loaded, expected)}
    if importlib.util.find_spec("tensorflow") is None:
        print("No SavedModel: it needs TensorFlow (`pip install tensorflow`).")
        return {**differences, "export_difference": None}
    path = folder / "saved_model"
    keras_linattn.export.export_saved_model(model, path, overwrite=True)
    served = _serve(path, model.inputs[0].name, sample)
    differences["export_difference"] = _difference(path, served, expected)
    return differences


def _serve(path, input_name, sample):
    import tensorflow as tf  # only here: Keras may run on another backend

    signature = tf.saved_model.load(path).signatures["serving_default"]
    return signature(**{input_name: tf.constant(sample)})["output_0"].numpy()


def _difference(path, received, expected):
    difference = float(np.max(np.abs(received - expected)))
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"{path} must answer as the trained model, to {TOLERANCE}. "
            f"Received: probabilities that differ by {difference}."
        )
    return difference


def _write_results(results, task, options):
    summary = {
        "dataset": task.name,
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "options": {k: v for k, v in vars(options).items() if k != "out"},
        "runs": results,
    }
    path = options.out / "results.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _plot(results, dataset, path):
    """Loss and accuracy over epochs; training dashed, validation solid."""
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    for number, result in enumerate(results):
        history = result["history"]
        epochs = range(1, len(history["loss"]) + 1)
        for axis, name, scale in zip(axes, ("loss", "accuracy"), (1, 100)):
            for prefix, style in (("", "--"), ("val_", "-")):
                axis.plot(
                    epochs,
                    scale * np.array(history[prefix + name]),
                    style + "o",
                    markersize=3,
                    color=f"C{number}",
                    label=result["mechanism"] if prefix else None,
                )
    axes[0].set_ylabel("loss (nats per example)")
    axes[1].set_ylabel("accuracy (%)")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[1].legend(loc="lower right")
    figure.suptitle(f"{dataset}: training dashed, validation solid")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def table(results):
    """The results as lines of text."""
    width = max(len(result["mechanism"]) for result in results)
    heads = ("parameters", "test accuracy", "s per epoch", "s training")
    lines = ["  ".join([f"{'mechanism':{width}}", *heads])]
    for result in results:
        seconds = result["seconds_per_epoch"]
        lines.append(
            f"{result['mechanism']:{width}}"
            f"  {result['parameters']:10,}"
            f"  {100 * result['test_accuracy']:11.2f} %"
            # The median: the first epoch also compiles.
            f"  {np.median(seconds):11.1f}"
            f"  {sum(seconds):10.1f}"
        )
    return "\n".join(lines)
