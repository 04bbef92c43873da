"""Loading the models that commands are given."""

import importlib
import os
import sys

from keras_linattn_cli.errors import UserError
from keras_linattn_cli.errors import one_line


def add_import_option(parser):
    """Adds `--import`."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module first, so that it registers what the model "
        "needs (may be given more than once)",
    )


def check_is_there(path):
    """Refuses a model's path where nothing is."""
    if not os.path.exists(path):
        raise UserError(
            "The model must be a `.keras` file. "
            f"Received: {path!r}, which does not exist. Write one "
            "with `model.save('model.keras')`."
        )


def import_modules(modules):
    # An installed script, unlike `python -m`, does not look here. Last, so
    # that a stray file shadows no package.
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(
                "`--import` takes a module that Python finds here. Received: "
                f"{module!r}: {error}. Check its name, or run the command in "
                "its folder."
            ) from error


def load(path):
    import keras

    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # zipfile, h5py and Keras each raise their own
        raise UserError(
            "The model must be a whole `.keras` file, as `model.save` writes "
            f"it, whose classes are registered. Received: {path!r}, which does "
            f"not load: {type(error).__name__}: {one_line(error)} Save it "
            "again, or name the module of its classes with `--import`."
        ) from error
