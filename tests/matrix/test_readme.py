"""The README's examples run, and its file answers alike under each backend."""

import ast
import json
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
SAVES, LOADS = 0, 1
# Each example in names of its own; what it prints is the answer.
RUN = """
import contextlib, io, json, sys
said = {}
for number, block in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(block, f"example {number}", "exec"), {})
    said[number] = out.getvalue()
print(json.dumps(said))
"""


def run(numbers, backend, folder):
    """What the examples print, in one process: starting it takes longest."""
    child = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps({number: BLOCKS[number] for number in numbers}),
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            # The file is compiled as JAX compiles; torch would start a C++
            # compiler, which takes half a minute for the same numbers.
            "TORCHDYNAMO_DISABLE": "1",
        },
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    said = json.loads(child.stdout.splitlines()[-1])
    return {int(number): text for number, text in said.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def said(folder):
    """What each backend's examples print; JAX is the first, and saves."""
    return {
        backend: run(numbers, backend, folder)
        for backend, numbers in (
            ("jax", (SAVES, LOADS, *others("jax"))),
            ("tensorflow", (LOADS, *others("tensorflow"))),
            ("torch", (LOADS, *others("torch"))),
        )
    }


def others(backend):
    """Every third of the other examples."""
    return [
        number
        for number in range(LOADS + 1, len(BLOCKS))
        if BACKENDS[number % len(BACKENDS)] == backend
    ]


def test_one_file_answers_alike_under_each_backend(said):
    outputs = [ast.literal_eval(said[backend][LOADS]) for backend in BACKENDS]
    assert np.shape(outputs) == (3, 2, 2)
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], atol=1e-5)


def test_all_examples_run(said, folder):
    ran = {number for numbers in said.values() for number in numbers}
    assert ran == set(range(len(BLOCKS)))
    files = re.findall(r'\.save\("(.+?)"\)', "".join(BLOCKS))
    assert files
    for name in files:
        assert (folder / name).is_file()
