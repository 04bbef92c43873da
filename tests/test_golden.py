"""Files that a release has saved load, and give the outputs of that time."""

import pathlib

import keras
import numpy as np
import pytest
from helpers import predict

from keras_linattn import mechanisms

GOLDEN = pathlib.Path(__file__).with_name("golden")
FILES = sorted(GOLDEN.glob("*/*.keras"))
TOLERANCE = 2e-5  # relative to the largest output; norms amplify rounding
BUDGET = 400_000  # bytes: a clone of the repository fetches all of them


def names_of(release):
    return {path.stem for path in release.glob("*.keras")}


@pytest.mark.parametrize(
    "path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_loads_with_the_same_outputs(path):
    with np.load(path.with_suffix(".npz")) as saved:
        inputs, expected = saved["inputs"], saved["outputs"]
    model = keras.saving.load_model(path, safe_mode=True)
    found = predict(model, inputs)
    assert found.shape == expected.shape
    if inputs.ndim == 2 and expected.ndim == 3:  # tokens; 0 is padding
        found, expected = found[inputs != 0], expected[inputs != 0]
    largest = np.abs(expected).max()
    assert largest > 0.1  # else the tolerance would say nothing
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=TOLERANCE * largest
    )


@pytest.mark.release
@pytest.mark.once
def test_every_mechanism_has_a_file():
    names = set().union(*map(names_of, GOLDEN.iterdir()))
    missing = set(mechanisms.available()) - names
    assert not missing, "run tests/golden/make.py under each backend"


@pytest.mark.once
def test_size():
    files = [path for path in GOLDEN.rglob("*") if path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < BUDGET
