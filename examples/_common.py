"""What the example pipelines share: options, files and the table."""

import argparse
import importlib.util
import json
import os
import pathlib
import sys

import _model_card
import keras
import matplotlib
import numpy as np
from _training import Task as Task
from _training import fit_to
from _training import train

import keras_linattn

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot  # noqa: E402  (after the choice above)

TOLERANCE = 1e-4  # between outputs of one model, run in two ways


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
    result.add_argument("--seed", type=integer(0, 2**32 - 1), default=0)
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


def integer(lowest, highest):
    """Makes a function that reads an int of a range on the command line."""

    def read(text):
        if not text.isdecimal() or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(
                f"must be an integer from {lowest:,} to {highest:,}. "
                f"Received: {text!r}."
            )
        return int(text)

    return read


def label_of(identifier):
    """`modified_linformer` or `modified_linformer-reading=projected`."""
    if isinstance(identifier, str):
        return identifier
    arguments = [f"{k}={v}" for k, v in identifier.items() if k != "name"]
    return "-".join([identifier["name"], *arguments])


def load(read, name, unit, smoke, classes="classes"):
    """The `Dataset` that an example reads, or the end with a message.

    Args:
        read: function that returns it; an `ImportError` or `OSError` says what
            is missing and how to get it.
        name: str, of the dataset.
        unit: str, what its examples are.
        smoke: pair of how many examples a smoke run takes of each split, or
            `None`: all of them.
        classes: str, what its classes are. Defaults to `"classes"`.
    """
    try:
        data = read()
    except (ImportError, OSError) as error:
        sys.exit(f"error: {error}")
    print(
        f"{name}: {len(data.train_labels):,} {unit} to train on, "
        f"{len(data.test_labels):,} to test on, "
        f"{len(data.class_names)} {classes}"
    )
    return data.take(*smoke) if smoke else data


def run(task, options, table=None, page=None):
    """Trains, tests, saves and exports with each mechanism of the options.

    Writes `results.json`, `learning_curves.png` and for each mechanism a
    folder with `model.keras`, `MODEL_CARD.md`, the task's files and, if the
    task is exported, `saved_model`.
    Prints what `table` makes of the results, by default `accuracies`, and
    writes it to the file named `page`, if any. Returns the results, a dict for
    each mechanism.
    """
    results = []
    for identifier in options.mechanism:
        label = label_of(identifier)
        print(f"\n{label} on {task.name}, {keras.backend.backend()} backend")
        keras.utils.set_random_seed(options.seed)
        model = task.build(fit_to(identifier, task))
        result = {"mechanism": label, "parameters": model.count_params()}
        result.update(train(model, task, options.epochs))
        result["peak_memory"] = _model_card.peak_memory()
        if task.extra is not None:
            result.update(task.extra(model, result))
        folder = options.out / label
        folder.mkdir(parents=True, exist_ok=True)
        result.update(_save(model, folder, task))
        card = folder / "MODEL_CARD.md"
        _model_card.write(card, task, options, result)
        results.append(result)
        _write_results(results, task, options)  # a later one may fail
    _plot(results, task, options.out / "learning_curves.png")
    text = (table or accuracies)(results)
    print("\n" + text)
    if page is not None:
        (options.out / page).write_text(text + "\n", encoding="utf-8")
    print(f"\nFiles in {options.out}")
    return results


def _save(model, folder, task):
    """Saves in both formats; how far what comes back differs from `model`."""
    sample = task.sample
    expected = model.predict(sample, verbose=0)
    for name, text in task.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    path = folder / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path).predict(sample, verbose=0)
    differences = {"reload_difference": _difference(path, loaded, expected)}
    if not task.export:
        return differences
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
            f"Received: outputs that differ by {difference}."
        )
    return difference


def _write_results(results, task, options):
    summary = {
        "dataset": task.name,
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "cores": os.cpu_count(),
        "options": {k: v for k, v in vars(options).items() if k != "out"},
        **task.notes,
        "runs": results,
    }
    path = options.out / "results.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _plot(results, task, path):
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
    axes[0].set_ylabel(f"loss (nats per {task.unit})")
    axes[1].set_ylabel("accuracy (%)")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[1].legend(loc="lower right")
    figure.suptitle(f"{task.name}: training dashed, validation solid")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def accuracies(results):
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


def markdown(heads, rows):
    """A table in Markdown: the first column to the left, numbers right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
