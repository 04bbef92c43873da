"""The one place that speaks to each backend in its own words."""

import os
import pathlib
import time

import keras
import numpy as np
from keras import ops

from tools import _machine

MEGABYTE = 1e6


def pick(**choices):
    return choices[keras.backend.backend()]


def forward(layer):
    """Callable of a tensor: the layer compiled, without gradients."""

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
    """Callable of a tensor: gradients of its input and all weights."""

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


def stepper(function, donated=()):
    """`function` of tensors compiled for decoding, without gradients.

    Args:
        function: callable.
        donated: indices of arguments that the result may overwrite (JAX).
    """

    def jax():
        import jax

        return jax.jit(function, donate_argnums=donated)

    def tensorflow():
        import tensorflow as tf

        return tf.function(function, autograph=False)

    def torch():
        import torch

        def without_gradients(*arguments):
            with torch.no_grad():
                return function(*arguments)

        return without_gradients

    return pick(jax=jax, tensorflow=tensorflow, torch=torch)()


def wait(result):
    """Returns once the result is there."""
    first = keras.tree.flatten(result)[0]
    if keras.backend.backend() == "jax":
        first.block_until_ready()


def seconds(function, *arguments, repeats=1):
    """Mean seconds of one call."""
    start = time.perf_counter()
    for _ in range(repeats):
        wait(function(*arguments))
    return (time.perf_counter() - start) / repeats


def random_tensor(shape, seed=0):
    rng = np.random.default_rng(seed)
    return ops.convert_to_tensor(rng.standard_normal(shape, dtype="float32"))


def free_memory():
    """Bytes that this machine can still give."""
    path = pathlib.Path("/proc/meminfo")
    if not path.is_file():
        return 8e9
    lines = path.read_text().splitlines()
    free = [line.split()[1] for line in lines if "MemAvailable" in line]
    return 1024 * int(free[0])


def machine():
    """What the numbers depend on, and how busy the machine is."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {**_machine.machine(), "load": round(load, 2)}


def _jax_state(layer):
    return (
        [v.value for v in layer.trainable_variables],
        [v.value for v in layer.non_trainable_variables],
    )
