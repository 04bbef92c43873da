"""Writes one SavedModel in this process, under TensorFlow or JAX.

Beside Keras' own signature a model may offer others, which take raw input and
preprocess it in the graph: see `serving_preprocessors` in the docstring of
`export_saved_model`.
"""

import itertools

import keras


def write_saved_model(model, path, verbose=False):
    """Writes `model` and its preprocessors to the new folder `path`."""
    if not getattr(model, "inputs", None):
        # Subclassed: Keras finds the signature in what the model was built on.
        model.export(
            path, format="tf_saved_model", verbose=verbose, **_jax_options()
        )
        return
    archive = keras.export.ExportArchive()
    serve = _add_model(archive, model)
    preprocessors = getattr(model, "serving_preprocessors", dict)()
    for signature, (spec, function) in preprocessors.items():
        archive.add_endpoint(signature, _preprocessed(serve, spec, function))
    archive.write_out(path, verbose=verbose)


def _add_model(archive, model):
    """Adds the signature `serve`; returns the function behind it."""
    # The arguments of the model's call: a Sequential has its only tensor.
    sequential = isinstance(model, keras.Sequential)
    inputs = model.inputs if sequential else [model.input]
    if keras.backend.backend() == "jax":
        return archive.track_and_add_endpoint(
            "serve", model, inputs, **_jax_options(inputs)
        )
    import tensorflow as tf

    # Do not save the model itself: each weight would be stored twice, as a
    # variable of Keras and of TensorFlow. TensorFlow finds the lookup tables
    # through the module and the weights through the signature.
    module = tf.Module()
    module.model = model
    archive.track(module)
    return archive.add_endpoint("serve", model.__call__, inputs)


def _jax_options(inputs=()):
    if keras.backend.backend() != "jax":
        return {}
    # By default the program runs only on the kind of device it was exported
    # on.
    options = {"native_serialization_platforms": ("cpu", "cuda")}
    first, *others = keras.tree.flatten(inputs) or (None,)
    if any(x.name == "segment_ids" for x in others):
        options["polymorphic_shapes"] = _shapes(inputs, first)
    return {"jax2tf_kwargs": options}


def _shapes(inputs, first):
    """Sizes by names: segment ids have the length of the first input.

    Keras would give each input a length of its own.
    """
    numbers = itertools.count()

    def shape(x):
        alike = x is first or x.name == "segment_ids"
        names = ["batch"] + [f"size_{next(numbers)}" for _ in x.shape[1:]]
        if alike and len(names) > 1:
            names[1] = "length"
        sizes = zip(x.shape, names)
        return f"({', '.join(n if s is None else str(s) for s, n in sizes)})"

    return keras.tree.map_structure(shape, list(inputs))


def _preprocessed(serve, spec, function):
    import tensorflow as tf

    serve_raw = tf.function(
        lambda raw: serve(function(raw)),
        input_signature=[tf.TensorSpec(spec.shape, spec.dtype, spec.name)],
        autograph=False,
    )
    serve_raw.get_concrete_function()  # Keras wants it traced
    return serve_raw
