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
    gpu = pick(jax=_jax_gpu, tensorflow=_no_gpu, torch=_torch_gpu)()
    found = {"accelerator": gpu} if gpu else {}
    return {**_machine.machine(), **found, "load": round(load, 2)}


def _jax_gpu():
    import jax

    (device, *_) = jax.devices()
    return None if device.platform == "cpu" else device.device_kind


def _torch_gpu():
    import torch

    available = torch.cuda.is_available()
    return torch.cuda.get_device_name() if available else None


def _no_gpu():
    """TensorFlow is measured on CPUs only."""
