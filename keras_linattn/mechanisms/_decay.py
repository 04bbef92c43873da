"""What mechanisms share whose state fades or is corrected: S `[D, V]`."""

import keras
from keras import ops

from keras_linattn.core.chunks import fitting_size
from keras_linattn.core.lengths import is_empty
from keras_linattn.core.masks import hide
from keras_linattn.core.numerics import accumulation_dtype
from keras_linattn.core.numerics import mean
from keras_linattn.core.poison import run_contained
from keras_linattn.core.shapes import heads_last
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._traits import Traits

EPSILON = 1e-5  # added to mean squares


def normalise_rows(x):
    """Each row divided by its root mean square: RMSNorm, nothing learned."""
    return _divided_by_size(x, mean)


def unit_rows(x):
    """Each row divided by its length; a row of 0 stays 0."""
    return _divided_by_size(x, ops.sum)


def _divided_by_size(x, reduce):
    """x / sqrt(reduce(x^2) + EPSILON), rows of 1e30 included."""
    # Of large rows the squares overflow: their largest entry is taken as 1.
    largest = ops.max(ops.abs(ops.stop_gradient(x)), axis=-1, keepdims=True)
    scale = ops.where(largest > 1, 1 / largest, ops.ones_like(largest))
    x = x * scale
    square = reduce(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(square + EPSILON * ops.square(scale))


class DecayMechanism(Mechanism):
    """Causal attention through a state S `[D, V]` for each head.

    A subclass writes `gates` where it has weights, `chunked` and `one_step`,
    and `features` where keys and queries are changed first. Hidden positions
    leave the state as it is: their gates are 0.

    Call arguments: those of `Mechanism`, and
        inputs: optional tensor `(B, T, F)`, what the layer was called with;
            gates are projected from it. Defaults to `None`: the heads of the
            query side by side, `(B, T, H D)`.
    """

    traits = Traits(
        causal=True,
        bidirectional=False,
        cross=False,
        recurrent=True,
        normalised=False,
        explicit=False,
        key_order_free=False,
        state="D V",
    )
    chunk_size = 64

    def __init__(self, output_norm=True, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(output_norm, bool):
            raise ValueError(
                "`output_norm` must be `True` or `False`. "
                f"Received: output_norm={output_norm!r}."
            )
        self.output_norm = output_norm

    def build(self, query_shape, key_shape, value_shape, inputs_shape=None):
        if self.traits.gated:
            heads, key_dim = query_shape[1], query_shape[3]
            size = heads * key_dim if inputs_shape is None else inputs_shape[-1]
            self.build_gates(size, heads, key_dim)

    def build_gates(self, input_dim, heads, key_dim):
        """Makes the weights of the gates."""

    def features(self, query, key):
        """What is done to query and key before anything else."""
        return query, key

    def gates(self, inputs, heads):
        """Tuple of tensors `[B or 1, H, T or 1, D or 1]`, 0 = no change."""
        raise NotImplementedError(
            f"`{type(self).__name__}` must define `gates`."
        )

    def chunked(self, query, key, value, gates, state, chunk_size):
        """Any number of positions: the output and the state after them."""
        raise NotImplementedError(
            f"`{type(self).__name__}` must define `chunked`."
        )

    def one_step(self, query, key, value, gates, state):
        """`chunked` for T = 1."""
        raise NotImplementedError(
            f"`{type(self).__name__}` must define `one_step`."
        )

    def call(
        self,
        query,
        key,
        value,
        key_mask=None,
        query_mask=None,
        causal=False,
        training=None,
        inputs=None,
    ):
        self.check_call(query.shape, key.shape, value.shape, causal)
        if query_mask is not key_mask:  # which `step` hides, too
            query = hide(query, query_mask)
        state = self.initial_state_for(query, value)
        return self.step(state, query, key, value, key_mask, inputs)[0]

    def state_spec(self, num_heads, key_dim, value_dim):
        """S, `[B, H, D, V]`."""
        return keras.KerasTensor(
            (None, num_heads, key_dim, value_dim),
            dtype=accumulation_dtype(self.compute_dtype),
        )

    def step(self, state, query, key, value, key_mask=None, inputs=None):
        dtype = query.dtype
        query = hide(query, key_mask)
        query, key, value = self._prepare(query, key, value, key_mask)
        if is_empty(query.shape):
            nothing = self._see_nothing(query, key, value)
            return ops.cast(nothing, dtype), state
        gates = self._visible_gates(query, key_mask, inputs)
        query, key = self.features(query, key)
        if query.shape[2] == 1:
            output, state = self.one_step(query, key, value, gates, state)
        else:
            output, state = self._in_chunks(query, key, value, gates, state)
        if self.output_norm:
            output = normalise_rows(output)
        return ops.cast(output, dtype), state

    def _visible_gates(self, query, key_mask, inputs):
        batch, heads, length, _ = ops.shape(query)
        if inputs is None:
            inputs = heads_last(query)
            inputs = ops.reshape(inputs, (batch, length, -1))
        inputs = hide(ops.cast(inputs, query.dtype), key_mask)
        # To all positions: a mask and a chunk have an entry for each.
        return tuple(
            hide(
                ops.broadcast_to(gate, (batch, heads, length, gate.shape[-1])),
                key_mask,
            )
            for gate in self.gates(inputs, query.shape[1])
        )

    def _in_chunks(self, query, key, value, gates, state):
        size = fitting_size(self.chunk_size, query.shape[2])

        def chunked(key, value, *gates):
            return self.chunked(query, key, value, gates, state, size)

        return run_contained(chunked, key, value, *gates)
