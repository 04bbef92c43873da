"""Runs what was exported, and the model it was exported from."""

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
    child = subprocess.run(
        [sys.executable, C_API, path, signature, *files],
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    outputs = [dict(np.load(file)) for file in files[1::2]]
    return outputs, json.loads(child.stdout)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}
