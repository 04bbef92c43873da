"""`keras-linattn export`: from a `.keras` file to a SavedModel folder."""

import importlib
import os
import sys


def add_to(subparsers):
    """Adds this subcommand to those of an `argparse` parser."""
    text = "write a .keras file as a TensorFlow SavedModel folder"
    parser = subparsers.add_parser("export", help=text, description=text)
    parser.set_defaults(run=run)
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("folder", help="the SavedModel folder to write")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the SavedModel that is there",
    )
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module first, so that it registers what the model "
        "needs (may be given more than once)",
    )


def run(options):
    # First what costs no time: a backend takes seconds to start.
    _check_paths(options)
    import keras

    from keras_linattn.export import export_saved_model

    _import_modules(options.modules)
    model = keras.saving.load_model(options.model, compile=False)
    path = export_saved_model(
        model, options.folder, overwrite=options.overwrite
    )
    print(f"Wrote {path}")


def _check_paths(options):
    if not os.path.exists(options.model):
        raise FileNotFoundError(
            "The model must be a `.keras` file. "
            f"Received: {options.model!r}, which does not exist. Write one "
            "with `model.save('model.keras')`."
        )
    if os.path.lexists(options.folder) and not options.overwrite:
        raise FileExistsError(
            f"The folder must not exist. Received: {options.folder!r}, which "
            "exists. Choose another, or replace a SavedModel with "
            "`--overwrite`."
        )


def _import_modules(modules):
    # An installed script, unlike `python -m`, does not look here. Last, so
    # that a stray file shadows no package.
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for module in modules:
        importlib.import_module(module)
