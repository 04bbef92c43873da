"""What the jobs need of a backend and of the machine."""

import os

import keras
import numpy as np
from keras import ops

from tools import _machine


def pick(**choices):
    """The choice of the backend at hand."""
    return choices[keras.backend.backend()]


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


def random_tensor(shape, seed=0):
    rng = np.random.default_rng(seed)
    return ops.convert_to_tensor(rng.standard_normal(shape, dtype="float32"))


def machine():
    """What the numbers depend on, and how busy the machine is."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {**_machine.machine(), "load": round(load, 2)}
