"""Export to a TensorFlow SavedModel, from any backend.

TensorFlow and JAX models go through Keras' own exporter. That exporter fails
under torch, so a torch model is saved as `.keras`, and a second process under
the TensorFlow backend loads and exports it.
"""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import keras


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    overwrite: bool = False,
    verbose: bool = False,
) -> pathlib.Path:
    """Write `model` as a SavedModel folder.

    The folder runs without Keras and without this package: in TensorFlow
    Serving, with `tf.saved_model.load`, and through TensorFlow's C API. It has
    the signatures `serve` and `serving_default`. The keys of the inputs are
    the names of the model's `keras.Input`s; the outputs are `output_0`,
    `output_1`, and so on, or the keys of the model's output dict.

    Sizes that are `None` in a functional or Sequential model (batch, length)
    stay free. Of a subclassed model Keras frees the batch only; wrapped as
    `keras.Model(inputs, model(inputs))` it is functional. Under JAX each
    `None` past the batch is a size of its own, so a model that adds two inputs
    of free length fails to export; save it as `.keras`, and load and export it
    under KERAS_BACKEND=tensorflow.

    The folder appears under `path` when it is complete: after a failure, what
    was there before is unchanged, and nothing else is left.

    Args:
        model: a built `keras.Model`.
        path: the folder to write, on a local disk. Missing parents are made.
        overwrite: whether to replace a SavedModel at `path`. Any other file,
            or folder with something in it, is never replaced. Defaults to
            False.
        verbose: whether to print the signatures. Defaults to False.

    Returns:
        `path` as a `pathlib.Path`.

    Raises:
        TypeError: if `model` is not a `keras.Model`.
        ValueError: if `model` is not built, or under torch subclassed; if
            `path` is a URL.
        FileExistsError: if `path` exists, and `overwrite` is False or `path`
            does not hold a SavedModel.
        ImportError: if TensorFlow is not installed. The jax and torch
            backends need it too.
        RuntimeError: under torch, if the TensorFlow process fails. The message
            ends with all that it wrote to its error stream.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> tokens = keras.Input((None,), dtype="int32", name="tokens")
        >>> x = keras.layers.Embedding(256, 8)(tokens)
        >>> x = keras.layers.GlobalAveragePooling1D()(x)
        >>> model = keras.Model(tokens, keras.layers.Dense(2)(x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_saved_model(model, pathlib.Path(folder) / "1")
        ...     (path / "saved_model.pb").is_file()
        True
    """
    _check_model(model)
    _check_path(path, overwrite)
    _check_tensorflow()
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, since a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}-"
    ) as work:
        new, old = pathlib.Path(work, "new"), pathlib.Path(work, "old")
        if keras.backend.backend() == "torch":
            said = _export_by_child(model, new, verbose)
        else:
            said = _export_here(model, new, verbose)
        _move_into_place(new, path, old)
    # Keras names the folder it wrote to, which has moved.
    print(said.replace(str(new), str(path)), end="")
    return path


def _check_model(model):
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a `keras.Model`. "
            f"Received: {model!r} of type {type(model).__name__}. "
            "Wrap a layer as `keras.Sequential([keras.Input(...), layer])`."
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


def _check_path(path, overwrite):
    if "://" in os.fspath(path):
        raise ValueError(
            "`path` must be on a local disk. "
            f"Received: path={os.fspath(path)!r}. "
            "Export to a local folder, then copy the folder."
        )
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise FileExistsError(
            "`path` must not exist. "
            f"Received: path={os.fspath(path)!r}, which exists. "
            "Choose another path, or replace a SavedModel with "
            "`overwrite=True`."
        )
    if not _is_replaceable(pathlib.Path(path)):
        raise FileExistsError(
            "`overwrite=True` replaces a SavedModel or an empty folder only. "
            f"Received: path={os.fspath(path)!r}, which has no "
            "`saved_model.pb`. Choose another path, or remove this one first."
        )


def _is_replaceable(path):
    if (path / "saved_model.pb").is_file():
        return True
    return path.is_dir() and not any(path.iterdir())


def _check_tensorflow():
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            "A SavedModel is written by TensorFlow, under every backend. "
            f"Received: backend {keras.backend.backend()!r}, and no module "
            "named 'tensorflow'. Run `pip install keras-linattn[tensorflow]`."
        )


def _export_here(model, path, verbose):
    options = {"format": "tf_saved_model", "verbose": verbose}
    if keras.backend.backend() == "jax":
        # By default the program runs only on the kind of device it was
        # exported on.
        platforms = ("cpu", "cuda")
        options["jax2tf_kwargs"] = {"native_serialization_platforms": platforms}
    if not verbose:
        model.export(path, **options)
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        model.export(path, **options)
    return said.getvalue()


def _export_by_child(model, path, verbose):
    archive = path.with_name("model.keras")
    model.save(archive)
    command = [sys.executable, "-m", "keras_linattn.export._convert"]
    command += [str(archive), str(path)]
    command += ["--verbose"] if verbose else []
    command += ["--import", *_modules_of_custom_objects(archive)]
    child = subprocess.run(
        command,
        env=_child_environment(),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if child.returncode:
        raise RuntimeError(
            "Under the torch backend the export runs in a second process "
            "under TensorFlow, where the model must load. "
            f"Received: exit status {child.returncode}, and the errors below. "
            "If a class or function could not be located, move it from the "
            "script or notebook to a module and decorate it with "
            "`@keras.saving.register_keras_serializable()`. Or save the model "
            "as `.keras`, and load and export it under "
            f"KERAS_BACKEND=tensorflow yourself.\n\n{child.stderr}"
        )
    return child.stdout if verbose else ""


def _modules_of_custom_objects(archive):
    """The modules that register what the `.keras` file `archive` names."""
    with zipfile.ZipFile(archive) as file:
        config = file.read("config.json").decode("utf-8")
    modules = {
        registered.__module__
        for name, registered in keras.saving.get_custom_objects().items()
        if json.dumps(name) in config
    }
    return sorted(modules - {"__main__"})


def _child_environment():
    return {
        "TF_CPP_MIN_LOG_LEVEL": "2",  # its errors, not its chatter
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        # TensorFlow would take all the memory of a GPU that torch is using.
        "CUDA_VISIBLE_DEVICES": "-1",
        # What this process can import, the child can import.
        "PYTHONPATH": os.pathsep.join(map(str, sys.path)),
    }


def _move_into_place(new, path, old):
    if not os.path.lexists(path):
        os.rename(new, path)
        return
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
