"""`keras-linattn export --to onnx`. Conversion: `tests/export/test_onnx.py`."""

import pathlib

import keras
import numpy as np
import pytest
from refusing import refuses

from keras_linattn_cli.main import main

TENSORFLOW = keras.backend.backend() == "tensorflow"


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.keras"
    layers = [keras.Input((3,), name="x"), keras.layers.Dense(2)]
    keras.Sequential(layers).save(path)
    return path


@pytest.mark.once
def test_hands_over_to_the_public_function(
    model_file, tmp_path, capsys, monkeypatch
):
    calls = []

    def export_onnx(model, path, overwrite):
        calls.append((path, overwrite))
        assert isinstance(model, keras.Model)
        return pathlib.Path(path)

    monkeypatch.setattr("keras_linattn.export.export_onnx", export_onnx)
    path = tmp_path / "model.onnx"
    arguments = ["export", str(model_file), str(path), "--to", "onnx"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"Wrote {path}\n"
    path.touch()
    assert "--overwrite" in refuses(capsys, *arguments)
    assert main([*arguments, "--overwrite"]) == 0
    assert calls == [(str(path), False), (str(path), True)]


@pytest.mark.skipif(TENSORFLOW, reason="other backends are refused")
@pytest.mark.once
def test_another_backend_is_refused(model_file, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    said = refuses(capsys, "export", model_file, path, "--to", "onnx")
    assert "KERAS_BACKEND=tensorflow" in said
    assert not path.exists()


@pytest.mark.skipif(not TENSORFLOW, reason="needs the TensorFlow backend")
@pytest.mark.filterwarnings("default")  # of Keras' part that calls tf2onnx
def test_from_the_file_to_the_onnx_file(model_file, tmp_path, capsys):
    pytest.importorskip("tf2onnx", reason="needs the extra `onnx`")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    assert main(["export", str(model_file), str(path), "--to", "onnx"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Wrote {path}"
    x = np.ones((4, 3), "float32")
    (answer,) = runtime.InferenceSession(path).run(None, {"x": x})
    model = keras.saving.load_model(model_file)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(answer, expected, atol=1e-6)
