"""Time for each decoded token, and bytes of state, against the context."""

import keras
import numpy as np
from keras import ops

import keras_linattn
from tools.bench import cases
from tools.bench import runtime

PIECE = 4096  # positions taken in at once while the context is built up
STEPS = 20  # tokens in a measurement
CACHE = "keras_hub_cache"


class Recurrent:
    """A linear layer and its state after the context."""

    def __init__(self, mechanism, shape):
        self.layer = keras_linattn.LinearSelfAttention(
            shape.heads, shape.key_dim, mechanism=mechanism, causal=True
        )
        self.layer.build(shape.input)
        self.layer.built = True
        self.take_in = runtime.stepper(self._call)
        self.shape = shape
        self.state, self.taken = self.layer.get_initial_state(1), 0

    def _call(self, x, state):
        return self.layer(x, initial_state=state, return_state=True)

    def go_to(self, context):
        """Takes in random positions until there are `context`."""
        while self.taken < context:
            size = min(PIECE, context - self.taken)
            shape = (1, size, self.shape.dim)
            x = runtime.random_tensor(shape, seed=self.taken)
            _, self.state = self.take_in(x, self.state)
            self.taken += size
        self.running = self.state

    def step(self, token):
        output, self.running = self.take_in(token, self.running)
        return output

    def bytes_of_state(self):
        return size_of(self.state)


class Cached:
    """KerasHub's attention with a cache of keys and values."""

    def __init__(self, shape):
        import keras_hub

        self.layer = keras_hub.layers.CachedMultiHeadAttention(
            shape.heads, shape.key_dim
        )
        self.layer.build(shape.input, shape.input)
        self.layer.built = True
        self.take_in = runtime.stepper(self._call, donated=(1,))
        self.shape = shape

    def _call(self, x, cache, index, mask):
        return self.layer(
            x, x, attention_mask=mask, cache=cache, cache_update_index=index
        )

    def go_to(self, context):
        """A cache of `context` random positions; the token is the last."""
        heads = (self.shape.heads, self.shape.key_dim)
        self.cache = None  # free the shorter one first
        self.cache = runtime.random_tensor((1, 2, context, *heads))
        self.mask = ops.ones((1, 1, context), dtype="bool")
        self.index = ops.convert_to_tensor(context - 1, dtype="int32")

    def step(self, token):
        output, self.cache = self.take_in(
            token, self.cache, self.index, self.mask
        )
        return output

    def bytes_of_state(self):
        return size_of(self.cache)


def run(job):
    """Seconds for each token by case and context.

    Args:
        job: dict of `dim`, `heads`, `contexts`, `cases`, `rounds`.
    """
    shape = cases.Shape(1, job["dim"], job["heads"])
    decoders = {name: make(name, shape) for name in job["cases"]}
    token = runtime.random_tensor(shape.input, seed=1)
    results = {name: [] for name in decoders}
    for context in sorted(job["contexts"]):
        running = {}
        for name, decoder in decoders.items():
            refused = too_large(name, shape, context)
            entry = {"context": context}
            results[name].append(entry)
            if refused:
                entry["refused"] = refused
                continue
            decoder.go_to(context)
            entry["bytes"] = decoder.bytes_of_state()
            for _ in range(2):  # compiled in the first, warm in the second
                runtime.wait(decoder.step(token))
            entry["rounds"] = []
            running[name] = decoder, entry
        for _ in range(job["rounds"]):
            for decoder, entry in running.values():
                taken = runtime.seconds(decoder.step, token, repeats=STEPS)
                entry["rounds"].append(taken)
    return {"results": results}


def make(name, shape):
    if name == CACHE:
        return Cached(shape)
    return Recurrent(name.removeprefix(cases.CAUSAL), shape)


def too_large(name, shape, context):
    """Why a cache of this length is not measured, or `None`."""
    # The cache, its updated halves and their stack are there at once.
    needed = 3 * 2 * 4 * context * shape.dim
    free = runtime.free_memory()
    if name != CACHE or needed <= 0.6 * free:
        return None
    return f"needs about {needed / 1e9:.0f} GB of {free / 1e9:.0f} GB free"


def size_of(state):
    """Bytes of a tree of tensors."""
    return sum(
        int(np.prod(x.shape)) * np.dtype(_name(x)).itemsize
        for x in keras.tree.flatten(state)
    )


def _name(x):
    return keras.backend.standardize_dtype(x.dtype)
