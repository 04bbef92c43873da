"""Attention transfer: feature maps learn what softmax attention gives.

The teacher runs; each of its attention layers hands its inputs to the student's
layer in the same place, and that layer's mechanism is trained to give what
the teacher's layer gave. No layer depends on another, so all are trained in
one pass over the data.

Sources: Zhang et al., "The hedgehog and the porcupine", ICLR 2024, arXiv
2402.04347, section 4.2 (cross-entropy of the attention weights); Zhang et al.,
"LoLCATs", 2024, arXiv 2410.10254, section 3.1 (squared error of the outputs).
Differs from the papers: an error is divided by the teacher's own mean square,
so that it is 0 for the teacher's output and 1 for zeros; it is that of the
layer's output, after its projection; from the cross-entropy the teacher's
entropy is subtracted, which changes no gradient.
"""

import contextlib

import keras
from keras import ops

from keras_linattn.convert._pairs import check_batch
from keras_linattn.convert._pairs import pair_layers

SMALLEST = 1e-12  # of weights in a logarithm, and of a mean square
LOSSES = ("outputs", "weights")


class AttentionTransfer(keras.Model):
    """Compares the student's attention layers with the teacher's.

    Call arguments:
        x: a batch, as the teacher takes it.

    Returns:
        Dict from a layer's path to its error, shape `(1,)`.

    Args:
        student: built `keras.Model`.
        teacher: built `keras.Model`.
        pairs: list of `Pair`.
        loss: `"outputs"` or `"weights"`, see `distill`.
    """

    def __init__(self, student, teacher, pairs, loss="outputs"):
        super().__init__(
            name="attention_transfer",
            dtype=student.dtype_policy,
            autocast=False,
        )
        if loss not in LOSSES:
            raise ValueError(
                f"`transfer_loss` must be one of {', '.join(LOSSES)}. "
                f"Received: transfer_loss={loss!r}."
            )
        self.student = student
        self.teacher = teacher
        self.loss_name = loss
        # In a function: a list of layers would be tracked as sublayers again.
        self.get_pairs = lambda: pairs
        self.built = True  # as its two models are

    def call(self, x):
        check_batch(x, self.teacher, "teacher")
        with recorded(self.get_pairs(), self.loss_name == "weights") as calls:
            self.teacher(x, training=False)
        return {
            pair.path: self._error(pair, calls[pair.path])
            for pair in self.get_pairs()
        }

    def _error(self, pair, calls):
        """The mean over the calls, more than one for a shared layer."""
        if not calls:
            raise ValueError(
                "Each attention layer must be called as a layer when the "
                f"teacher is. {pair.path!r} was not. Leave it out of "
                "`layers=`, or of the conversion."
            )
        of_call = _weights_error if self.loss_name == "weights" else _error
        errors = [of_call(pair.student, *call) for call in calls]
        return ops.reshape(sum(errors) / len(errors), (1,))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return sum(ops.sum(x) for x in y_pred.values()) / len(y_pred)


@contextlib.contextmanager
def recorded(pairs, scores=False):
    """Records the calls of the teacher's layers: dict from path to a list.

    Args:
        pairs: list of `Pair`.
        scores: bool, whether to record the attention weights as well.
    """
    calls = {pair.path: [] for pair in pairs}
    layers = {id(pair.teacher): pair.teacher for pair in pairs}
    try:
        for key, layer in layers.items():
            paths = [p.path for p in pairs if id(p.teacher) == key]
            lists = [calls[path] for path in paths]
            layer.call = _recorder(layer, lists, scores)
        yield calls
    finally:
        for layer in layers.values():
            vars(layer).pop("call", None)


def _recorder(layer, lists, scores):
    """The layer's `call`, which also notes what it got and gave."""
    call = layer.call

    def recording_call(*args, **kwargs):
        if not scores:
            weights, output = None, call(*args, **kwargs)
        else:
            output, weights = call(
                *args, **{**kwargs, "return_attention_scores": True}
            )
        first = output[0] if isinstance(output, tuple) else output
        # The layer may take the masks off its inputs: they are in `kwargs`.
        entry = (args, {**kwargs, "training": False}, first, weights)
        for calls in lists:
            calls.append(entry)
        return output

    return recording_call


