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

from keras_linattn import mechanisms

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))

from _saving_models import difference  # noqa: E402  (after the path above)
from _saving_models import model_with  # noqa: E402
from _saving_models import outputs  # noqa: E402


def save(folder):
    folder = folder / keras.backend.backend()
    folder.mkdir(parents=True)
    for name in mechanisms.available():
        keras.utils.set_random_seed(0)
        model = model_with(name)
        model.save(folder / f"{name}.keras")
        np.save(folder / f"{name}.npy", outputs(model))


def load(folder):
    report = {}
    for path in sorted(folder.glob("*/*.keras")):
        model = keras.saving.load_model(path)
        expected = np.load(path.with_suffix(".npy"))
        found = difference(outputs(model), expected)
        report.setdefault(path.parent.name, {})[path.stem] = found
    path = folder / f"loaded-{keras.backend.backend()}.json"
    path.write_text(json.dumps(report))


if __name__ == "__main__":
    {"save": save, "load": load}[sys.argv[1]](pathlib.Path(sys.argv[2]))
