"""Warm-up requests: sample inputs that TensorFlow Serving replays at start.

The server runs them before a version goes live, so that the first user waits
for nothing that is made only once. It refuses a version whose requests fail, so
each is run through the SavedModel before it is written.
"""

import pathlib

import numpy as np

RECORDS = pathlib.Path("assets.extra", "tf_serving_warmup_requests")
MOST_RECORDS = 1000  # the server refuses a file with more
ALIAS = "serve"  # Keras' name of what is also `serving_default`
FREE_LENGTH = 8  # short, for mechanisms that are made for one longest length
TEXT = b"linear attention"


def as_arrays(samples):
    """`samples` as a list of dicts of arrays that a file can hold."""
    samples = [samples] if isinstance(samples, dict) else samples
    if not isinstance(samples, (list, tuple)) or not all(
        isinstance(sample, dict) and sample for sample in samples
    ):
        raise TypeError(
            "`samples` must be a dict from the names of inputs to arrays, or a "
            f"list of such dicts. Received: samples={samples!r}. "
            'Write `samples={"tokens": array}`.'
        )
    if not 0 < len(samples) <= MOST_RECORDS:
        raise ValueError(
            f"`samples` must be 1 to {MOST_RECORDS}, as the server takes. "
            f"Received: {len(samples)} of them. Leave some out, or leave out "
            "`samples=` for the default."
        )
    return [
        {name: _as_array(value) for name, value in sample.items()}
        for sample in samples
    ]


def _as_array(value):
    array = np.asarray(value)
    if array.dtype.kind == "O":  # text and bytes, as pandas holds them
        texts = [x.encode() if isinstance(x, str) else x for x in array.flat]
        array = np.array(texts, "S").reshape(array.shape)
    return np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array


def save_samples(path, samples):
    arrays = {
        f"{number}/{name}": array
        for number, sample in enumerate(samples)
        for name, array in sample.items()
    }
    np.savez(path, **arrays)


def load_samples(path):
    samples = {}
    with np.load(path) as arrays:
        for key in arrays:
            number, _, name = key.partition("/")
            samples.setdefault(int(number), {})[name] = arrays[key]
    return [samples[number] for number in sorted(samples)]


def write_warmup(path, name, samples, say):
    """Writes the requests into the SavedModel folder `path`.

    `name` is the model's for the server. `samples` are as from `as_arrays`, or
    `None` for one short request of each signature. `say` is called with a line
    for each.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    model = tf.saved_model.load(path)
    signatures = {
        signature: function.structured_input_signature[1]
        for signature, function in model.signatures.items()
        if signature != ALIAS
    }
    samples = samples or [_default(specs) for specs in signatures.values()]
    (path / RECORDS).parent.mkdir()
    with tf.io.TFRecordWriter(str(path / RECORDS)) as writer:
        for number, sample in enumerate(samples, start=1):
            signature = _signature_of(sample, signatures)
            sizes = {key: value.shape for key, value in sample.items()}
            say(f"Warm-up {number} of {len(samples)}: {signature}, {sizes}")
            tensors = _run(model, signature, signatures[signature], sample)
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            for key, tensor in tensors.items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(tensor))
            writer.write(log.SerializeToString())


def _default(specs):
    """One short request; an id of 1 is in every vocabulary."""
    return {
        name: np.full(_default_shape(spec.shape), TEXT)
        if spec.dtype == "string"
        else np.ones(_default_shape(spec.shape), spec.dtype.as_numpy_dtype)
        for name, spec in specs.items()
    }


def _default_shape(shape):
    return [
        (FREE_LENGTH if axis else 1) if size is None else size
        for axis, size in enumerate(shape)
    ]


def _signature_of(sample, signatures):
    for signature, specs in signatures.items():
        if set(specs) == set(sample):
            return signature
    known = ", ".join(
        f"{signature}: {sorted(specs)}"
        for signature, specs in signatures.items()
    )
    raise ValueError(
        "Each of `samples` must have the inputs of one signature. "
        f"Received: {sorted(sample)}. The model has {known}."
    )


def _run(model, signature, specs, sample):
    """The sample as tensors, after the model has answered them."""
    import tensorflow as tf

    try:
        tensors = {
            name: _tensor(sample[name], spec) for name, spec in specs.items()
        }
        model.signatures[signature](**tensors)
    except (tf.errors.OpError, TypeError, ValueError) as error:
        sizes = {key: f"{x.dtype}{x.shape}" for key, x in sample.items()}
        raise ValueError(
            "A request for warm-up must run through the model, since the "
            "server refuses a version whose warm-up fails. "
            f"Received: {sizes} for signature {signature!r}. Pass inputs that "
            f"it takes as `samples=`.\n\n{error}"
        ) from error
    return tensors


def _tensor(array, spec):
    import tensorflow as tf

    if spec.dtype == tf.string:
        return tf.constant(array, tf.string)
    dtype = spec.dtype.as_numpy_dtype
    return tf.constant(array.astype(dtype, casting="same_kind"))
