"""Attention transfer: trains feature maps to imitate softmax attention.

The teacher runs on a batch. Each student layer gets the inputs of the teacher's
layer at the same place, and its mechanism is trained to return that layer's
outputs. No layer depends on another, so one pass over the data trains all.

Sources: Zhang et al., "The hedgehog and the porcupine", ICLR 2024, arXiv
2402.04347, section 4.2 (cross-entropy of the attention weights); Zhang et al.,
"LoLCATs", 2024, arXiv 2410.10254, section 3.1 (squared error of the outputs).
Differs from the papers: the squared error is divided by the mean square of the
teacher's output, so that it is 0 for the teacher's output and 1 for zeros. The
output is that of the layer, after its projection, except in blocks of this
package, where it is that of the mechanism. The teacher's entropy is subtracted
from the cross-entropy, which does not change the gradients.
"""

import contextlib
import typing
from typing import Any

import keras
from keras import ops

from keras_linattn.convert._pairs import check_batch
from keras_linattn.convert._pairs import pair_layers
from keras_linattn.convert._trainable import separate
from keras_linattn.mechanisms import Mechanism

SMALLEST = 1e-12  # of weights in a logarithm, and of a sum of squares
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
        pairs = self.get_pairs()
        with recorded(pairs, self.loss_name == "weights") as calls:
            self.teacher(x, training=False)
        return {
            pair.path: self._error(pair, calls[id(pair.parts[1])])
            for pair in pairs
        }

    def _error(self, pair, calls):
        """The mean over the calls; a shared layer has several."""
        if not calls:
            raise ValueError(
                "The teacher must call each of its attention layers. "
                f"Received: a teacher that did not call {pair.path!r}. Leave "
                "this layer out of `layers=`, or do not convert it."
            )
        of_call = _weights_error if self.loss_name == "weights" else _error
        errors = [of_call(pair, call) for call in calls]
        return ops.reshape(sum(errors) / len(errors), (1,))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return sum(ops.sum(x) for x in y_pred.values()) / len(y_pred)


class Call(typing.NamedTuple):
    """The inputs and outputs of one call of a teacher's layer."""

    args: tuple
    kwargs: dict
    output: object
    weights: object


@contextlib.contextmanager
def recorded(pairs, weights=False):
    """Records the calls of the teacher's parts, as a dict from id to list.

    Args:
        pairs: list of `Pair`.
        weights: bool, whether to record the attention weights of layers.
    """
    parts = {id(part): part for _, part in (pair.parts for pair in pairs)}
    calls = {key: [] for key in parts}
    try:
        for key, part in parts.items():
            asks = weights and not isinstance(part, Mechanism)
            part.call = _recorder(part.call, calls[key], asks)
        yield calls
    finally:
        for part in parts.values():
            vars(part).pop("call", None)


def _recorder(call, calls, weights):
    """Returns a layer's `call` that also records its inputs and outputs."""

    def recording_call(*args, **kwargs):
        if weights:
            asked = {**kwargs, "return_attention_scores": True}
            output, scores = call(*args, **asked)
        else:
            output, scores = call(*args, **kwargs), None
        # The layer may take the masks off its inputs: they are in `kwargs`.
        calls.append(
            Call(args, {**kwargs, "training": False}, _first(output), scores)
        )
        return output

    return recording_call


def _first(output):
    return output[0] if isinstance(output, tuple) else output


def _error(pair, call):
    """Mean squared error divided by the mean square of the expected output."""
    student, _ = pair.parts
    output = _first(student(*call.args, **call.kwargs))
    output, expected = _comparable(pair, output, call.output)
    error = ops.square(output - expected), ops.square(expected)
    error, square = (_sum_of_seen(x, call) for x in error)
    return error / ops.maximum(square, SMALLEST)


