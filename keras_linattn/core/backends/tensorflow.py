"""TensorFlow: fast forms, and compiling for tests and benchmarks."""

import tensorflow as tf
from keras import ops

from keras_linattn.core import chunks

# --- Fast forms -----------------------------------------------------------


def cumulative_sums(x, start):
    """Within groups of chunks by additions: its own `cumsum` is slow."""
    known = isinstance(ops.shape(x)[2], int)
    again = cumulative_sums if known else chunks.cumulative_sums.portable
    return chunks.grouped_sums(x, start, again)


def read_chunks(inputs, state, loop):
    """With a loop over the states only, with one product for each chunk.

    TensorFlow's loops store the inputs of gradients in lists, which is slow.
    """
    own, reading, scores, lasting, decay, *limits = inputs
    if limits:
        return NotImplemented
    read, query = ops.split(reading, 2, axis=-2)
    transition = decay * ops.eye(read.shape[-1], dtype=read.dtype)
    transition = transition - ops.matmul(lasting, read)
    update = ops.matmul(lasting, own)

    def advance(chunk, state):
        update, transition = chunk
        return state, ops.matmul(transition, state) + update

    chunks = update, transition
    before, state = loop(advance, chunks, state, state.shape[-2:])
    query = query - ops.matmul(scores, read)
    return ops.matmul(scores, own) + ops.matmul(query, before), state


def loop_over_chunks(advance, inputs, start, output_shape):
    """By `TensorArray`s, so that chunks need not be flattened and joined."""
    count = inputs[0].shape[2]
    if count is None or count == 1:
        return NotImplemented
    arrays = [
        tf.TensorArray(x.dtype, count).unstack(ops.moveaxis(x, 2, 0))
        for x in inputs
    ]

    def body(number, state, outputs):
        chunk = tuple(array.read(number) for array in arrays)
        output, state = advance(chunk, state)
        return number + 1, state, outputs.write(number, output)

    outputs = tf.TensorArray(start.dtype, count)
    _, state, outputs = tf.while_loop(
        lambda number, *_: number < count,
        body,
        (0, start, outputs),
        maximum_iterations=count,
    )
    return ops.moveaxis(outputs.stack(), 0, 2), state


# --- Lengths that only the run time knows ---------------------------------


def looped_sums(x, start, breaks):
    """By a loop over the chunks."""

    def advance(state, chunk):
        update, cut = chunk
        return chunks.keep(state, cut) + update

    inputs = [ops.moveaxis(a, 2, 0) for a in (x, breaks)]
    after = tf.scan(advance, inputs, initializer=start)
    sums = tf.concat([start[None], after], axis=0)
    return ops.moveaxis(sums[:-1], 0, 2), sums[-1]


def require_at_run_time(holds, message):
    """An assertion in the graph; XLA leaves it out."""
    return [tf.debugging.Assert(holds, [message])]


def with_length_of(query, tensors, message):
    """Checked where a length is unknown, by a reshape that costs nothing."""
    return [
        _as_long(query, x, message)
        if None in (query.shape[2], x.shape[2])
        else x
        for x in tensors
    ]


def _as_long(query, x, message):
    length, shape = ops.shape(query)[2], list(ops.shape(x))
    holds = ops.equal(shape[2], length)
    with tf.control_dependencies(require_at_run_time(holds, message)):
        shape[2] = tf.identity(length)
    # An error under XLA, where there are no assertions.
    return ops.reshape(x, shape)


# --- Compiling, for the conformance suite and the benchmarks ---------------


def compile_function(function):
    """`function` of tensors, compiled by XLA."""
    return tf.function(function, jit_compile=True)


def trace_free_sizes(function, shapes, dtypes):
    """`function` traced once for all sizes that are given as a letter."""
    signature = [
        tf.TensorSpec([None if isinstance(n, str) else n for n in shape], dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    return tf.function(function, input_signature=signature)


def gradients(function, tensors, variables, others=()):
    """Gradients of the scalar `function(*tensors, *others)`.

    By tensors and variables.
    """
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        total = function(*tensors, *others)
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
