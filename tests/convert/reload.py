"""Loads converted models that another backend saved, in a fresh process.

    KERAS_BACKEND=jax python tests/convert/reload.py FOLDER

Writes FOLDER/<backend>.json: the largest difference of each model's outputs
from those that are saved beside it.
"""

import json
import pathlib
import sys

import keras
import keras_hub
import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent)]

import test_linearize  # noqa: E402  (registers its block)
from families import inputs_of  # noqa: E402
from families import visible  # noqa: E402


def outputs(model, name):
    """The model's outputs where something is visible."""
    if name.startswith("mixed"):
        return model.predict(test_linearize.inputs(), verbose=0)
    return visible(model.predict(inputs_of(name), verbose=0), name)


def load(path):
    if path.is_dir():
        return keras_hub.models.Backbone.from_preset(str(path))
    return keras.saving.load_model(path)


def main(folder):
    found = {}
    for expected in sorted(folder.glob("*.npy")):
        path = folder / f"{expected.stem}.keras"
        path = path if path.is_file() else folder / expected.stem
        output = outputs(load(path), expected.stem)
        found[expected.stem] = float(np.abs(output - np.load(expected)).max())
    name = f"{keras.backend.backend()}.json"
    (folder / name).write_text(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
