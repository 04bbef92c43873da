"""The README's examples run, and its file answers alike under each backend."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

README = pathlib.Path(__file__).parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
BACKENDS = ("tensorflow", "jax", "torch")


def run(code, backend, folder):
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the first example has saved its model, under JAX."""
    folder = tmp_path_factory.mktemp("readme")
    run(BLOCKS[0], "jax", folder)
    return folder


def test_one_file_answers_alike_under_each_backend(folder):
    outputs = [
        ast.literal_eval(run(BLOCKS[1], backend, folder))
        for backend in BACKENDS
    ]
    assert np.shape(outputs) == (3, 2, 2)
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], atol=1e-5)


@pytest.mark.parametrize("number", range(2, len(BLOCKS)))
def test_the_other_examples_run(number, folder):
    run(BLOCKS[number], BACKENDS[number % len(BACKENDS)], folder)
    if "serving/classifier" in BLOCKS[number]:
        assert (folder / "serving/classifier/1/saved_model.pb").is_file()


def test_the_examples_export():
    assert any("serving/classifier" in block for block in BLOCKS[2:])
