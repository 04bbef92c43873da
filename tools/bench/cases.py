"""What is measured: each case is a Keras layer `(B, T, F)` to `(B, T, F)`.

A new case is a function `(shape) -> layer` under `@case(name, ...)`. Linear
mechanisms need none: `linear:NAME` is one, bidirectional `both:NAME`, and
`packed:NAME` with several documents in each row. Other libraries, `peer:NAME`,
are in `peers.py`.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

import keras_linattn
from keras_linattn.testing import timing
from tools.bench import peers

FLOOR = "floor"
CAUSAL, BOTH, PACKED = "linear:", "both:", "packed:"


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a layer and its input.

    Args:
        length: int, T.
        dim: int, F, features of the input and of all heads together.
        heads: int, H.
        batch: int, B. Defaults to 1.
    """

    length: int
    dim: int
    heads: int
    batch: int = 1

    @property
    def input(self):
        return (self.batch, self.length, self.dim)

    @property
    def key_dim(self):
        return self.dim // self.heads


def shape_of(job):
    """The `Shape` that a job asks for."""
    sizes = ("length", "dim", "heads", "batch")
    return Shape(**{name: job[name] for name in sizes if name in job})


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure.

    Args:
        name: str.
        make: callable `(Shape) -> keras.layers.Layer`.
        verify: name of the mechanism whose conformance checks must pass
            before a number is reported. Defaults to `None`: there is none.
        largest: callable `(Shape, step) -> bytes` of the largest arrays that
            it holds at once, to refuse what does not fit. Defaults to `None`:
            linear in the length, always fits.
    """

    name: str
    make: Callable
    verify: str | None = None
    largest: Callable | None = None


_CASES = {}


def case(name, **options):
    """Registers the decorated function as the case `name`."""

    def register(make):
        _CASES[name] = Case(name, make, **options)
        return make

    return register


def get(name):
    """The case of that name; raises a `ValueError` if there is none."""
    if name in _CASES:
        return _CASES[name]
    if name in peers.names():
        return Case(name, **peers.options(name))
    for prefix in (CAUSAL, BOTH, PACKED):
        mechanism = name.removeprefix(prefix)
        known = mechanism in keras_linattn.mechanisms.available()
        if name.startswith(prefix) and known:
            return _linear_case(name, mechanism, prefix)
    raise ValueError(
        f"Unknown case. Received: {name!r}. Known: "
        f"{', '.join([*_CASES, *peers.names()])}, and "
        f"{CAUSAL}NAME (causal), {BOTH}NAME or {PACKED}NAME for one of "
        f"{', '.join(keras_linattn.mechanisms.available())}."
    )


def _linear_case(name, mechanism, prefix):
    def make(shape):
        layer = keras_linattn.LinearSelfAttention(
            shape.heads,
            shape.key_dim,
            mechanism=mechanism,
            causal=prefix != BOTH,
        )
        return Packed(layer) if prefix == PACKED else layer

    return Case(name, make, verify=mechanism)


class Packed(keras.layers.Layer):
    """Attention within documents of 100 to 1,000 positions."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def build(self, input_shape):
        self.attention.build(input_shape)
        batch, length, _ = input_shape
        lengths = np.random.default_rng(0).integers(100, 1001, length)
        ids = np.repeat(np.arange(length) + 1, lengths)[:length]
        self.ids = np.tile(ids.astype("int32"), (batch, 1))

    def call(self, x):
        return self.attention(x, segment_ids=ops.convert_to_tensor(self.ids))


class Projections(keras.layers.Layer):
    """The floor: the four dense projections of a layer, as bare products."""

    def build(self, input_shape):
        size = input_shape[-1]
        for name in ("query", "key", "value", "attention_output"):
            setattr(self, f"w_{name}", self.add_weight((size, size), name=name))

    def call(self, x):
        value = ops.matmul(x, self.w_value)
        return (
            ops.matmul(x, self.w_query),
            ops.matmul(x, self.w_key),
            ops.matmul(value, self.w_attention_output),
        )