def _error(layer, args, kwargs, expected, _):
    """Mean squared error over the mean square of what is expected."""
    output = layer(*args, **kwargs)
    output = output[0] if isinstance(output, tuple) else output
    _check_shapes(layer, output, expected)
    output, expected = (ops.cast(x, "float32") for x in (output, expected))
    seen = _seen(kwargs.get("query_mask"), expected)
    error = ops.sum(seen * ops.square(output - expected))
    square = ops.sum(seen * ops.square(expected))
    return error / ops.maximum(square, SMALLEST)


def _weights_error(layer, args, kwargs, _, expected):
    """Divergence of the student's attention weights from the teacher's."""
    _, weights = layer(*args, **{**kwargs, "return_attention_scores": True})
    _check_shapes(layer, weights, expected)
    weights, expected = (
        ops.maximum(ops.cast(x, "float32"), SMALLEST)
        for x in (weights, expected)
    )
    terms = expected * (ops.log(expected) - ops.log(weights))
    rows = ops.sum(terms, axis=-1)  # (B, H, T)
    mask = kwargs.get("query_mask")
    if mask is None:
        return ops.mean(rows)
    seen = ops.cast(ops.expand_dims(mask, 1), "float32")
    seen = seen * ops.ones_like(rows)
    return ops.sum(ops.where(seen > 0, rows, 0.0)) / ops.maximum(
        ops.sum(seen), 1.0
    )


def _seen(mask, like):
    """1 for the rows that a mask shows, to be multiplied with `like`."""
    if mask is None:
        return ops.ones((), "float32")
    return ops.expand_dims(ops.cast(mask, "float32"), -1)


def _check_shapes(layer, given, expected):
    if len(given.shape) != len(expected.shape) or any(
        a != b and None not in (a, b)
        for a, b in zip(given.shape, expected.shape)
    ):
        raise ValueError(
            "Layers of student and teacher must give the same shapes. "
            f"Received: {layer.path!r}, with {tuple(given.shape)} for the "
            f"teacher's {tuple(expected.shape)}. Pass the teacher that the "
            "student was made from."
        )


def feature_map_variables(pairs):
    """The trainable variables of the student's mechanisms, each once."""
    variables = {
        id(variable): variable
        for pair in pairs
        for variable in pair.student.mechanism.trainable_variables
    }
    if not variables:
        raise ValueError(
            "Attention transfer needs a mechanism with weights. Received: "
            f"`{type(pairs[0].student.mechanism).__name__}`, which has none "
            "that can be trained. Use 'hedgehog' or 'hybrid_window', or pass "
            "`transfer_epochs=0`."
        )
    return list(variables.values())


def attention_errors(
    student, teacher, x, layers=None, loss="outputs", **options
):
    """Measures how far each attention layer is from the teacher's.

    Each layer gets the inputs of the teacher's layer in its place. High errors
    name the layers that are best left as they are (`linearize(layers=...)`).

    Args:
        student: built `keras.Model`, such as `linearize(teacher)`.
        teacher: built `keras.Model`.
        x: data, as `predict` takes it.
        layers: see `distill`. Defaults to `None`.
        loss: `"outputs"` or `"weights"`, see `distill`. Defaults to
            `"outputs"`.
        **options: of `keras.Model.predict`: `batch_size`, `steps`, ...

    Returns:
        Dict from a layer's path to its error, a float: 0 for the teacher's
        outputs, 1 for zeros.

    Raises:
        ValueError: as `distill`.

    Example:

    >>> import keras, keras_linattn, numpy as np
    >>> def model(attention):
    ...     inputs = keras.Input((None, 8))
    ...     return keras.Model(inputs, attention(inputs, inputs))
    >>> teacher = model(keras.layers.MultiHeadAttention(2, 4, name="mix"))
    >>> student = model(keras_linattn.LinearMultiHeadAttention(
    ...     2, 4, mechanism="softmax", name="mix"))
    >>> student.set_weights(teacher.get_weights())
    >>> x = np.ones((4, 5, 8), "float32")
    >>> errors = keras_linattn.convert.attention_errors(
    ...     student, teacher, x, verbose=0)
    >>> errors["mix"] < 1e-6
    True
    """
    pairs = pair_layers(student, teacher, layers)
    model = AttentionTransfer(student, teacher, pairs, loss)
    errors = model.predict(x, **options)
    return {path: float(values.mean()) for path, values in errors.items()}
