"""One process under one backend: saves models, or loads and runs them.

    KERAS_BACKEND=jax python worker.py save FOLDER
    KERAS_BACKEND=torch python worker.py load FOLDER

`save` writes FOLDER/<backend>/<mechanism>.keras, with inputs and outputs
beside it; `load` runs all files of all backends, and writes
FOLDER/loaded-<backend>.json: {saved under: {mechanism: largest difference}}.
"""

import json
import pathlib
import sys

import keras
import numpy as np

from keras_linattn import LinearSelfAttention
from keras_linattn import LinearTransformerDecoder
from keras_linattn import LinearTransformerEncoder
from keras_linattn import mechanisms


def model_with(name):
    """A Sequential model with the mechanism in a layer and in a block."""
    traits = mechanisms.get(name).traits
    mechanism = {"name": name}
    block = (
        LinearTransformerEncoder
        if traits.bidirectional
        else LinearTransformerDecoder
    )
    if traits.needs_length:
        mechanism["sequence_length"] = 32
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32", name="tokens"),
            keras.layers.Embedding(50, 8, mask_zero=True),
            LinearSelfAttention(
                2, 4, mechanism=mechanism, causal=traits.causal
            ),
            block(12, 2, mechanism=mechanism),
            keras.layers.Dense(3),
        ],
        name=name,
    )


def tokens():
    generator = np.random.default_rng(0)
    x = generator.integers(1, 50, (3, 17), dtype="int32")
    x[1, 9:] = 0  # padding
    return x


def outputs(model):
    """At the visible positions: what stands at the others means nothing."""
    x = tokens()
    found = keras.ops.convert_to_numpy(model(x, training=False))
    return np.where(x[..., None] != 0, found, 0)


def save(folder):
    folder = folder / keras.backend.backend()
    folder.mkdir(parents=True)
    for name in mechanisms.available():
        keras.utils.set_random_seed(0)
        model = model_with(name)
        generator = np.random.default_rng(1)
        for variable in model.trainable_variables:
            noise = 0.1 * generator.standard_normal(variable.shape)
            variable.assign_add(noise.astype("float32"))
        model.save(folder / f"{name}.keras")
        np.save(folder / f"{name}.npy", outputs(model))


def load(folder):
    report = {}
    for path in sorted(folder.glob("*/*.keras")):
        model = keras.saving.load_model(path)
        expected = np.load(path.with_suffix(".npy"))
        difference = float(np.abs(outputs(model) - expected).max())
        report.setdefault(path.parent.name, {})[path.stem] = difference
    path = folder / f"loaded-{keras.backend.backend()}.json"
    path.write_text(json.dumps(report))


if __name__ == "__main__":
    {"save": save, "load": load}[sys.argv[1]](pathlib.Path(sys.argv[2]))
