"""Times of a layer, forward and training step, on the backend at hand.

from keras_linattn.testing import timing
call = timing.forward(layer)  # a built layer
timing.wait(call(x))  # compiles
print(timing.seconds(call, x, repeats=5))
"""

import pathlib
import time

import keras
from keras import ops

from keras_linattn.core import backends

PART_OF_MEMORY = 0.6  # of what is free, the most that a measurement may take


def forward(layer):
    """Callable of a tensor: the layer compiled, without gradients.

    Args:
        layer: built `keras.layers.Layer` of one input.
    """
    return backends.current().forward(layer)


def training_step(layer):
    """Callable of a tensor: gradients of its input and all weights.

    Args:
        layer: built `keras.layers.Layer` of one input.
    """
    return backends.current().training_step(layer, _mean_square)


def _mean_square(outputs):
    return sum(ops.mean(ops.square(y)) for y in keras.tree.flatten(outputs))


@backends.per_backend
def wait(result):
    """Returns once the result, a tensor or a tree of them, is there."""


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


def lack_of_memory(needed):
    """Says why arrays of so many bytes should not be made, or `None`.

    They may take 0.6 of what is free.
    """
    free = free_memory()
    if needed <= PART_OF_MEMORY * free:
        return None
    return f"needs about {needed / 1e9:.0f} GB of {free / 1e9:.0f} GB free"


def free_memory():
    """Bytes that this machine can still give; 8e9 where it does not say."""
    path = pathlib.Path("/proc/meminfo")
    if not path.is_file():
        return 8e9
    lines = path.read_text().splitlines()
    free = [line.split()[1] for line in lines if "MemAvailable" in line]
    return 1024 * int(free[0])
