"""Calls of the suite, in NumPy arrays, on the backend at hand.

Functions here take `function`, of tensors, and NumPy arrays.
"""

from keras import ops

from keras_linattn.core import backends


def gradients(function, arrays, variables):
    """Gradients of the scalar `function(*arrays)`.

    Args:
        function: callable on tensors that returns a scalar tensor.
        arrays: list of float arrays.
        variables: list of Keras variables that `function` reads.

    Returns:
        Lists of NumPy arrays: of the arrays, and of the variables.
    """
    tensors = _tensors(arrays)
    found = backends.current().gradients(function, tensors, variables)
    found = [
        ops.convert_to_numpy(ops.zeros_like(x) if g is None else g)
        for g, x in zip(found, [*tensors, *variables], strict=True)
    ]
    return found[: len(arrays)], found[len(arrays) :]


def call(mechanism, heads, causal, **options):
    """The mechanism's output, as a NumPy array.

    Compiled as a whole under JAX: operation by operation the suite would
    spend minutes in the compiler.
    """
    run = backends.current().call_mechanism
    return ops.convert_to_numpy(
        run(mechanism, _tensors(heads), causal, options)
    )


def quick(function, arrays):
    """`function(*arrays)`, compiled under JAX only; see `call`."""
    function = backends.current().quick(function)
    return ops.convert_to_numpy(function(*_tensors(arrays)))


def step_of(mechanism):
    """`mechanism.step` of a state, three heads and a key mask; see `call`."""

    def step(state, query, key, value, key_mask):
        return mechanism.step(state, query, key, value, key_mask=key_mask)

    return backends.current().quick(step)


def compiled(function, arrays):
    """`function(*arrays)` compiled by XLA; as it is under torch."""
    function = backends.current().compile_function(function)
    return ops.convert_to_numpy(function(*_tensors(arrays)))


def with_free_sizes(function, shapes, dtypes):
    """`function` traced once for all sizes that are given as a letter.

    Args:
        function: callable on tensors.
        shapes: list of tuples of int and str; equal strings are equal sizes.
        dtypes: list of str.

    Returns:
        Callable on NumPy arrays. Under torch nothing is traced.
    """
    traced = backends.current().trace_free_sizes(function, shapes, dtypes)
    return lambda *arrays: ops.convert_to_numpy(traced(*_tensors(arrays)))


def largest_intermediate(function, arrays):
    """Number of entries of the largest array that `function` forms."""
    return max(backends.current().array_sizes(function, _tensors(arrays)))


def _tensors(arrays):
    return [ops.convert_to_tensor(x) for x in arrays]
