"""Groups of neighbours in a sequence, and the mask of such groups."""

import keras
from keras import ops

from keras_linattn.core.chunks import num_chunks
from keras_linattn.core.chunks import pad_to_chunks


def check_factor(factor, name="factor"):
    """Raises a `ValueError` unless the argument `name` is an int > 0."""
    if not isinstance(factor, int) or factor < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={factor!r}."
        )


def group(x, factor):
    """`(B, T, ...)` to `(B, ceil(T / factor), factor, ...)`, 0 at the end."""
    shape = ops.shape(x)
    count = num_chunks(shape[1], factor)
    x = pad_to_chunks(x, factor, axis=1)
    return ops.reshape(x, (shape[0], count, factor, *shape[2:]))


@keras.saving.register_keras_serializable("keras_linattn")
class MergeMask(keras.Operation):
    """Mask of merged tokens: `True` if one of the `factor` parts is.

    An operation of its own: while a functional model is made, Keras needs
    masks tied to the graph, and `group` cannot count an unknown length.
    """

    def __init__(self, factor, name=None):
        super().__init__(name=name)
        self.factor = factor

    def call(self, mask):
        # Through int32: TensorFlow cannot pad booleans.
        return ops.any(group(ops.cast(mask, "int32"), self.factor) > 0, axis=2)

    def compute_output_spec(self, mask):
        batch, length = mask.shape
        length = None if length is None else num_chunks(length, self.factor)
        return keras.KerasTensor((batch, length), dtype="bool")

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}
