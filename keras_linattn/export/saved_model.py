"""Export to a TensorFlow SavedModel, from any backend.

TensorFlow and JAX models go through Keras' own exporter. That exporter fails
under torch, so a torch model is saved as `.keras`, and a second process under
the TensorFlow backend loads and exports it.
"""

import contextlib
import io
import os
import pathlib
import tempfile

import keras

from keras_linattn.export._archive import write_saved_model
from keras_linattn.export._checks import check_is_free
from keras_linattn.export._checks import check_local
from keras_linattn.export._checks import check_model
from keras_linattn.export._checks import check_tensorflow
from keras_linattn.export._child import export_in_child


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    overwrite: bool = False,
    verbose: bool = False,
) -> pathlib.Path:
    """Writes `model` as a SavedModel folder.

    The folder runs without Keras and without this package: in TensorFlow
    Serving, with `tf.saved_model.load`, and through TensorFlow's C API. It has
    the signatures `serve` and `serving_default`. The keys of the inputs are
    the names of the model's `keras.Input`s; the outputs are `output_0`,
    `output_1`, and so on, or the keys of the model's output dict.

    A model that has a method `serving_preprocessors` gets one signature more
    for each of its preprocessors, which takes raw input: `serve_text` of
    `models.TextClassifier` takes the strings `text`, `(B,)`; `serve_pixels` of
    `models.VisionTransformer` the bytes `pixels`, `(B, height, width,
    channels)`. The method returns a dict from the name of a signature to a
    pair `(spec, function)`: the `keras.InputSpec` of the raw input, with its
    name; and a function from a TensorFlow tensor like it to the model's input,
    in TensorFlow's operations.

    Sizes that are `None` in a functional or Sequential model (batch, length)
    stay free. In a subclassed model Keras leaves only the batch free; wrap it
    as `keras.Model(inputs, model(inputs))` to make it functional. Under JAX
    each `None` past the batch is a size of its own, so a model that adds two
    inputs of free length fails to export; save it as `.keras`, and load and
    export it under KERAS_BACKEND=tensorflow.

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
    check_model(model)
    _check_path(path, overwrite)
    check_tensorflow()
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, since a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}-"
    ) as work:
        new, old = pathlib.Path(work, "new"), pathlib.Path(work, "old")
        said = _export(model, new, verbose)
        _move_into_place(new, path, old)
    # Keras names the folder it wrote to, which has moved.
    print(said.replace(str(new), str(path)), end="")
    return path


def _export(model, path, verbose):
    """Writes `path`; returns what Keras says of it."""
    if keras.backend.backend() == "torch":
        lines = []
        arguments = ["--verbose"] if verbose else []
        export_in_child(model, path, arguments, lines.append)
        return "".join(f"{line}\n" for line in lines) if verbose else ""
    if not verbose:
        write_saved_model(model, path)
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        write_saved_model(model, path, verbose=True)
    return said.getvalue()


def _check_path(path, overwrite):
    check_local("path", path)
    if not overwrite:
        check_is_free(path, "replace a SavedModel with `overwrite=True`")
    elif os.path.lexists(path) and not _is_replaceable(pathlib.Path(path)):
        raise FileExistsError(
            "`overwrite=True` replaces a SavedModel or an empty folder only. "
            f"Received: path={os.fspath(path)!r}, which has no "
            "`saved_model.pb`. Choose another path, or remove this one first."
        )


def _is_replaceable(path):
    if (path / "saved_model.pb").is_file():
        return True
    return path.is_dir() and not any(path.iterdir())


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
