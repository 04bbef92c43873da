"""Lengths: those of nothing, and those that only the run time knows."""

from keras import ops

from keras_linattn.core import backends


def is_empty(*shapes):
    """Is a size in one of these shapes known to be 0?

    A size that JAX or torch exports is a symbol, which cannot be compared.
    """
    return any(
        isinstance(size, int) and size == 0
        for shape in shapes
        for size in shape
    )


def empty_sum(*tensors):
    """0, with gradients of 0 for each of the tensors, whatever they hold."""
    return sum(ops.sum(ops.reshape(x, (-1,))[:0]) for x in tensors)


@backends.per_backend
def require_at_run_time(holds, message):
    """Stops a TensorFlow graph in which a rule about lengths is broken.

    The other backends know all lengths while they trace. XLA leaves
    assertions out: there the caller must see to it that the answer is an
    error too, or NaN.

    Args:
        holds: bool scalar tensor.
        message: str, of the error.

    Returns:
        List of operations that must run first; empty except in TensorFlow.
    """
    return []


@backends.per_backend
def with_length_of(query, tensors, message):
    """The tensors, as long as the query, also where TensorFlow cannot tell.

    Chunks pad each to the same length, and broadcasting repeats one position:
    tensors of other lengths would give a plausible answer.

    Args:
        query: tensor `[B, H, T, D]`.
        tensors: list of tensors `[B, H, S, anything]`.
        message: str, of the error if S is not T at run time.

    Returns:
        List of the tensors.
    """
    return tensors
