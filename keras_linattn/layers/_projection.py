"""Projections of a layer in fewer passes over their outputs."""

import math

import keras
from keras import ops

from keras_linattn.core.numerics import EXACT
from keras_linattn.core.products import product_plus


def project(dense, x):
    """`dense(x)`, as one product of matrices with its bias where it can be.

    `EinsumDense` adds the bias to heads `(H, D)`, a second pass over the
    output, since only a product of plain matrices takes one along.

    Args:
        dense: built `keras.layers.EinsumDense` from the last axes of `x`, with
            a bias of all its output's axes.
        x: tensor `(B, T, ..., F)`.
    """
    # XLA makes one kernel of both; TensorFlow gained nothing when measured.
    if keras.backend.backend() != "torch" or not is_plain(dense):
        return _call(dense, x)
    # Tensors' own `reshape`: Keras' takes 30 microseconds each time.
    x = ops.cast(x, dense.compute_dtype)
    kernel, bias = map(ops.convert_to_tensor, (dense.kernel, dense.bias))
    inputs = kernel.ndim - bias.ndim  # axes
    size = math.prod(bias.shape)
    y = product_plus(
        bias.reshape(size),
        x.reshape(-1, math.prod(kernel.shape[:inputs])),
        kernel.reshape(-1, size),
    )
    return y.reshape(*x.shape[:-inputs], *bias.shape)


def _call(dense, x):
    """`dense(x)`, where TensorFlow cannot take the bias for one of axis 1.

    Keras adds a bias `(H, 1)` along axis 1 if H is the length there. In two
    parts, neither has that length.
    """
    length = x.shape[1]  # a symbol, which cannot be compared, in an export
    if (
        dense.bias is None
        or dense.bias.shape[-1] > 1
        or not isinstance(length, int)
        or [n for n in dense.bias.shape if n > 1] != [length]
    ):
        return dense(x)
    return ops.concatenate([dense(x[:, :1]), dense(x[:, 1:])], axis=1)


def is_plain(dense):
    """Is it a product and a bias in full precision, and nothing else?"""
    return (
        dense.bias is not None
        and dense.quantization_mode is None
        and dense.compute_dtype in EXACT
        and dense.activation in (None, keras.activations.linear)
        and dense.activity_regularizer is None
    )
