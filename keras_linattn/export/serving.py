"""Folders of models for TensorFlow Serving."""

import functools
import operator
import os
import pathlib
import tempfile

import keras

from keras_linattn.export._archive import write_saved_model
from keras_linattn.export._checks import check_local
from keras_linattn.export._checks import check_model
from keras_linattn.export._checks import check_serving_api
from keras_linattn.export._checks import check_tensorflow
from keras_linattn.export._child import export_in_child
from keras_linattn.export._configs import BATCHING
from keras_linattn.export._configs import MODELS
from keras_linattn.export._configs import SAFE_NAME
from keras_linattn.export._configs import read_models_config
from keras_linattn.export._configs import versions_of
from keras_linattn.export._configs import write_configs
from keras_linattn.export._warmup import as_arrays
from keras_linattn.export._warmup import save_samples
from keras_linattn.export._warmup import write_warmup

LARGEST_VERSION = 2**63 - 1  # the server counts in int64


def serving_directory(
    model: keras.Model,
    base: str | os.PathLike,
    name: str,
    version: int | None = None,
    *,
    samples: dict | list | None = None,
    verbose: bool = True,
) -> pathlib.Path:
    """Publishes `model` as a new version for TensorFlow Serving.

    Writes under `base`:

        models.config            each model under `base`
        batching.config          how requests are run together
        name/1/saved_model.pb    see `export_saved_model`, which this uses
        name/1/assets.extra/tf_serving_warmup_requests

    One rename publishes a version, and a version is never replaced. A server
    that watches `base` therefore never reads an incomplete version. If several
    threads or processes publish at once, each gets its own version. After a
    failure no file is left, and older versions are unchanged.

    `models.config` has the absolute path of each model's folder, as the server
    must see it. New models are added and missing ones are removed; your other
    changes and comments are kept. `batching.config` is written only if it does
    not exist.

    Each warm-up request is run through the written model first, because the
    server refuses a version whose requests fail. A model from JAX is compiled
    once for each shape of its inputs: pass `samples` of the shapes that you
    expect, so that the first requests need not wait.

    Args:
        model: a built `keras.Model`.
        base: the folder of all models, on a local disk. Missing parents are
            made.
        name: the model's name for the server: 1 to 128 letters, digits, `_`,
            `.` and `-`, a letter or digit first.
        version: int > 0, the version. Defaults to `None`: the largest there,
            plus 1.
        samples: the warm-up requests: a dict from the names of one signature's
            inputs to arrays, or a list of such dicts. Defaults to `None`: one
            short request of each signature.
        verbose: whether to print the progress. Defaults to True.

    Returns:
        `base/name/version` as an absolute `pathlib.Path`.

    Raises:
        TypeError: if `model` is not a `keras.Model`, `version` not an int, or
            `samples` not a dict or list of dicts.
        ValueError: if `model` is not built, or under torch subclassed; if
            `base` is a URL; if `name` is not as above; if `version` is out of
            range; if `samples` do not run through the model; if
            `models.config` cannot be read.
        FileExistsError: if the version exists.
        NotADirectoryError: if `base` or `base/name` is a file.
        ImportError: if TensorFlow or tensorflow-serving-api is not installed.
        RuntimeError: under torch, if the TensorFlow process fails, which also
            runs the samples. The message ends with all that it wrote to its
            error stream.

    Example:
        >>> import pathlib
        >>> import tempfile
        >>> tokens = keras.Input((None,), dtype="int32", name="tokens")
        >>> x = keras.layers.Embedding(256, 8)(tokens)
        >>> x = keras.layers.GlobalAveragePooling1D()(x)
        >>> model = keras.Model(tokens, keras.layers.Dense(2)(x))
        >>> with tempfile.TemporaryDirectory() as base:
        ...     path = serving_directory(model, base, "topics", verbose=False)
        ...     path.name, sorted(x.name for x in pathlib.Path(base).iterdir())
        ('1', ['batching.config', 'models.config', 'topics'])
    """
    check_model(model)
    check_local("base", base)
    _check_name(name)
    base = pathlib.Path(base).absolute()
    folder = base / name
    version = _check_version(version, folder)
    for place in (base, folder):
        _check_folder(place)
    samples = None if samples is None else as_arrays(samples)
    check_tensorflow()
    check_serving_api()
    read_models_config(base)  # it may be broken: say so before the export
    base.mkdir(parents=True, exist_ok=True)
    # A sibling of the models: on their file system, and no model itself.
    with tempfile.TemporaryDirectory(dir=base, prefix=f".{name}-") as work:
        new = pathlib.Path(work, "new")
        say = functools.partial(print, flush=True) if verbose else _be_silent
        _write_version(model, new, name, samples, say)
        path = _publish(new, folder, version)
    write_configs(base)
    return path


