"""Signatures that take raw input: text, pixels, and those of own models."""

import keras
import numpy as np
import pytest
from exported import outputs_of
from exported import run_c_api
from helpers import predict

from keras_linattn.export import export_saved_model
from keras_linattn.models import TextClassifier
from keras_linattn.models import VisionTransformer

TOLERANCE = 1e-5
LENGTHS = (1, 7, 128, 1000)
SMALL = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2}


def text_classifier(**options):
    return TextClassifier(
        3, num_buckets=64, embedding_dim=8, **SMALL, **options
    )


def tokens_of(texts):
    """What the model was trained on: byte b is b + 1, and 0 pads."""
    tokens = np.zeros((len(texts), max(map(len, texts), default=1)), "int32")
    for row, text in zip(tokens, texts):
        row[: len(text)] = np.frombuffer(text, "uint8").astype("int32") + 1
    return tokens


def random_text(length):
    """UTF-8 of `length` bytes, of one, two and three bytes a character."""
    generator = np.random.default_rng(length)
    text = "".join(generator.choice(list("a z\0é火"), length)).encode()
    text = text[: length - 1].decode(errors="ignore").encode()
    return text.ljust(length, b".")  # NumPy drops zeros at the end


def test_text_through_the_c_api(tmp_path):
    model = text_classifier()
    path = export_saved_model(model, tmp_path / "model")
    batches = [[random_text(length)] for length in LENGTHS]
    batches.append([b"", *map(random_text, LENGTHS)])  # 5, of all lengths
    feeds = [{"text": np.array(texts)} for texts in batches]
    outputs, report = run_c_api(path, feeds, tmp_path, "serve_text")
    assert report["signature"]["inputs"]["text"]["shape"] == [-1]
    expected = outputs_of(model, [{"tokens": tokens_of(t)} for t in batches])
    for output, rows in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(
            output["output_0"], rows, rtol=0, atol=TOLERANCE
        )
    assert np.ptp(expected[-1], axis=0).max() > 100 * TOLERANCE


def test_pixels_through_the_c_api(tmp_path):
    model = VisionTransformer(3, image_shape=(8, 8, 2), **SMALL)
    path = export_saved_model(model, tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 2), "uint8")
    feeds = [{"pixels": pixels[:1]}, {"pixels": pixels}]
    outputs, _ = run_c_api(path, feeds, tmp_path, "serve_pixels")
    expected = predict(model, (pixels / 255).astype("float32"))
    for output, rows in zip(outputs, (expected[:1], expected), strict=True):
        np.testing.assert_allclose(
            output["output_0"], rows, rtol=0, atol=TOLERANCE
        )


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="two processes more"
)
def test_preprocessor_of_an_own_model(tmp_path):
    class Halving(keras.Model):
        def serving_preprocessors(self):
            whole = keras.InputSpec(shape=(None, 2), dtype="int32", name="n")
            return {"serve_n": (whole, lambda n: {"x": tf.cast(n, "float32")})}

    tf = pytest.importorskip("tensorflow")
    # A dict of inputs, as a model with several has.
    x = keras.Input((2,), name="x")
    model = Halving({"x": x}, keras.layers.Rescaling(0.5)(x))
    path = export_saved_model(model, tmp_path / "model")
    feed = {"n": np.array([[1, 2]], "int32")}
    outputs, _ = run_c_api(path, [feed], tmp_path, "serve_n")
    np.testing.assert_array_equal(outputs[0]["output_0"], [[0.5, 1.0]])


def test_other_vocabularies_are_not_bytes():
    """Their ids come from some tokenizer: bytes would be wrong in silence."""
    assert text_classifier(vocabulary_size=300).serving_preprocessors() == {}
    assert list(text_classifier().serving_preprocessors()) == ["serve_text"]
