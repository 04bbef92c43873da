"""What several test files use."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_linattn
from keras_linattn.core.documents import same_document
from keras_linattn.mechanisms import Traits
from keras_linattn.testing._backends import quick


def public_layers():
    """Names of the layers that the package shows."""
    return {
        name
        for name, value in vars(keras_linattn.layers).items()
        if isinstance(value, type) and issubclass(value, keras.layers.Layer)
    }


# One mechanism for each way to compute: the default, kernels, decays, delta
# rules, windows, landmarks.
FAMILIES = (
    "modified_linformer",
    "linear_transformer",
    "retention",
    "gated_delta",
    "local",
    "nystromformer",
)


def cases_of(names, everywhere=FAMILIES):
    """Cases for `parametrize`: TensorFlow and JAX run some at each landing.

    torch, which does not compile, runs all; so do the others at a release.
    """
    return [
        pytest.param(name, id=name, marks=marks_of(name in everywhere))
        for name in names
    ]


def marks_of(everywhere):
    """Marks of a case that each backend runs at each landing, or only torch."""
    if everywhere or keras.backend.backend() == "torch":
        return [pytest.mark.every_case]
    return [pytest.mark.release]


# For a test whose operations others run on each backend.
slow_to_compile = marks_of(everywhere=False)[0]
# For a test that JAX runs at a release only, TensorFlow at each landing.
slow_under_jax = marks_of(everywhere=keras.backend.backend() != "jax")[0]


def random(*shape, seed=0):
    """Normal numbers, float32."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype("float32")


def numpy(x):
    """A tensor as a NumPy array."""
    return ops.convert_to_numpy(x)


def fed(model, tokens, sizes):
    """Logits of a `CausalLM` for `tokens`, in pieces of the sizes."""

    def function(tokens):
        state = model.get_initial_state(tokens.shape[0])
        logits, start = [], 0
        for size in sizes:
            now = tokens[:, start : start + size]
            some, _, state = model.call_with_state(now, state)
            logits.append(some)
            start += size
        return ops.concatenate(logits, axis=1)

    return quick(function, [tokens])


def predict(model, *inputs):
    """Outputs for arrays, as a NumPy array.

    JAX compiles each operation for each shape unless the whole is compiled.
    """
    if keras.backend.backend() == "jax":
        inputs = inputs[0] if len(inputs) == 1 else list(inputs)
        return model.predict(inputs, verbose=0)
    tensors = keras.tree.map_structure(
        keras.ops.convert_to_tensor, list(inputs)
    )
    return keras.ops.convert_to_numpy(model(*tensors, training=False))


# --- Rows that hold several documents

# Mechanisms whose documents stay apart, in layers and models.
PACKING = ("softmax", "modified_linformer", "gated_delta")
# Padding before, between and after documents; one of a single position; ids
# that fall.
SEGMENT_IDS = np.array(
    [[0, 1, 1, 1, 0, 2, 3, 3, 3, 3, 0], [4] * 7 + [2] * 4], "int32"
)


def documents(segment_ids=SEGMENT_IDS):
    """The documents in their order, each a row and a slice."""
    found = []
    for row, ids in enumerate(segment_ids):
        starts = [0, *np.flatnonzero(np.diff(ids)) + 1, len(ids)]
        for start, end in zip(starts, starts[1:]):
            if ids[start]:
                found.append((row, slice(start, end)))
    return found


def alone(x, segment_ids=SEGMENT_IDS):
    """Each document in a row of its own, padded with 0 at the end."""
    parts = [x[place] for place in documents(segment_ids)]
    rows = np.zeros((len(parts), max(map(len, parts)), *x.shape[2:]), x.dtype)
    for row, part in zip(rows, parts):
        row[: len(part)] = part
    return rows


def assert_same_documents(packed, separate, **options):
    """Outputs of packed rows are those of `alone`'s, one by one."""
    for place, row in zip(documents(), separate, strict=True):
        part = packed[place]
        np.testing.assert_allclose(part, row[: len(part)], **options)


class DocumentSums(keras_linattn.mechanisms.Mechanism):
    """Sums of a document's values up to each position: the plainest state."""

    traits = Traits(
        causal=True, bidirectional=False, recurrent=True, packs=True
    )

    def state_spec(self, num_heads, key_dim, value_dim):
        return keras.KerasTensor((None, num_heads, 1, value_dim))

    def attend(self, query, key, value, *, documents=None, **options):
        state = self.initial_state_for(query, value)
        return self.advance(
            state, query, key, value, key_mask=None, documents=documents
        )[0]

    def advance(self, state, query, key, value, *, key_mask, documents=None):
        length = value.shape[2]
        seen = ops.tril(ops.ones((1, 1, length, length)))
        if documents is not None:
            seen = seen * ops.cast(same_document(documents), "float32")
            first = ops.equal(documents.query, 0)[:, None, :, None]
            state = ops.where(first, state, 0.0)
        output = ops.matmul(seen, value) + state
        return output, output[:, :, -1:]


@keras.saving.register_keras_serializable("tests")
class FirstValues(keras_linattn.mechanisms.Mechanism):
    """The mean of the first `size` visible values; a state of three dtypes.

    Not in the registry, whose names other tests go through.
    """

    traits = Traits(
        causal=True, bidirectional=False, cross=False, recurrent=True
    )

    def __init__(self, size=4, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def state_spec(self, num_heads, key_dim, value_dim):
        kept = (None, num_heads, self.size, value_dim)
        return {
            "count": keras.KerasTensor((None,), "int32"),
            "kept": keras.KerasTensor(kept, "float32"),
            "seen": keras.KerasTensor((None, self.size), "bool"),
        }

    def attend(self, query, key, value, *, key_mask, **unused):
        state = self.initial_state_for(query, value)
        return self.advance(state, query, key, value, key_mask=key_mask)[0]

    def advance(self, state, query, key, value, *, key_mask):
        if key_mask is None:
            key_mask = ops.ones_like(value[:, 0, :, 0], dtype="bool")
        new = ops.cast(key_mask, "int32")  # (B, T)
        place = state["count"][:, None] + ops.cumsum(new, axis=1) - 1
        slots = ops.expand_dims(place, 2) == ops.arange(self.size)
        slots = (
            ops.cast(slots, value.dtype)
            * ops.cast(new, value.dtype)[:, :, None]
        )
        kept = state["kept"] + ops.einsum("btn,bhtv->bhnv", slots, value)
        earlier = ops.cast(state["seen"], value.dtype)[:, None]
        until = earlier + ops.cumsum(slots, axis=1)  # (B, T, N)
        weights = until / ops.maximum(ops.sum(until, -1, keepdims=True), 1)
        output = ops.einsum("btn,bhnv->bhtv", weights, kept)
        output += ops.sum(query * key, -1, keepdims=True)
        count = state["count"] + ops.sum(new, axis=1)
        return output, {
            "count": ops.cast(count, "int32"),
            "kept": kept,
            "seen": ops.logical_or(state["seen"], ops.any(slots > 0, axis=1)),
        }
