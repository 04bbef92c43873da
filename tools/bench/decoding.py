"""Time for each decoded token, and bytes of state, against the context."""

import keras
import numpy as np
from keras import ops

import keras_linattn
from keras_linattn.testing import timing
from tools.bench import cases
from tools.bench import runtime

PIECE = 4096  # positions taken in at once while the context is built up
STEPS = 20  # tokens in a measurement, fewer where they take long
LONG = 0.5  # seconds of a measurement
CACHE = "keras_hub_cache"


class Recurrent:
    """A linear layer and its states after the contexts."""

    # States are small: all contexts are there at once, and take turns.
    take_turns = True

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

    def after(self, context):
        """What decodes after that many random positions, taken in here."""
        while self.taken < context:
            size = min(PIECE, context - self.taken)
            shape = (1, size, self.shape.dim)
            x = runtime.random_tensor(shape, seed=self.taken)
            _, self.state = self.take_in(x, self.state)
            self.taken += size
        return Decoder(self.take_in, self.state)


class Cached:
    """KerasHub's attention with a cache of keys and values."""

    take_turns = False

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

    def after(self, context):
        """With a cache of `context` random positions; the token is the last."""
        heads = (self.shape.heads, self.shape.key_dim)
        cache = runtime.random_tensor((1, 2, context, *heads))
        mask = ops.ones((1, 1, context), dtype="bool")
        index = ops.convert_to_tensor(context - 1, dtype="int32")
        return Decoder(self.take_in, cache, index, mask)


class Decoder:
    """Takes tokens one by one, and hands its state on.

    Args:
        function: callable (token, state, *others) -> (output, state).
        state: tree of tensors.
        *others: tensors.
    """

    def __init__(self, function, state, *others):
        self.function, self.state, self.others = function, state, others
        self.bytes = size_of(state)

    def step(self, token):
        output, self.state = self.function(token, self.state, *self.others)
        return output


def run(job):
    """Seconds for each token by case and context.

    Args:
        job: dict of `dim`, `heads`, `contexts`, `cases`, `rounds`.
    """
    shape = cases.Shape(1, job["dim"], job["heads"])
    contexts = sorted(job["contexts"])
    results = {}
    for name in job["cases"]:
        layer = make(name, shape)
        groups = [contexts] if layer.take_turns else [[c] for c in contexts]
        results[name] = [
            entry
            for group in groups
            for entry in measured(name, layer, group, job["rounds"])
        ]
    return {"results": results}


def measured(name, layer, contexts, rounds):
    """An entry for each context, which take turns round after round."""
    token = runtime.random_tensor(layer.shape.input, seed=1)
    entries, running = [], []
    for context in contexts:
        entries.append({"context": context})
        refused = too_large(name, layer.shape, context)
        if refused:
            entries[-1]["refused"] = refused
            continue
        decoder = layer.after(context)
        timing.wait(decoder.step(token))  # compiled
        once = timing.seconds(decoder.step, token)
        steps = int(min(STEPS, max(2, LONG / once)))
        entries[-1] |= {"bytes": decoder.bytes, "rounds": []}
        running.append((decoder, steps, entries[-1]["rounds"]))
    for _ in range(rounds):
        for decoder, steps, taken in running:
            taken.append(timing.seconds(decoder.step, token, repeats=steps))
    return entries


def make(name, shape):
    if name == CACHE:
        return Cached(shape)
    return Recurrent(name.removeprefix(cases.CAUSAL), shape)


def too_large(name, shape, context):
    """Why a cache of this length is not measured, or `None`."""
    if name != CACHE:
        return None
    # The cache, its updated halves and their stack are there at once.
    return timing.lack_of_memory(3 * 2 * 4 * context * shape.dim)


def size_of(state):
    """Bytes of a tree of tensors."""
    return sum(
        int(np.prod(x.shape)) * np.dtype(_name(x)).itemsize
        for x in keras.tree.flatten(state)
    )


def _name(x):
    return keras.backend.standardize_dtype(x.dtype)
