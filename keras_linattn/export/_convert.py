"""The TensorFlow process that `export_saved_model` starts under torch.

    KERAS_BACKEND=tensorflow python -m keras_linattn.export._convert \
        model.keras saved_model [--verbose] [--import MODULE ...]
"""

import argparse
import importlib

import keras


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="a .keras file")
    parser.add_argument("target", help="the SavedModel folder to write")
    parser.add_argument("--verbose", action="store_true")
    # Importing the module of a custom class runs its registration.
    parser.add_argument("--import", dest="modules", nargs="*", default=[])
    args = parser.parse_args()
    for module in args.modules:
        importlib.import_module(module)
    model = keras.saving.load_model(args.source, compile=False, safe_mode=True)
    model.export(args.target, format="tf_saved_model", verbose=args.verbose)


if __name__ == "__main__":
    main()