def _be_silent(line):
    pass


def _check_name(name):
    if (
        isinstance(name, str)
        and SAFE_NAME.fullmatch(name)
        and name not in (MODELS, BATCHING)
    ):
        return
    raise ValueError(
        "`name` must be 1 to 128 letters, digits, `_`, `.` and `-`, with a "
        f"letter or digit first, and not `{MODELS}` or `{BATCHING}`. "
        f"Received: name={name!r}. It becomes a folder and a part of a URL."
    )


def _check_version(version, folder):
    if version is None:
        return None
    if isinstance(version, bool) or not hasattr(version, "__index__"):
        raise TypeError(
            "`version` must be an int. "
            f"Received: version={version!r} of type {type(version).__name__}. "
            "Leave it out for the next version."
        )
    version = operator.index(version)
    if not 0 < version <= LARGEST_VERSION:
        raise ValueError(
            f"`version` must be in 1 ... {LARGEST_VERSION}. "
            f"Received: version={version}. Leave it out for the next version."
        )
    if version in versions_of(folder):
        raise _taken(version, folder)
    return version


def _check_folder(path):
    if os.path.lexists(path) and not path.is_dir():
        raise NotADirectoryError(
            "The path of a model must be a folder, or not exist. "
            f"Received: {path}, which is not a folder. Choose another base or "
            "name, or remove the file."
        )


def _taken(version, folder):
    return FileExistsError(
        "A version is never replaced, since a server may be serving it. "
        f"Received: version={version}, which exists in {folder}. "
        "Leave `version` out for the next one."
    )


def _write_version(model, path, name, samples, say):
    """Writes the folder `path`: the SavedModel, and the requests in it."""
    if keras.backend.backend() != "torch":
        say("Writing the SavedModel")
        write_saved_model(model, path)
        write_warmup(path, name, samples, say)
        return
    say("Starting a second process under TensorFlow")
    arguments = ["--serve-as", name]
    if samples is not None:
        file = path.with_name("samples.npz")
        save_samples(file, samples)
        arguments += ["--samples", str(file)]
    export_in_child(model, path, arguments, say)


def _publish(new, folder, version):
    """Moves `new` to `folder/version`, or to the next version of `folder`."""
    folder.mkdir(exist_ok=True)
    while True:
        number = _next_version(folder) if version is None else version
        path = folder / str(number)
        if _renamed(new, path):
            return path
        if version is not None:
            raise _taken(version, folder)


def _next_version(folder):
    version = max(versions_of(folder), default=0) + 1
    if version > LARGEST_VERSION:
        raise ValueError(
            f"A version must be at most {LARGEST_VERSION}. "
            f"Received: {folder}, which has that version. Pass a lower "
            "`version`."
        )
    return max(version, 1)


def _renamed(new, path):
    """Whether `new` is now `path`; False if another took it first."""
    try:
        # Onto a folder that has something in it, this fails: no lock needed.
        os.rename(new, path)
    except OSError:
        if not os.path.lexists(path):
            raise
        return False
    return True
