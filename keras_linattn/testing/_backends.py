"""Calls of the suite, in NumPy arrays, on the backend at hand.

Functions here take `function`, of tensors, and NumPy arrays.
"""

import functools

from keras import ops

from keras_linattn.core import backends


def gradients(function, arrays, variables, others=()):
    """Gradients of the scalar `function(*arrays, *others)`.

    JAX compiles them once for each function and each set of shapes.

    Args:
        function: callable on tensors that returns a scalar tensor.
        arrays: list of float arrays.
        variables: list of Keras variables that `function` reads.
        others: arrays or `None`s without gradients. Defaults to none.

    Returns:
        Lists of NumPy arrays: of the arrays, and of the variables.
    """
    given = tensors(arrays)
    others = [None if x is None else ops.convert_to_tensor(x) for x in others]
    found = backends.current().gradients(function, given, variables, others)
    found = [
        ops.convert_to_numpy(ops.zeros_like(x) if g is None else g)
        for g, x in zip(found, [*given, *variables], strict=True)
    ]
    return found[: len(arrays)], found[len(arrays) :]


def call(mechanism, heads, causal, **options):
    """The mechanism's output, as a NumPy array.

    Compiled as a whole under JAX: operation by operation the suite would
    spend minutes in the compiler.
    """
    return ops.convert_to_numpy(
        call_mechanism(mechanism, tensors(heads), causal, options)
    )


def quick(function, arrays):
    """`function(*arrays)`, compiled under JAX only; see `call`."""
    function = compile_where_slow(function)
    return ops.convert_to_numpy(function(*tensors(arrays)))


@functools.lru_cache(maxsize=8)
def step_of(mechanism):
    """`mechanism.step` of a state, three heads and a key mask; see `call`.

    Compiled with the weights of its first call.
    """

    def step(state, query, key, value, key_mask):
        return mechanism.step(state, query, key, value, key_mask=key_mask)

    return compile_where_slow(step)


def compiled(function, arrays):
    """`function(*arrays)` compiled by XLA; as it is under torch."""
    function = compile_function(function)
    return ops.convert_to_numpy(function(*tensors(arrays)))


def with_free_sizes(function, shapes, dtypes):
    """`function` traced once for all sizes that are given as a letter.

    Args:
        function: callable on tensors.
        shapes: list of tuples of int and str; equal strings are equal sizes.
        dtypes: list of str.

    Returns:
        Callable on NumPy arrays. Under torch nothing is traced.
    """
    traced = trace_free_sizes(function, shapes, dtypes)
    return lambda *arrays: ops.convert_to_numpy(traced(*tensors(arrays)))


def largest_intermediate(function, arrays):
    """Number of entries of the largest array that `function` forms."""
    return max(backends.current().array_sizes(function, tensors(arrays)))


# What the backend runs as it is, unless its module says otherwise.


@backends.per_backend
def compile_function(function):
    """`function` of tensors, compiled by XLA if the backend can."""
    return function


@backends.per_backend
def compile_where_slow(function):
    """`function`, compiled if the backend compiles each operation anyway."""
    return function


@backends.per_backend
def call_mechanism(mechanism, heads, causal, options):
    """The mechanism's output."""
    return mechanism(*heads, causal=causal, **options)


@backends.per_backend
def trace_free_sizes(function, shapes, dtypes):
    """`function` traced once for all sizes that are given as a letter."""
    return function


def tensors(arrays):
    """A list of tensors."""
    return [ops.convert_to_tensor(x) for x in arrays]
