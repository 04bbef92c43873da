"""Saved under each backend, loaded under each: the outputs are the same.

Runs once, after the tests of the backends: it starts its own processes.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from keras_linattn import mechanisms

BACKENDS = ("tensorflow", "jax", "torch")
WORKER = pathlib.Path(__file__).with_name("worker.py")
TOLERANCE = 1e-5


def work(backend, task, folder):
    child = subprocess.run(
        [sys.executable, WORKER, task, folder],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    """{loaded under: {saved under: {mechanism: relative difference}}}."""
    folder = tmp_path_factory.mktemp("matrix")
    for backend in BACKENDS:
        work(backend, "save", folder)
    for backend in BACKENDS:
        work(backend, "load", folder)
    return {
        backend: json.loads((folder / f"loaded-{backend}.json").read_text())
        for backend in BACKENDS
    }


@pytest.mark.parametrize("mechanism", mechanisms.available())
@pytest.mark.parametrize("loaded", BACKENDS)
@pytest.mark.parametrize("saved", BACKENDS)
def test_outputs_are_the_same(reports, saved, loaded, mechanism):
    assert reports[loaded][saved][mechanism] <= TOLERANCE
