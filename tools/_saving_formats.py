"""The formats of the saving matrix: how each is written, and run."""

import contextlib
import importlib.util
import io
import json
import pathlib

import keras
import numpy as np
from _saving_models import model_with
from _saving_models import outputs
from _saving_models import tokens
from _saving_models import visible

from keras_linattn.export import export_onnx
from keras_linattn.export import export_saved_model

# --- Formats that load as a Keras model. `save(model, stem)` writes, and
# `load(stem, name, variant)` returns a model. `stem` is a path without a
# suffix.


def save_keras(model, stem):
    model.save(f"{stem}.keras")


def load_keras(stem, name, variant):
    return keras.saving.load_model(f"{stem}.keras")


def save_weights(model, stem):
    model.save_weights(f"{stem}.weights.h5")


def load_weights(stem, name, variant):
    model = model_with(name, variant, seed=2)  # other weights, all replaced
    model.load_weights(f"{stem}.weights.h5")
    return model


def save_config(model, stem):
    config = keras.saving.serialize_keras_object(model)
    pathlib.Path(f"{stem}.json").write_text(json.dumps(config))
    np.savez(f"{stem}.npz", *model.get_weights())


def load_config(stem, name, variant):
    config = json.loads(pathlib.Path(f"{stem}.json").read_text())
    model = keras.saving.deserialize_keras_object(config)
    with np.load(f"{stem}.npz") as weights:
        model.set_weights([weights[key] for key in weights.files])
    return model


KEPT = {
    "keras": (save_keras, load_keras),
    "weights": (save_weights, load_weights),
    "config": (save_config, load_config),
}


def clone(model):
    """The outputs of `keras.models.clone_model(model)`."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return outputs(copy)


# --- Formats that another runtime runs: each exports a model, and returns
# that runtime's outputs.


def tf_saved_model(model, stem):
    import tensorflow as tf

    path = export_saved_model(model, f"{stem}-saved_model")
    serve = tf.saved_model.load(path).signatures["serving_default"]
    return serve(tokens=tf.constant(tokens()))["output_0"].numpy()


def onnx(model, stem):
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()):
        path = export_onnx(model, f"{stem}.onnx")
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {"tokens": tokens()})[0]


def openvino(model, stem):
    import openvino

    _export(model, f"{stem}.xml", "openvino")
    # Where the processor has it, bfloat16 is the default.
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(f"{stem}.xml", "CPU", hint)
    return compiled([tokens()])[0]


def litert(model, stem):
    import tensorflow as tf

    _export(model, f"{stem}.tflite", "litert")
    runner = tf.lite.Interpreter(f"{stem}.tflite").get_signature_runner()
    return next(iter(runner(tokens=tokens()).values()))


def _export(model, path, form):
    """Keras' own export; it and its converters print pages."""
    model(tokens()[:1, :1])  # Keras wants a model that has been called
    with contextlib.redirect_stdout(io.StringIO()):
        model.export(path, format=form, verbose=False)


EXPORTED = {
    "clone": lambda model, stem: clone(model),
    "tf_saved_model": tf_saved_model,
    "onnx": onnx,
    "openvino": openvino,
    "litert": litert,
}
FORMATS = (*KEPT, *EXPORTED)
# Under another backend each model is refused.
WRITTEN_UNDER = {"onnx": ("tensorflow",), "litert": ("tensorflow", "torch")}
BACKENDS = ("tensorflow", "jax", "torch")
RUNTIMES = {  # that load what Keras does not
    "tf_saved_model": "tf.saved_model",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "litert": "tf.lite",
}

# The packages that a format needs besides the three backends. With them a cell
# shows the limits of the format, not those of this machine.
PACKAGES = {
    "onnx": ("tf2onnx", "onnxruntime"),
    "openvino": ("openvino",),
}


def missing(form):
    """The packages that the format needs and this machine lacks."""
    return [
        package
        for package in PACKAGES.get(form, ())
        if importlib.util.find_spec(package) is None
    ]


def run_exported(form, model, stem):
    return visible(EXPORTED[form](model, stem))


def is_refused(form, backend):
    return backend not in WRITTEN_UNDER.get(form, BACKENDS)


def loaded_under(form, saved):
    """What loads a file: each backend, or one runtime."""
    return BACKENDS if form in KEPT else (RUNTIMES.get(form, saved),)
