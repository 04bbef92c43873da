"""TensorFlow: fast forms, and compiling for tests and benchmarks."""

import tensorflow as tf

# --- Compiling, for the conformance suite and the benchmarks ---------------


def compile_function(function):
    """`function` of tensors, compiled by XLA."""
    return tf.function(function, jit_compile=True)


def quick(function):
    """`function`, as the suite calls it: operation by operation."""
    return function


def call_mechanism(mechanism, heads, causal, options):
    """The mechanism's output."""
    return mechanism(*heads, causal=causal, **options)


def trace_free_sizes(function, shapes, dtypes):
    """`function` traced once for all sizes that are given as a letter."""
    signature = [
        tf.TensorSpec([None if isinstance(n, str) else n for n in shape], dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    return tf.function(function, input_signature=signature)


def gradients(function, tensors, variables):
    """Gradients of the scalar `function(*tensors)` by tensors and variables."""
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        total = function(*tensors)
    return tape.gradient(total, [*tensors, *(v.value for v in variables)])


def array_sizes(function, tensors):
    """Yields the number of entries of each array that `function` forms."""
    traced = tf.function(function).get_concrete_function(*tensors)
    for operation in traced.graph.get_operations():
        for output in operation.outputs:
            yield output.shape.num_elements() or 0


def forward(layer):
    """Callable of a tensor: the layer as a graph, without gradients."""
    return tf.function(layer.call, autograph=False)


def training_step(layer, loss):
    """Callable of a tensor: gradients of `loss` by it and by all weights."""
    weights = [v.value for v in layer.trainable_variables]

    @tf.function(autograph=False)
    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = loss(layer.call(x))
        return tape.gradient(total, [x, *weights])

    return function


def wait(result):
    """Returns at once: a call returns when its tensors are there."""
