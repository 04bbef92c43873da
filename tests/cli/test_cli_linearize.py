"""`keras-linattn linearize`."""

import keras
import numpy as np
import pytest
from refusing import refuses

from keras_linattn_cli.main import main

pytestmark = pytest.mark.once


@pytest.fixture
def model_file(tmp_path):
    x = keras.Input((None, 8))
    y = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    path = tmp_path / "model.keras"
    keras.Model(x, y).save(path)
    return path


def test_writes_the_converted_model(model_file, tmp_path, capsys):
    out = tmp_path / "linear.keras"
    arguments = ["linearize", str(model_file), "-o", str(out)]
    assert main([*arguments, "--mechanism", "softmax"]) == 0
    said = capsys.readouterr()
    assert "attention" in said.out
    steps = f"load {model_file}", "make the report", "convert", f"write {out}"
    assert said.err.splitlines() == [
        f"[{number}/4] {step}" for number, step in enumerate(steps, 1)
    ]
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    models = [keras.saving.load_model(path) for path in (model_file, out)]
    outputs = [model.predict(x, verbose=0) for model in models]
    np.testing.assert_allclose(*outputs, atol=1e-5)
    assert "exists" in refuses(capsys, *arguments)


def test_reports_alone(model_file, tmp_path, capsys):
    assert main(["linearize", str(model_file), "--length", "100"]) == 0
    assert "hedgehog" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_refuses(model_file, tmp_path, capsys):
    assert ".keras" in refuses(
        capsys, "linearize", str(model_file), "-o", str(tmp_path / "linear")
    )
    assert "not exist" in refuses(capsys, "linearize", "nothing.keras")
    assert (
        "unknown"
        in refuses(
            capsys, "linearize", str(model_file), "--mechanism", "nothing"
        ).lower()
    )
