"""Times of a layer, forward and training step, on the backend at hand.

    from keras_linattn.testing import timing
    call = timing.forward(layer)  # a built layer
    timing.wait(call(x))  # compiles
    print(timing.seconds(call, x, repeats=5))

The one place of the package that speaks to each backend in its own words.
"""

import pathlib
import time

import keras
from keras import ops


def forward(layer):
    """Callable of a tensor: the layer compiled, without gradients.

    Args:
        layer: built `keras.layers.Layer` of one input.
    """

    def jax():
        import jax

        def function(trainable, other, x):
            return layer.stateless_call(trainable, other, x)[0]

        compiled, state = jax.jit(function), _jax_state(layer)
        return lambda x: compiled(*state, x)

    def tensorflow():
        import tensorflow as tf

        return tf.function(layer.call, autograph=False)

    def torch():
        import torch

        def function(x):
            with torch.no_grad():
                return layer(x)

        return function

    return pick(jax=jax, tensorflow=tensorflow, torch=torch)()


def training_step(layer):
    """Callable of a tensor: gradients of its input and all weights.

    Args:
        layer: built `keras.layers.Layer` of one input.
    """

    def loss(outputs):
        return sum(ops.mean(ops.square(y)) for y in keras.tree.flatten(outputs))

    def jax():
        import jax

        def function(trainable, x, other):
            return loss(layer.stateless_call(trainable, other, x)[0])

        compiled = jax.jit(jax.grad(function, argnums=(0, 1)))
        trainable, other = _jax_state(layer)
        return lambda x: compiled(trainable, x, other)

    def tensorflow():
        import tensorflow as tf

        weights = [v.value for v in layer.trainable_variables]

        @tf.function(autograph=False)
        def function(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                total = loss(layer.call(x))
            return tape.gradient(total, [x, *weights])

        return function

    def torch():
        import torch

        weights = [v.value for v in layer.trainable_variables]

        def function(x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(loss(layer(x)), [x, *weights])

        return function

    return pick(jax=jax, tensorflow=tensorflow, torch=torch)()


def pick(**choices):
    """The choice of the backend at hand."""
    return choices[keras.backend.backend()]


def wait(result):
    """Returns once the result, a tensor or a tree of them, is there."""
    first = keras.tree.flatten(result)[0]
    if keras.backend.backend() == "jax":
        first.block_until_ready()
    elif getattr(first, "is_cuda", False):
        import torch

        torch.cuda.synchronize()


def seconds(function, *arguments, repeats=1):
    """Mean seconds of one call."""
    start = time.perf_counter()
    for _ in range(repeats):
        wait(function(*arguments))
    return (time.perf_counter() - start) / repeats


def softmax_memory(batch, heads, length, step):
    """Bytes of softmax attention's largest arrays, all `(B, H, T, T)`, float32.

    Scores and weights, and with `step` their gradients.
    """
    return (6 if step else 3) * 4 * batch * heads * length**2


def free_memory():
    """Bytes that this machine can still give; 8e9 where it does not say."""
    path = pathlib.Path("/proc/meminfo")
    if not path.is_file():
        return 8e9
    lines = path.read_text().splitlines()
    free = [line.split()[1] for line in lines if "MemAvailable" in line]
    return 1024 * int(free[0])


def _jax_state(layer):
    return (
        [v.value for v in layer.trainable_variables],
        [v.value for v in layer.non_trainable_variables],
    )
