"""How long an export takes, and how large it is beside the weights.

    KERAS_BACKEND=jax python tools/export_size.py
    KERAS_BACKEND=tensorflow python tools/export_size.py --mechanism softmax

A text classifier of twelve layers, at length `None`. Prints one JSON object:
seconds of `export_saved_model`, bytes of the weights and of the folder, and
their ratio.
"""

import argparse
import json
import pathlib
import tempfile
import time

import keras

import keras_linattn


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--mechanism", default="modified_linformer")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    model = keras_linattn.models.TextClassifier(
        num_classes=8,
        hidden_dim=options.dim,
        num_layers=options.layers,
        num_heads=options.heads,
        mechanism=options.mechanism,
    )
    weights = sum(
        keras.ops.convert_to_numpy(weight).nbytes for weight in model.weights
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = keras_linattn.export.export_saved_model(
            model, pathlib.Path(folder) / "model"
        )
        seconds = time.perf_counter() - start
        files = {
            str(file.relative_to(path)): file.stat().st_size
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }
    size = sum(files.values())
    report = {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        **vars(options),
        "seconds": round(seconds, 1),
        "bytes_of_weights": weights,
        "bytes_of_files": files,
        "ratio": round(size / weights, 3),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
