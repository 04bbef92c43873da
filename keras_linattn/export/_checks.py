"""Checks of arguments, before anything slow is started."""

import importlib.util
import os

import keras


def check_model(model):
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a `keras.Model`. "
            f"Received: {model!r} of type {type(model).__name__}. "
            "Load a file with `keras.saving.load_model` first. Wrap a layer as "
            "`keras.Sequential([keras.Input(...), layer])`."
        )
    if not model.built:
        raise ValueError(
            "`model` must be built, so that its input shapes are known. "
            f"Received: {type(model).__name__} {model.name!r}, not built. "
            "Start it with a `keras.Input`, or call it once on data."
        )
    if keras.backend.backend() == "torch" and not hasattr(model, "inputs"):
        raise ValueError(
            "Under the torch backend `model` must be functional or Sequential: "
            "a subclassed model comes back from a file without its inputs. "
            f"Received: {type(model).__name__} {model.name!r}. "
            "Wrap it as `keras.Model(inputs, model(inputs))`, where `inputs` "
            "is a `keras.Input`."
        )


def check_local(name, path):
    """That the argument `name` is no URL."""
    if "://" in os.fspath(path):
        raise ValueError(
            f"`{name}` must be on a local disk. "
            f"Received: {name}={os.fspath(path)!r}. "
            "Export to a local folder, then copy the folder."
        )


def check_is_free(path, way_out):
    """That nothing is at `path`; `way_out` says how to replace what is."""
    if os.path.lexists(path):
        raise FileExistsError(
            "`path` must not exist. "
            f"Received: path={os.fspath(path)!r}, which exists. "
            f"Choose another path, or {way_out}."
        )


def check_tensorflow():
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            "A SavedModel is written by TensorFlow, under every backend. "
            f"Received: backend {keras.backend.backend()!r}, and no module "
            "named 'tensorflow'. Run `pip install keras-linattn[tensorflow]`."
        )


def check_serving_api():
    if importlib.util.find_spec("tensorflow_serving") is None:
        raise ImportError(
            "Files for TensorFlow Serving are written with its own protocol "
            "buffers. Received: no module named 'tensorflow_serving'. Run "
            "`pip install keras-linattn[serving]`, or, where TensorFlow is "
            "already installed, `pip install --no-deps "
            "tensorflow-serving-api grpcio`."
        )