class Softmax(keras.layers.Layer):
    """Keras' own self-attention, with its defaults."""

    def __init__(self, heads, key_dim, causal, window=None):
        super().__init__()
        self.attention = keras.layers.MultiHeadAttention(
            heads, key_dim, sliding_window=window
        )
        self.causal = causal

    def build(self, input_shape):
        self.attention.build(input_shape, input_shape)

    def call(self, x):
        return self.attention(x, x, use_causal_mask=self.causal)


class Encoder(keras.layers.Layer):
    """Blocks as in training: for what they keep for the backward pass."""

    BLOCKS = 4

    def __init__(self, heads, width, remat):
        super().__init__()
        self.blocks = [
            keras_linattn.LinearTransformerEncoder(width, heads, remat=remat)
            for _ in range(self.BLOCKS)
        ]

    def build(self, input_shape):
        for block in self.blocks:
            block.build(input_shape)

    def call(self, x):
        for block in self.blocks:
            x = block(x, training=True)
        return x


class InSegments(keras.layers.Layer):
    """Causal attention to a whole that is taken in piece by piece.

    A piece hands its state on, and is computed again in the backward pass: of
    the whole there are the input, the output and their gradients.
    """

    SEGMENT = 16384

    def __init__(self, heads, key_dim):
        super().__init__()
        self.attention = keras_linattn.LinearSelfAttention(
            heads, key_dim, mechanism="linear_transformer", causal=True
        )

    def build(self, input_shape):
        self.attention.build(input_shape)

    def call(self, x):
        batch, length, features = x.shape
        count = max(1, length // self.SEGMENT)
        state = self.attention.get_initial_state(batch)

        def take_in(state, piece):
            y, state = self.attention(
                piece, initial_state=state, return_state=True
            )
            return state, y

        take_in = keras.remat(take_in)
        if keras.backend.backend() == "jax":
            # XLA would merge what is computed twice, but for that in loops.
            pieces = ops.reshape(x, (batch, count, -1, features))
            return ops.scan(take_in, state, ops.swapaxes(pieces, 0, 1))[1]
        outputs = []  # not joined: their gradients would be there twice
        for piece in ops.split(x, count, axis=1):
            state, y = take_in(state, piece)
            outputs.append(y)
        return outputs


def _scores(shape, step):
    return timing.softmax_memory(shape.batch, shape.heads, shape.length, step)


@case(FLOOR)
def floor(shape):
    return Projections()


@case("keras_mha", largest=_scores)
def keras_mha(shape):
    return Softmax(shape.heads, shape.key_dim, causal=True)


@case("keras_mha_both", largest=_scores)
def keras_mha_both(shape):
    return Softmax(shape.heads, shape.key_dim, causal=False)


@case("keras_window", largest=_scores)
def keras_window(shape):
    """With the window that `local` has by default."""
    window = keras_linattn.mechanisms.get("local").window
    return Softmax(shape.heads, shape.key_dim, causal=True, window=window)


@case("gated_delta_as_keras_hub", verify="gated_delta")
def gated_delta_as_keras_hub(shape):
    """`gated_delta` with all that `peer:keras_hub_gated_delta` has."""
    return keras_linattn.LinearSelfAttention(
        shape.heads,
        shape.key_dim,
        mechanism={
            "name": "gated_delta",
            "activation": None,
            "scale": shape.key_dim**-0.5,
            "output_norm": False,
        },
        causal=True,
        use_bias=False,
        kernel_size=4,
        output_norm=True,
        use_gate=True,
        gate_activation="silu",
    )


@case("encoder")
def encoder(shape):
    return Encoder(shape.heads, 4 * shape.dim, remat=False)


@case("encoder_remat")
def encoder_remat(shape):
    return Encoder(shape.heads, 4 * shape.dim, remat=True)


@case("linear_in_segments", verify="linear_transformer")
def linear_in_segments(shape):
    return InSegments(shape.heads, shape.key_dim)
