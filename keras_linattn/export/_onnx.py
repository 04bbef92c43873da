"""Export to ONNX, with what tf2onnx gets wrong in our models mended."""

import contextlib
import importlib.util
import logging
import os
import pathlib
import tempfile

import keras

from keras_linattn.export._checks import check_is_free
from keras_linattn.export._checks import check_local
from keras_linattn.export._checks import check_model


def export_onnx(
    model: keras.Model, path: str | os.PathLike, *, overwrite: bool = False
) -> pathlib.Path:
    """Writes `model` as an ONNX file, for ONNX Runtime and other programs.

    It calls `model.export(path, format="onnx")` under the TensorFlow backend
    and corrects three errors of the converter, tf2onnx 1.17: it does not know
    `Erfc`, which TensorFlow's exact gelu uses, and `Log1p`; it merges two
    reshapes wrongly; and it lets NaN pass a mask. Sizes that are `None` (batch,
    length) stay free.

    Args:
        model: a built `keras.Model` with the dtype policy `float32`. A model
            of another backend is saved as `.keras` and loaded under
            TensorFlow first.
        path: the file to write, on a local disk. Missing parents are made.
        overwrite: whether to replace a file at `path`. Defaults to `False`.

    Returns:
        `path` as a `pathlib.Path`.

    Raises:
        TypeError: if `model` is not a `keras.Model`.
        ValueError: if `model` is not built, if the backend is not TensorFlow,
            or if `path` is a URL.
        FileExistsError: if `path` exists and `overwrite` is `False`.
        ImportError: if `onnx` or `tf2onnx` is not installed.

    Example, under the TensorFlow backend with the extra `onnx`:

    >>> import keras_linattn
    >>> model = keras_linattn.models.TextClassifier(num_classes=2)
    >>> export_onnx(model, "classifier.onnx")  # doctest: +SKIP
    >>> import onnxruntime  # doctest: +SKIP
    >>> session = onnxruntime.InferenceSession(
    ...     "classifier.onnx")  # doctest: +SKIP
    >>> tokens = np.array([[73, 106, 33]], "int32")
    >>> (answer,) = session.run(None, {"tokens": tokens})  # doctest: +SKIP
    """
    check_model(model)
    check_local("path", path)
    _check_backend()
    path = pathlib.Path(path)
    if not overwrite:
        check_is_free(path, "pass `overwrite=True`")
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, since a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-") as work:
        new = pathlib.Path(work, "model.onnx")
        with _mended_converter():
            _called(model).export(str(new), format="onnx", verbose=False)
        content = onnx.load(new)
        _replace_unknown(content.graph)
        onnx.checker.check_model(content)
        onnx.save(content, new)
        new.replace(path)
    return path


def _check_backend():
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ValueError(
            "ONNX files with free sizes are written under the TensorFlow "
            f"backend. Received: backend {backend!r}. Save the model with "
            "`model.save('model.keras')`, then load and export it with "
            "KERAS_BACKEND=tensorflow."
        )
    for name in ("onnx", "tf2onnx"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                "ONNX files are written by `tf2onnx`. Received: no module "
                f"named {name!r}. Run `pip install keras-linattn[onnx]`."
            )


def _called(model):
    """Keras exports only what was called: a loaded model was not."""
    if hasattr(model, "inputs"):
        sizes = [
            [1 if size is None else size for size in x.shape]
            for x in model.inputs
        ]
        inputs = [
            keras.ops.ones(shape, x.dtype)
            for shape, x in zip(sizes, model.inputs)
        ]
        if isinstance(model, keras.Sequential):  # it has no `input`
            model(*inputs)
        else:
            model(keras.tree.pack_sequence_as(model.input, inputs))
    return model


@contextlib.contextmanager
def _mended_converter():
    """Changes two parts of tf2onnx 1.17 for the time of an export."""
    from tf2onnx import optimizer
    from tf2onnx.onnx_opset import controlflow

    # It merges two reshapes and reads the shape of the wrong one.
    name = "remove_back_to_back"
    reshapes = optimizer._optimizers.pop(name, None)
    # It writes a selection as c x + (1 - c) y, in which NaN passes a mask.
    product = controlflow.Select.version_7
    controlflow.Select.version_7 = _select_by_where
    # It logs each operation that `_replace_unknown` replaces as an error.
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        controlflow.Select.version_7 = product
        if reshapes is not None:
            optimizer._optimizers[name] = reshapes


def _select_by_where(context, node, **_):
    node.type = "Where"  # broadcasts as TensorFlow's SelectV2 does


def _replace_unknown(graph):
    """Writes erfc(x) as 1 - erf(x), and log1p(x) as log(1 + x).

    ONNX has neither. The sum rounds x to 1e-7, which is an error of as much.
    """
    import numpy as np
    from onnx import helper
    from onnx import numpy_helper

    one = numpy_helper.from_array(np.ones((), "float32"), "replaced/one")
    steps = {
        "Erfc": lambda x, part, y: [
            helper.make_node("Erf", [x], [part]),
            helper.make_node("Sub", [one.name, part], [y]),
        ],
        "Log1p": lambda x, part, y: [
            helper.make_node("Add", [one.name, x], [part]),
            helper.make_node("Log", [part], [y]),
        ],
    }
    places = [i for i, x in enumerate(graph.node) if x.op_type in steps]
    if places:
        graph.initializer.append(one)
    for index in reversed(places):
        node = graph.node[index]
        (source,), (target,) = node.input, node.output
        first, second = steps[node.op_type](source, f"{target}/part", target)
        node.CopyFrom(first)
        graph.node.insert(index + 1, second)
