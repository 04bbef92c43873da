"""Writes golden files: models as this release saves them.

    for backend in tensorflow jax torch; do
        KERAS_BACKEND=$backend python tests/golden/make.py
    done

Each backend writes a third of the models into the folder named after the
release, `MODEL.keras` and beside it `MODEL.npz`, the inputs and the outputs.
A file that is there stays: a later release must load it as it is.
"""

import pathlib
import sys
import zipfile

import keras
import numpy as np

import keras_linattn
from keras_linattn import mechanisms
from keras_linattn import models

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "tools"), str(HERE.parent)]

from _saving_models import model_with  # noqa: E402  (after the path above)
from _saving_models import tokens  # noqa: E402
from helpers import predict  # noqa: E402

BACKENDS = ("tensorflow", "jax", "torch")


def text_classifier():
    return models.TextClassifier(
        num_classes=3,
        vocabulary_size=50,
        hidden_dim=8,
        num_layers=1,
        num_heads=2,
        num_buckets=16,
        embedding_dim=4,
        merge_factor=2,
    )


def vision_transformer():
    return models.VisionTransformer(
        num_classes=3, image_shape=(8, 8, 1), hidden_dim=8, num_layers=1
    )


def audio_classifier():
    return models.AudioClassifier(
        num_classes=3,
        strides=(4, 2),
        kernel_sizes=(8, 4),
        hidden_dim=8,
        num_layers=1,
    )


def causal_lm():
    """A mixed stack of modern blocks."""
    return models.CausalLM(
        vocabulary_size=50,
        hidden_dim=8,
        intermediate_dim=12,
        num_layers=2,
        num_heads=2,
        activation="silu",
        normalization="rms",
        use_feedforward_gate=True,
        attention_options={
            "num_key_value_heads": 1,
            "kernel_size": 3,
            "qk_norm": True,
            "rope_max_wavelength": 100,
            "output_norm": True,
            "use_gate": True,
        },
        tie_embeddings=True,
        mechanism=["gated_delta", {"name": "local", "window": 5}],
    )


def time_series_forecaster():
    return models.TimeSeriesForecaster(
        horizon=3, patch_size=4, hidden_dim=8, num_layers=1, num_heads=2
    )


def series():
    generator = np.random.default_rng(0)
    return generator.standard_normal((2, 19, 1)).astype("float32")


def waveforms():
    generator = np.random.default_rng(0)
    return generator.uniform(-1, 1, (2, 99)).astype("float32")


def images():
    generator = np.random.default_rng(0)
    return generator.random((2, 8, 8, 1), dtype="float32")


# {name: (makes the model, makes its inputs)}
MODELS = {
    "model-audio_classifier": (audio_classifier, waveforms),
    "model-causal_lm": (causal_lm, tokens),
    "model-text_classifier": (text_classifier, tokens),
    "model-time_series_forecaster": (time_series_forecaster, series),
    "model-vision_transformer": (vision_transformer, images),
    **{
        name: (lambda name=name: model_with(name), tokens)
        for name in mechanisms.available()
    },
}


def write(name, folder):
    build, inputs = MODELS[name]
    keras.utils.set_random_seed(0)
    model, inputs = build(), inputs()
    np.savez_compressed(
        folder / f"{name}.npz", inputs=inputs, outputs=predict(model, inputs)
    )
    path = folder / f"{name}.keras"
    model.save(path)
    compress(path)


def compress(path):
    """The same members, a tenth of the size: they lie in the repository."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(
        path, "w", zipfile.ZIP_DEFLATED, compresslevel=9
    ) as file:
        for name, content in members.items():
            # Without the time, so that the file is the same when made again.
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def main():
    folder = HERE / keras_linattn.__version__
    folder.mkdir(exist_ok=True)
    first = BACKENDS.index(keras.backend.backend())
    for name in sorted(MODELS)[first :: len(BACKENDS)]:
        if not (folder / f"{name}.keras").exists():
            write(name, folder)


if __name__ == "__main__":
    main()