def _weights_error(pair, call):
    """Divergence of the student's attention weights from the teacher's."""
    student, teacher = pair.parts
    if isinstance(teacher, Mechanism):
        weights, expected = (_scores(part, call) for part in pair.parts)
    else:
        asked = {**call.kwargs, "return_attention_scores": True}
        _, weights = student(*call.args, **asked)
        expected = call.weights
    weights, expected = (
        ops.maximum(x, SMALLEST) for x in _comparable(pair, weights, expected)
    )
    terms = expected * (ops.log(expected) - ops.log(weights))
    terms = ops.sum(terms, axis=-1, keepdims=True)  # (B, H, T, 1)
    rows = _sum_of_seen(ops.ones_like(terms), call)
    return _sum_of_seen(terms, call) / ops.maximum(rows, 1.0)


def _scores(mechanism, call):
    """The explicit attention weights of heads."""
    options = dict(zip(("query", "key", "value"), call.args)) | call.kwargs
    del options["value"]
    return mechanism.attention_scores(**options)


def _sum_of_seen(x, call):
    """Returns the sum over the queries that are not masked.

    Args:
        x: tensor `(B, T, F)` or `(B, H, T, D)`.
        call: `Call`, with a mask `(B, T)` or without.
    """
    mask = call.kwargs.get("query_mask")
    if mask is None:
        return ops.sum(x)
    seen = ops.expand_dims(ops.cast(mask, "bool"), -1)
    if len(x.shape) > 3:
        seen = ops.expand_dims(seen, 1)
    return ops.sum(ops.where(seen, x, 0.0))


def _comparable(pair, given, expected):
    """Returns both in float32; raises an error if their shapes differ."""
    if len(given.shape) != len(expected.shape) or any(
        a != b and None not in (a, b)
        for a, b in zip(given.shape, expected.shape)
    ):
        raise ValueError(
            "Layers of student and teacher must have outputs of one shape. "
            f"Received: {pair.path!r}, with {tuple(given.shape)} for the "
            f"teacher's {tuple(expected.shape)}. Pass the teacher that the "
            "student was made from."
        )
    return ops.cast(given, "float32"), ops.cast(expected, "float32")


def feature_map_variables(pairs):
    """The trainable variables of the student's mechanisms, each once."""
    variables = {
        id(variable): variable
        for pair in pairs
        for variable in pair.student.mechanism.trainable_variables
    }
    return list(variables.values())


def with_feature_maps(pairs):
    """The pairs whose mechanism has weights to train.

    Raises:
        ValueError: if there is no such pair.
    """
    found = [pair for pair in pairs if feature_map_variables([pair])]
    if not found:
        raise ValueError(
            "Attention transfer needs a mechanism with weights. Received: "
            f"`{type(pairs[0].student.mechanism).__name__}`, which has no "
            "trainable weights. Use 'hedgehog' or 'hybrid_window', or pass "
            "`transfer_epochs=0`."
        )
    return found


def attention_errors(
    student: keras.Model,
    teacher: keras.Model,
    x: Any,
    layers: dict[str, str] | None = None,
    loss: str = "outputs",
    **options: Any,
) -> dict[str, float]:
    """Measures the error of each attention layer against the teacher's.

    Each layer gets the inputs of the teacher's layer at the same place. Layers
    with high errors can keep softmax attention: see `layers` of `linearize`.

    Args:
        student: built `keras.Model`, such as `linearize(teacher)`.
        teacher: built `keras.Model`.
        x: data, as `predict` takes it.
        layers: see `distill`. Defaults to `None`.
        loss: `"outputs"` or `"weights"`, see `distill`. Defaults to
            `"outputs"`.
        **options: of `keras.Model.predict`: `batch_size`, `steps`, ...

    Returns:
        Dict from a layer's path to its error, a float. With `"outputs"` it is
        0 for the teacher's outputs and 1 for zeros. With `"weights"` it is the
        KL divergence from the teacher's weights, in nats for each query.

    Raises:
        ValueError: if a model is not built, or if student and teacher do not
            match.

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
    separate(student)
    model = AttentionTransfer(student, teacher, pairs, loss)
    errors = model.predict(x, **options)
    return {path: float(values.mean()) for path, values in errors.items()}
