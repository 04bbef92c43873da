"""ONNX files give the model's numbers, for any length and with padding."""

import keras
import numpy as np
import pytest

from keras_linattn.export import export_onnx
from keras_linattn.models import CausalLM
from keras_linattn.models import TextClassifier

TENSORFLOW = keras.backend.backend() == "tensorflow"
SIZES = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2}


def padded_tokens():
    tokens = np.random.default_rng(0).integers(1, 257, (2, 37), dtype="int32")
    tokens[1, 20:] = 0
    return tokens


# Between them they need each repair: gelu, log1p, two reshapes, selections.
MODELS = {
    "text": lambda: TextClassifier(2, mechanism="linear_transformer", **SIZES),
    "language": lambda: CausalLM(mechanism="retention", **SIZES),
}


@pytest.mark.skipif(not TENSORFLOW, reason="needs the TensorFlow backend")
@pytest.mark.filterwarnings("default")  # of Keras' part that calls tf2onnx
@pytest.mark.release  # a conversion takes about ten seconds
@pytest.mark.every_case
@pytest.mark.parametrize("name", MODELS)
def test_onnx_gives_the_same_numbers(name, tmp_path):
    pytest.importorskip("tf2onnx", reason="needs the extra `onnx`")
    runtime = pytest.importorskip("onnxruntime")
    model = MODELS[name]()
    path = export_onnx(model, tmp_path / "a" / "model.onnx")
    assert [x.name for x in path.parent.iterdir()] == ["model.onnx"]
    session = runtime.InferenceSession(str(path))
    tokens = padded_tokens()
    for x in (tokens, tokens[:1, :11]):
        (answer,) = session.run(None, {"tokens": x})
        expected = keras.ops.convert_to_numpy(model(x))
        np.testing.assert_allclose(answer, expected, atol=2e-5)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_onnx(model, path)


@pytest.mark.skipif(TENSORFLOW, reason="other backends are refused")
def test_another_backend_is_refused(tmp_path):
    model = TextClassifier(2, **SIZES)
    with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
        export_onnx(model, tmp_path / "model.onnx")
