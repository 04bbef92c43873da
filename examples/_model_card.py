"""MODEL_CARD.md: what a saved model was trained on, how, and how good it is."""

import importlib.metadata
import os
import pathlib
import platform
import sys

import keras

PACKAGES = ("keras", "numpy", "tensorflow", "jax", "torch")


def peak_memory():
    """Bytes: the largest resident memory of this process so far, or `None`."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    try:
        # Its own line, since `getrusage` of Linux counts the parent's peak.
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        peaks = [line.split()[1] for line in lines if line[:6] == "VmHWM:"]
        return 1024 * int(peaks[0])
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def versions():
    """Versions of what is installed of the packages that matter."""
    found = {"python": platform.python_version()}
    for name in ("keras-linattn", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # one backend is enough
    return found


def write(path, task, options, result):
    """Writes the card of one trained model.

    Args:
        path: `pathlib.Path` of the file.
        task: `Task` that it was trained on.
        options: the example's options.
        result: dict of results, with `peak_memory`.
    """
    rows = {
        "data": task.name,
        "split": task.split,
        **task.card,
        "mechanism": f"`{result['mechanism']}`",
        "parameters": f"{result['parameters']:,}",
        **_accuracies(result),
        "seconds of training": f"{sum(result['seconds_per_epoch']):.1f}",
        "peak memory": _megabytes(result["peak_memory"]),
        "epochs": options.epochs,
        "batch size": options.batch_size,
        "seed": options.seed,
        "backend": keras.backend.backend(),
        "processor cores": os.cpu_count(),
        "versions": ", ".join(f"{k} {v}" for k, v in versions().items()),
    }
    lines = [
        f"# {result['mechanism']} on {task.name}",
        "",
        f"`model.keras` as `{pathlib.Path(sys.argv[0]).name}` of keras_linattn "
        f"trained it{', a smoke test: good for nothing' * options.smoke}.",
        "",
        "| | |",
        "| --- | --- |",
        *[f"| {name} | {value} |" for name, value in rows.items()],
        "",
        "Seconds are those of training alone, validation left out. The memory "
        "is that of the whole process up to here, data and earlier models of "
        "the same run with it. One run with one seed: a threaded sum may add "
        "in another order, and another run differ.",
        "",
        "Load it with `keras.saving.load_model` after `import keras_linattn`.",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _accuracies(result):
    if "test" not in result:
        return {"test accuracy": _percent(result["test_accuracy"])}
    return {
        f"test accuracy, {name}": _percent(tested["accuracy"])
        for name, tested in result["test"].items()
    }


def _percent(accuracy):
    return f"{100 * accuracy:.2f} %"


def _megabytes(size):
    return "unknown" if size is None else f"{size / 1e6:,.0f} MB"
