"""Training steps of whole models, over the matrix products in them.

The floor is what the dense sublayers of a model must do: for each call of one,
the product of its inputs and its kernel, and the two products of the backward
pass. Attention itself, embeddings, norms and the optimizer are not in it.
"""

import math

import keras
import numpy as np
from keras import ops

from keras_linattn import models
from keras_linattn.testing import timing
from tools import _machine
from tools.bench import layers
from tools.bench import runtime

FLOOR = "floor"
STEP = "step"
COMPILED = "step, jit_compile"
CLASSES = 8


def _tokens(*shape):
    return np.random.default_rng(0).integers(1, 257, shape).astype("int32")


def _normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


# By name: the model at its defaults, and a batch of inputs.
MODELS = {
    "TextClassifier": lambda: (
        models.TextClassifier(CLASSES),
        _tokens(32, 1024),
    ),
    "VisionTransformer": lambda: (
        models.VisionTransformer(CLASSES),
        _normal(64, 28, 28, 1),
    ),
    "AudioClassifier": lambda: (
        models.AudioClassifier(CLASSES),
        _normal(16, 16000),
    ),
    "CausalLM": lambda: (models.CausalLM(), _tokens(4, 1024)),
}


def times(job):
    """Seconds of a model's training step and of the products in it.

    Args:
        job: dict of `model`, a name in `MODELS`, and `rounds`.

    Returns:
        Dict with `results`, see `layers.take_turns`, and in that of `STEP` the
        bytes of its peak, `peak`, over those before the first step.
    """
    keras.utils.set_random_seed(0)
    model, inputs = MODELS[job["model"]]()
    functions = {
        FLOOR: bare_products(products_of(model, inputs)),
        STEP: training_step(model, inputs),
    }
    started = first_steps(functions[STEP])
    if keras.backend.backend() == "tensorflow":  # JAX always compiles
        again, _ = MODELS[job["model"]]()
        functions[COMPILED] = training_step(again, inputs, jit_compile=True)
    results = layers.take_turns(functions, job["rounds"])
    results[STEP] |= started
    return {"results": results}


def first_steps(step):
    """`first`, the first call's seconds; `peak`, bytes at that of two calls."""
    before = _machine.forget_peak()
    first = timing.seconds(step)
    timing.wait(step())
    return {"first": first, "peak": _machine.peak_memory() - before}


def training_step(model, inputs, jit_compile="auto"):
    """`model.train_on_batch`, as `fit` runs it, with Adam."""
    language = isinstance(model, models.CausalLM)
    labels = inputs if language else np.zeros(len(inputs), "int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=language)
    model.compile("adam", loss, jit_compile=jit_compile)
    return lambda: ops.convert_to_tensor(model.train_on_batch(inputs, labels))


def products_of(model, inputs):
    """Sizes `(rows, inputs, outputs)` of the products of dense sublayers.

    Recorded in a call: a sublayer whose `call` is wrapped is called.
    """
    found = []
    dense = (keras.layers.Dense, keras.layers.EinsumDense)
    for layer in model._flatten_layers():
        if isinstance(layer, dense):
            layer.call = _recorded(layer, layer.call, found)
    model(inputs)
    for layer in model._flatten_layers():
        if isinstance(layer, dense):
            del layer.call
    return found


def _recorded(layer, call, found):
    def record(x, *args, **kwargs):
        y = call(x, *args, **kwargs)
        size = math.prod(layer.kernel.shape)
        bound = _inputs_of(layer)
        found.append((math.prod(x.shape) // bound, bound, size // bound))
        return y

    return record


def _inputs_of(layer):
    """Features that a product sums over."""
    if isinstance(layer, keras.layers.Dense):
        return layer.kernel.shape[0]
    kernel = layer.equation.partition(",")[2].partition("->")[0]
    output = layer.equation.partition("->")[2]
    sizes = zip(kernel, layer.kernel.shape, strict=True)
    return math.prod(size for letter, size in sizes if letter not in output)


class Products(keras.layers.Layer):
    """Dense products of given sizes; its output is their results."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes

    def build(self, input_shape):
        self.inputs_of, self.kernels = [], []
        for number, (rows, bound, free) in enumerate(self.sizes):
            add = self.add_weight
            self.inputs_of.append(add((rows, bound), name=f"inputs_{number}"))
            self.kernels.append(add((bound, free), name=f"kernel_{number}"))

    def call(self, x):
        pairs = zip(self.inputs_of, self.kernels, strict=True)
        # With its input, whose gradient is asked for.
        return [x, *(ops.matmul(one, other) for one, other in pairs)]


def bare_products(sizes):
    """Function of nothing: the products and both gradients of each."""
    layer = Products(sizes)
    layer.build((1,))
    layer.built = True
    step = timing.training_step(layer)
    x = runtime.random_tensor((1,))
    return lambda: step(x)
