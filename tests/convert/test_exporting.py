"""What TensorFlow runs of converted models is the model."""

import sys

import keras
import numpy as np
import pytest

import keras_linattn
from keras_linattn import models
from keras_linattn.export import export_saved_model
from keras_linattn.export import serving_directory

sys.path.insert(0, __file__.rpartition("/")[0])
pytest.importorskip("keras_hub")
from families import backbone  # noqa: E402
from families import inputs_of  # noqa: E402
from families import visible  # noqa: E402
from test_linearize import inputs  # noqa: E402
from test_linearize import mixed_model  # noqa: E402

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the exporter is TensorFlow's; torch's tests export through it",
)


def served(path, feed):
    import tensorflow as tf

    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    outputs = serve(**{name: tf.constant(x) for name, x in feed.items()})
    (output,) = outputs.values()
    return output.numpy()


def test_a_functional_model_is_served(tmp_path):
    pytest.importorskip("tensorflow_serving")
    linear = keras_linattn.linearize(mixed_model(), window=2)
    x = inputs()
    path = serving_directory(linear, tmp_path, "linear", verbose=False)
    np.testing.assert_allclose(
        served(path, {"x": x[0], "other": x[1]}), linear(x), atol=1e-5
    )


@pytest.mark.release
def test_a_backbone_is_exported(tmp_path):
    linear = keras_linattn.linearize(backbone("GPT2"), layers=0)
    x = {n: np.asarray(a, "int32") for n, a in inputs_of("GPT2").items()}
    path = export_saved_model(linear, tmp_path / "exported")
    found, expected = (
        visible(np.asarray(y), "GPT2") for y in (served(path, x), linear(x))
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_decoding_step_is_exported(tmp_path):
    """Of a language model of this package: tokens one by one, and at once."""
    import tensorflow as tf

    teacher = models.CausalLM(
        30, hidden_dim=8, num_layers=1, num_heads=2, mechanism="softmax"
    )
    linear = keras_linattn.linearize(teacher, window=2)
    step = linear.step_model()
    path = export_saved_model(step, tmp_path / "exported")
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    ids = np.random.default_rng(0).integers(1, 29, (2, 5), dtype="int32")
    state = {
        x.name: tf.zeros((2, *x.shape[1:]), x.dtype)
        for x in step.inputs
        if x.name != "tokens"
    }
    for n in range(5):
        found = serve(tokens=tf.constant(ids[:, n : n + 1]), **state)
        state = {name: found[name] for name in state}
    (name,) = set(found) - set(state)
    expected = linear(ids)[:, -1]
    np.testing.assert_allclose(found[name], expected, atol=1e-5)
