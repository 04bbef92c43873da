"""Fine-tuning: trains the whole student on labels and the teacher's outputs."""

import keras
from keras import ops

from keras_linattn.convert._pairs import check_batch

SMALLEST = 1e-7  # of a probability in a logarithm, as in Keras' losses
NO_LABELS = (
    "The task's loss needs labels. Received: no labels. Pass them as `y` or in "
    "the data, or `teacher_weight=1` to train on the teacher's outputs only."
)


class Distillation(keras.Model):
    """The student, trained on labels and on the teacher's outputs.

    Args:
        student: built `keras.Model`.
        teacher: built `keras.Model`.
        teacher_weight: float in [0, 1], see `distill`.
        teacher_loss: `keras.losses.Loss`, or `None` with a weight of 0.
    """

    def __init__(self, student, teacher, teacher_weight, teacher_loss):
        super().__init__(
            name="distillation", dtype=student.dtype_policy, autocast=False
        )
        if not 0 <= teacher_weight <= 1:
            raise ValueError(
                "`teacher_weight` must be in [0, 1]. Received: "
                f"teacher_weight={teacher_weight!r}."
            )
        self.student = student
        self.teacher = teacher
        self.teacher_weight = teacher_weight
        self.teacher_loss = teacher_loss
        self.built = True  # as its two models are

    def call(self, x, training=None):
        check_batch(x, self.student, "student")
        return self.student(x, training=training)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        losses = []
        if self.teacher_weight < 1:
            if y is None:
                raise ValueError(NO_LABELS)
            of_task = super().compute_loss(
                x, y, y_pred, sample_weight, training
            )
            losses.append((1 - self.teacher_weight) * of_task)
        if self.teacher_weight > 0:
            expected = self.teacher(x, training=False)
            of_teacher = [
                _compared(self.teacher_loss, a, b, sample_weight)
                for a, b in zip(*map(_flat, (expected, y_pred)), strict=True)
            ]
            losses += [self.teacher_weight * x for x in of_teacher]
        return sum(losses)


def _compared(loss, expected, given, sample_weight):
    if tuple(expected.shape[1:]) != tuple(given.shape[1:]):
        raise ValueError(
            "Student and teacher must have outputs of the same shape. "
            f"Received: {tuple(given.shape)} and {tuple(expected.shape)}. Pass "
            "`teacher_weight=0` to train on the task's loss only."
        )
    weighted = {} if sample_weight is None else {"sample_weight": sample_weight}
    return loss(expected, given, **weighted)


def _flat(outputs):
    return keras.tree.flatten(outputs)


class Divergence(keras.losses.Loss):
    """Computes the KL divergence of the student from the teacher.

    loss = c^2 sum_i p_i (log p_i - log q_i) over the last axis, with the
    teacher's probabilities p, the student's q and the temperature c. The factor
    c^2 keeps the size of the gradients (Hinton et al. 2015, section 2).

    Args:
        temperature: float > 0.
        from_logits: bool, whether the outputs are logits.
    """

    def __init__(self, temperature=1.0, from_logits=True):
        super().__init__("divergence", reduction="mean_with_sample_weight")
        if not temperature > 0:
            raise ValueError(
                "`temperature` must be positive. Received: "
                f"temperature={temperature!r}."
            )
        self.temperature = temperature
        self.from_logits = from_logits

    def call(self, y_true, y_pred):
        if y_pred.shape[-1] == 1:
            raise ValueError(
                "One output is not a distribution. Received: outputs of shape "
                f'{tuple(y_pred.shape)}. Pass `teacher_loss="mse"`.'
            )
        expected, given = map(self._log_probabilities, (y_true, y_pred))
        terms = ops.exp(expected) * (expected - given)
        return self.temperature**2 * ops.sum(terms, axis=-1)

    def _log_probabilities(self, outputs):
        outputs = ops.cast(outputs, "float32")
        if not self.from_logits:
            outputs = ops.log(ops.maximum(outputs, SMALLEST))
        return ops.log_softmax(outputs / self.temperature, axis=-1)
