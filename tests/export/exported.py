"""Runs what was exported, and the model it was exported from."""

import atexit
import functools
import json
import pathlib
import subprocess
import sys

import numpy as np
from helpers import predict

NAME = "topics"  # of the model that `conftest.py` publishes
C_API = pathlib.Path(__file__).with_name("c_api.py")


def outputs_of(model, feeds):
    """The model's own outputs, all in one batch: padding changes nothing.

    One shape, since JAX compiles for each.
    """
    arrays = [array for feed in feeds for array in feed.values()]
    sizes = np.max([array.shape for array in arrays], axis=0)[1:]
    padded = np.concatenate([pad(array, sizes) for array in arrays])
    ends = np.cumsum([len(array) for array in arrays])[:-1]
    return np.split(predict(model, padded), ends)


def pad(array, sizes):
    """0s at the end of each axis but the first."""
    missing = [(0, size - own) for size, own in zip(sizes, array.shape[1:])]
    return np.pad(array, [(0, 0), *missing])


def run_c_api(path, feeds, folder, signature="serving_default"):
    """Returns the outputs for each of `feeds`, and what the script printed."""
    files = []
    for number, feed in enumerate(feeds):
        files += [folder / f"in{number}.npz", folder / f"out{number}.npz"]
        np.savez(files[-2], **feed)
    child = _c_api()
    job = [str(path), signature, *map(str, files)]
    child.stdin.write(json.dumps(job) + "\n")
    child.stdin.flush()
    report = child.stdout.readline()
    if not report:
        _c_api.cache_clear()
        raise AssertionError("The process of the C API failed, see above.")
    outputs = [dict(np.load(file)) for file in files[1::2]]
    return outputs, json.loads(report)


@functools.cache
def _c_api():
    """One process for all tests: it takes a second to start."""
    child = subprocess.Popen(
        [sys.executable, C_API],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(child.communicate)
    return child


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}
