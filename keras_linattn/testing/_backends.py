"""The one place of the suite that speaks to each backend in its own words.

Functions here take `function`, of tensors, and NumPy arrays.
"""

import functools

import keras
from keras import ops


def gradients(function, arrays, variables):
    """Gradients of the scalar `function(*arrays)`.

    Args:
        function: callable on tensors that returns a scalar tensor.
        arrays: list of float arrays.
        variables: list of Keras variables that `function` reads.

    Returns:
        Lists of NumPy arrays: of the arrays, and of the variables.
    """
    tensors = [ops.convert_to_tensor(x) for x in arrays]
    found = _pick(_tensorflow_gradients, _jax_gradients, _torch_gradients)(
        function, tensors, variables
    )
    found = [
        ops.convert_to_numpy(ops.zeros_like(x) if g is None else g)
        for g, x in zip(found, [*tensors, *variables], strict=True)
    ]
    return found[: len(arrays)], found[len(arrays) :]


def call(mechanism, heads, causal, **options):
    """The mechanism's output, as a NumPy array.

    Under JAX compiled as a whole, once for each shape: operation by operation
    the suite would spend minutes in the compiler.
    """
    heads = [ops.convert_to_tensor(x) for x in heads]
    # In training the state of a random generator goes on, which a compiled
    # call would not write back.
    if keras.backend.backend() != "jax" or options.get("training"):
        return _to_numpy(mechanism(*heads, causal=causal, **options))
    if not mechanism.built:
        mechanism.build(*(x.shape for x in heads))
        mechanism.built = True
    weights = [
        [v.value for v in variables]
        for variables in (
            mechanism.trainable_variables,
            mechanism.non_trainable_variables,
        )
    ]
    function = _jitted(mechanism)
    output, _ = function(*weights, *heads, causal=causal, **options)
    return _to_numpy(output)


@functools.lru_cache(maxsize=8)
def _jitted(mechanism):
    import jax

    return jax.jit(
        mechanism.stateless_call, static_argnames=("causal", "training")
    )


def quick(function, arrays):
    """`function(*arrays)`, compiled under JAX alone; see `call`."""
    if keras.backend.backend() == "jax":
        return compiled(function, arrays)
    return _to_numpy(function(*map(ops.convert_to_tensor, arrays)))


def step_of(mechanism):
    """`mechanism.step` of a state, three heads and a key mask; see `call`."""

    def step(state, query, key, value, key_mask):
        return mechanism.step(state, query, key, value, key_mask=key_mask)

    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(step)
    return step


def compiled(function, arrays):
    """`function(*arrays)` compiled by XLA; as it is under torch."""

    def tensorflow():
        import tensorflow as tf

        return tf.function(function, jit_compile=True)

    def jax():
        import jax

        return jax.jit(function)

    make = _pick(tensorflow, jax, lambda: function)
    return _to_numpy(make()(*map(ops.convert_to_tensor, arrays)))


def with_free_sizes(function, shapes, dtypes):
    """`function` traced once for all sizes that are given as a letter.

    Args:
        function: callable on tensors.
        shapes: list of tuples of int and str; equal strings are equal sizes.
        dtypes: list of str.

    Returns:
        Callable on NumPy arrays. Under torch nothing is traced.
    """

    def tensorflow():
        import tensorflow as tf

        return tf.function(
            function,
            input_signature=[
                tf.TensorSpec(
                    [None if isinstance(n, str) else n for n in shape], dtype
                )
                for shape, dtype in zip(shapes, dtypes, strict=True)
            ],
        )

    def jax():
        import jax
        from jax import export

        scope = export.SymbolicScope()
        structs = [
            jax.ShapeDtypeStruct(
                export.symbolic_shape(
                    ", ".join(str(n) for n in shape), scope=scope
                ),
                dtype,
            )
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        return export.export(jax.jit(function))(*structs).call

    traced = _pick(tensorflow, jax, lambda: function)()
    return lambda *arrays: _to_numpy(
        traced(*map(ops.convert_to_tensor, arrays))
    )


def largest_intermediate(function, arrays):
    """Number of entries of the largest array that `function` forms."""
    sizes = _pick(_tensorflow_sizes, _jax_sizes, _torch_sizes)
    return max(sizes(function, [ops.convert_to_tensor(x) for x in arrays]))


def _pick(tensorflow, jax, torch):
    choices = {"tensorflow": tensorflow, "jax": jax, "torch": torch}
    return choices[keras.backend.backend()]


def _to_numpy(output):
    return ops.convert_to_numpy(output)


def _tensorflow_gradients(function, tensors, variables):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(tensors)
        total = function(*tensors)
    return tape.gradient(total, [*tensors, *(v.value for v in variables)])


def _jax_gradients(function, tensors, variables):
    import jax

    def total(tensors, values):
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function(*tensors)

    values = [v.value for v in variables]
    both = jax.jit(jax.grad(total, argnums=(0, 1)))
    by_tensor, by_variable = both(tensors, values)
    return [*by_tensor, *by_variable]


def _torch_gradients(function, tensors, variables):
    import torch

    tensors = [x.detach().requires_grad_() for x in tensors]
    wanted = [*tensors, *(v.value for v in variables)]
    return torch.autograd.grad(function(*tensors), wanted, allow_unused=True)


def _tensorflow_sizes(function, tensors):
    import tensorflow as tf

    traced = tf.function(function).get_concrete_function(*tensors)
    for operation in traced.graph.get_operations():
        for output in operation.outputs:
            yield output.shape.num_elements() or 0


def _jax_sizes(function, tensors):
    import jax
    from jax.extend.core import jaxprs_in_params

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield from (output.aval.size for output in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from walk(inner)

    yield from walk(jax.make_jaxpr(function)(*tensors).jaxpr)


def _torch_sizes(function, tensors):
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            output = operation(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(output):
                if isinstance(x, torch.Tensor):
                    sizes.append(x.numel())
            return output

    with Record():
        function(*tensors)
    return sizes
