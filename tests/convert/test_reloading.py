"""Files and presets of converted models under the other backends."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

import keras_linattn

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
pytest.importorskip("keras_hub")
import reload  # noqa: E402
from families import backbone  # noqa: E402
from test_linearize import mixed_model  # noqa: E402

# int8 rounds another way at a tie on another backend.
TOLERANCES = {"mixed": 1e-5, "mixed_int8": 3e-2, "GPT2": 1e-5, "Bart": 1e-5}
BACKENDS = ("tensorflow", "jax", "torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models that this backend saved, and their outputs."""
    import numpy as np

    folder = tmp_path_factory.mktemp("converted")
    models = {
        "mixed": keras_linattn.linearize(mixed_model(), window=2),
        "mixed_int8": keras_linattn.linearize(mixed_model()),
        "GPT2": keras_linattn.linearize(backbone("GPT2"), layers=0, window=4),
        "Bart": keras_linattn.linearize(backbone("Bart"), window=4),
    }
    models["mixed_int8"].quantize("int8")
    for name, model in models.items():
        np.save(folder / f"{name}.npy", reload.outputs(model, name))
        if name == "GPT2":
            model.save_to_preset(str(folder / name))
        else:
            model.save(folder / f"{name}.keras")
    return folder


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.parametrize(
    "backend",
    [
        # A process that compiles everything anew.
        pytest.param(x, marks=[pytest.mark.release] * (x == "jax"))
        for x in BACKENDS
        if x != keras.backend.backend()
    ],
)
def test_another_backend_loads_what_this_one_saved(backend, folder):
    path = os.pathsep.join(map(str, [HERE, HERE.parent, *sys.path]))
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": path}
    worker = [sys.executable, HERE / "reload.py", folder]
    done = subprocess.run(worker, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((folder / f"{backend}.json").read_text())
    assert found.keys() == TOLERANCES.keys()
    for name, difference in found.items():
        assert difference < TOLERANCES[name], name
