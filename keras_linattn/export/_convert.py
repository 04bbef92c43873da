"""The TensorFlow process that exports under torch, see `_child`.

    KERAS_BACKEND=tensorflow python -m keras_linattn.export._convert \
        model.keras saved_model [--verbose] [--import MODULE ...] \
        [--serve-as NAME [--samples FILE.npz]]
"""

import argparse
import functools
import importlib
import pathlib

import keras

from keras_linattn.export._archive import write_saved_model
from keras_linattn.export._warmup import load_samples
from keras_linattn.export._warmup import write_warmup


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="a .keras file")
    parser.add_argument(
        "target", type=pathlib.Path, help="the SavedModel folder to write"
    )
    parser.add_argument("--verbose", action="store_true")
    # Importing the module of a custom class runs its registration.
    parser.add_argument("--import", dest="modules", nargs="*", default=[])
    parser.add_argument("--serve-as", help="add warm-up requests for this name")
    parser.add_argument("--samples", help="the requests, by `save_samples`")
    args = parser.parse_args()
    for module in args.modules:
        importlib.import_module(module)
    model = keras.saving.load_model(args.source, compile=False, safe_mode=True)
    if args.serve_as is None:
        write_saved_model(model, args.target, verbose=args.verbose)
        return
    say = functools.partial(print, flush=True)
    say("Writing the SavedModel")
    write_saved_model(model, args.target)
    samples = load_samples(args.samples) if args.samples else None
    write_warmup(args.target, args.serve_as, samples, say)


if __name__ == "__main__":
    main()
