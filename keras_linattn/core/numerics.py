"""Precision and safe division, stated once."""

from keras import backend
from keras import ops

from keras_linattn.core import backends

EXACT = ("float32", "float64")  # in half precision, sums need a wider type
LOWEST = -1e30  # log of 0; finite, since inf - inf is NaN
SMALLEST_SUM = 1e-35  # smaller sums of weights have no digits left


def accumulation_dtype(dtype):
    """Dtype in which sums over the length are taken.

    Half precision is not enough: a float16 sum over 2,048 positions overflows
    and the output silently becomes 0.

    Args:
        dtype: dtype of the inputs.

    Returns:
        `"float32"` for `float16` and `bfloat16`, else `dtype` unchanged.

    Raises:
        TypeError: if `dtype` is not floating point.
    """
    dtype = backend.standardize_dtype(dtype)
    if not backend.is_float_dtype(dtype):
        raise TypeError(
            "The inputs of attention must be floating-point tensors. Received: "
            f"dtype {dtype}. Convert them with "
            '`keras.ops.cast(x, "float32")`.'
        )
    return "float32" if dtype in ("float16", "bfloat16") else dtype


@backends.per_backend
def max_along(x, axis, initial):
    """The maximum along axes, which are kept, and at least `initial`.

    Used in place of `ops.max`, which fails on a GPU under torch: there it makes
    `initial` a tensor on the CPU.

    Args:
        x: tensor; the axes may be empty.
        axis: int or tuple of ints.
        initial: float.
    """
    return ops.max(x, axis=axis, keepdims=True, initial=initial)


@backends.per_backend
def split_at(x, indices, axis=-1):
    """`ops.split` at indices, a list of ints.

    Under torch, `ops.split` makes the indices a tensor on the GPU and waits
    for it each time.
    """
    return ops.split(x, indices, axis=axis)


@backends.per_backend
def matmul(x, y):
    """`ops.matmul`, of float64 too.

    Under torch, Keras rounds the products of float64 to `floatx()`.
    """
    return ops.matmul(x, y)


@backends.per_backend
def cumsum(x, axis):
    """`ops.cumsum`, of float64 too; see `matmul`."""
    return ops.cumsum(x, axis=axis)


@backends.per_backend
def mean(x, axis, keepdims=False):
    """`ops.mean` over one axis, of float64 too; see `matmul`."""
    return ops.mean(x, axis=axis, keepdims=keepdims)


@backends.per_backend
def maximum(x, y):
    """`ops.maximum`, of float64 too; see `matmul`.

    Args:
        x: tensor.
        y: tensor, or a number.
    """
    return ops.maximum(x, y)


def safe_divide(numerator, denominator):
    """`numerator / denominator`, and `numerator` where the denominator is 0.

    A sum of non-negative weights is 0 only if every weight is, and then the
    numerator is 0 too: a row that sees no key gives 0, with finite gradients.

    Args:
        numerator: tensor.
        denominator: tensor >= 0 that broadcasts against it; below 1e-35 it
            counts as 0.
    """
    empty = denominator < SMALLEST_SUM
    denominator = ops.where(empty, ops.ones_like(denominator), denominator)
    # To denominators of 1 first: the derivative of the quotient has their
    # square, which is 0 in float32 from 1e-19 on.
    scale = ops.stop_gradient(1 / denominator)
    return (numerator * scale) / (denominator * scale)


@backends.with_fast_forms
def divide_by_size(x, count, epsilon):
    """x / sqrt(|x|^2 / count + epsilon) for each row, rows of 1e30 included.

    Args:
        x: tensor `[..., D]`.
        count: int > 0; D for the root mean square, 1 for the length.
        epsilon: float > 0.

    Returns:
        Tensor of `x`'s shape.
    """
    # Squares of large rows overflow: divide such rows by their largest entry.
    largest = ops.max(ops.abs(ops.stop_gradient(x)), axis=-1, keepdims=True)
    scale = ops.where(largest > 1, 1 / largest, ops.ones_like(largest))
    x = x * scale
    square = ops.sum(ops.square(x), axis=-1, keepdims=True) / count
    return x * ops.rsqrt(square + epsilon * ops.square(scale))


@backends.with_fast_forms
def exp_of_logs(x):
    """e^x, 0 where the logarithm is about `LOWEST`."""
    return ops.exp(x)


def masked_exp(x, visible=None, axis=-1, max_is_constant=True):
    """`exp(x - max)` along `axis`, the maximum taken over visible entries.

    Args:
        x: float tensor.
        visible: bool tensor that broadcasts against `x`, `True` = visible.
            Defaults to `None`: all are.
        axis: int, the axis of the maximum.
        max_is_constant: bool, whether the maximum has no gradient. That is
            right where the result is divided by its own sum, in which the
            maximum cancels. Defaults to `True`.

    Returns:
        Tensor of `x`'s shape with values in [0, 1], 0 where not visible.
    """
    if visible is not None:
        # A finite floor: with -inf, a row that sees nothing is inf - inf = NaN.
        x = ops.where(visible, x, ops.cast(LOWEST, x.dtype))
    largest = ops.max(x, axis, keepdims=True)
    if max_is_constant:
        largest = ops.stop_gradient(largest)
    if visible is None:
        return ops.exp(x - largest)
    return ops.where(visible, ops.exp(x - largest), ops.zeros_like(x))


def masked_softmax(x, visible=None, axis=-1):
    """Softmax over the visible entries of `axis`; all 0 where none is.

    Args:
        x: float tensor.
        visible: bool tensor that broadcasts against `x`, `True` = visible.
            Defaults to `None`: all are.
        axis: int, the axis that is normalised.

    Returns:
        Tensor of `x`'s shape.
    """
    if visible is None:
        if x.shape[axis] == 1:  # Keras warns of a softmax over one entry
            return ops.ones_like(x)
        return ops.softmax(x, axis=axis)
    weights = masked_exp(x, visible, axis)
    return safe_divide(weights, ops.sum(weights, axis, keepdims=True))


@backends.with_fast_forms
def softmax_parts(x, visible=None, axis=-1):
    """Weights and their sums over `axis`: the softmax before its division.

    The arguments are those of `masked_softmax`.

    Returns:
        Tensor of `x`'s shape, and one without `axis`, 0 where nothing is
        visible.
    """
    weights = masked_exp(x, visible, axis)
    return weights, ops.sum(weights, axis=axis)
