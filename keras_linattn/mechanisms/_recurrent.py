"""The base of recurrences whose state is a matrix S `[D, V]` for each head."""

import inspect
from typing import Any

import keras
from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.annotations import Tensor
from keras_linattn.core.annotations import Tree
from keras_linattn.core.causal import run_in_segments
from keras_linattn.core.chunks import fitting_size
from keras_linattn.core.decay import decay_step
from keras_linattn.core.decay import scalar_decay_product
from keras_linattn.core.devices import Pieces
from keras_linattn.core.documents import Documents
from keras_linattn.core.documents import starts_of
from keras_linattn.core.masks import hide
from keras_linattn.core.numerics import divide_by_size
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import split_at
from keras_linattn.core.poison import run_contained
from keras_linattn.core.products import key_value_product
from keras_linattn.core.shapes import heads_last
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._chunk_carry import carry_chunks
from keras_linattn.mechanisms._chunk_carry import loop_over_positions
from keras_linattn.mechanisms._traits import Traits

EPSILON = 1e-5  # added to mean squares


def normalise_rows(x):
    """Each row divided by its root mean square: RMSNorm, nothing learned."""
    return divide_by_size(x, x.shape[-1], EPSILON)


def unit_rows(x, epsilon=EPSILON):
    """Each row divided by its length; a row of 0 stays 0."""
    return divide_by_size(x, 1, epsilon)


class RecurrentMechanism(Mechanism):
    """Causal attention through a state S `[D, V]` for each head.

    By default the state fades and takes in the new key and value:

        S_t = exp(g_t) S_(t-1) + k_t^T v_t,   o_t = q_t S_t

    A subclass writes `gates`, which returns g, and `build_gates` for their
    weights (with the trait `gated`). `features` changes queries and keys
    first. For another recurrence, write it as `one_step`: longer inputs then
    run one position after the other, until you write `chunked` too, the same
    for many positions at once. The base hides masked positions: they leave
    the state as it is, since their keys, values and gates are 0.

    Call arguments: those of `Mechanism`, and
        inputs: optional tensor `(B, T, F)`, the input of the layer, from which
            `gates` are computed. Defaults to `None`: the heads of the query
            side by side, `(B, T, H D)`.

    Args:
        output_norm: bool, divide each head's output by its root mean square.
            Defaults to `True`.
        **kwargs: arguments of `Mechanism`.

    Raises:
        ValueError: if `output_norm` is not a bool; if called with
            `causal=False`.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> class Halving(mechanisms.RecurrentMechanism):
    ...     def gates(self, inputs, heads):
    ...         return (keras.ops.full((1, heads, 1, 1), -np.log(2.0)),)
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> tuple(Halving()(x, x, x, causal=True).shape)
    (1, 2, 6, 4)
    """

    traits = Traits(
        causal=True,
        bidirectional=False,
        cross=False,
        recurrent=True,
        normalised=False,
        explicit=False,
        key_order_free=False,
        packs=True,
        splits=True,
        cost="T (C + D) V",
        state="D V",
    )
    chunk_size = 64  # positions that `chunked` takes at once, at most
    # Whether A in S' = A S + U is diagonal: each row of S only decays. A class
    # with the trait `splits` that defines `one_step` or `chunked` sets it too.
    state_fades = True

    def __init__(self, output_norm: bool = True, **kwargs: Any):
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

    def build_gates(self, input_dim: int, heads: int, key_dim: int) -> None:
        """Creates the weights of the gates, with the trait `gated`.

        Args:
            input_dim: int, F, the last dimension of `inputs`.
            heads: int, H.
            key_dim: int, D.
        """

    def features(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Changes query and key `[B, H, T, D]` before anything else."""
        return query, key

    def gates(self, inputs: Tensor, heads: int) -> tuple[Tensor, ...]:
        """Computes the gates from the input of the layer.

        Args:
            inputs: tensor `[B, T, F]`, 0 where masked.
            heads: int, H.

        Returns:
            Tuple of tensors `[B or 1, H, T or 1, D or 1]`. A gate of 0 must
            leave the state as it is: a decay is returned as its logarithm.
        """
        raise self._must_define("gates")

    def one_step(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gates: tuple[Tensor, ...],
        state: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Computes one position.

        Args:
            query: tensor `[B, H, 1, D]`.
            key: tensor `[B, H, 1, D]`.
            value: tensor `[B, H, 1, V]`.
            gates: tuple of tensors `[B, H, 1, D or 1]`, from `gates`.
            state: tensor `[B, H, D, V]`, S.

        Returns:
            The output `[B, H, 1, V]`, and the next state.
        """
        (log_decay,) = gates
        return decay_step(query, key, value, log_decay, state)

    def chunked(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gates: tuple[Tensor, ...],
        state: Tensor,
        chunk_size: int,
        starts: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes T positions at once: `one_step`, T times.

        Without the argument `starts`, rows that hold several documents run
        one position after the other.

        Args:
            query: tensor `[B, H, T, D]`.
            key: tensor `[B, H, T, D]`.
            value: tensor `[B, H, T, V]`.
            gates: tuple of tensors `[B, H, T, D or 1]`, from `gates`.
            state: tensor `[B, H, D, V]`, S before the first position.
            chunk_size: int, how many positions to take at once.
            starts: bool tensor `[B, 1, T, 1]`, the positions at which a
                document starts, which must not see the state before.
                Defaults to `None`: each row is one document.

        Returns:
            The output `[B, H, T, V]`, and the state after the last position.
        """
        heads = query, key, value
        fades = type(self).one_step is RecurrentMechanism.one_step
        if fades and gates[0].shape[-1] == 1:
            return scalar_decay_product(
                *heads, *gates, state, carry_chunks, chunk_size, starts
            )
        return loop_over_positions(self.one_step, heads, gates, state, starts)

    def call(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        causal: bool = False,
        training: bool | None = None,
        inputs: Tensor | None = None,
        segment_ids: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        self.check_call(query.shape, key.shape, value.shape, causal)
        if query_mask is not key_mask:  # `advance` hides the key mask
            query = hide(query, query_mask)
        state = self.initial_state_for(query, value)
        output, _ = self.step(
            state,
            query,
            key,
            value,
            key_mask,
            inputs=inputs,
            segment_ids=segment_ids,
        )
        if segment_ids is not None:
            output = hide(output, ops.cast(segment_ids, "bool"))
        return output

    def state_spec(self, num_heads: int, key_dim: int, value_dim: int) -> Tree:
        """S, `[B, H, D, V]`."""
        return keras.KerasTensor(
            (None, num_heads, key_dim, value_dim),
            dtype=self.state_dtype,
        )

    def advance(
        self,
        state,
        query,
        key,
        value,
        *,
        key_mask,
        inputs=None,
        documents=None,
    ):
        query = hide(query, key_mask)
        gates = self._visible_gates(query, key_mask, inputs)
        query, key = self.features(query, key)
        if query.shape[2] == 1:
            output, state = self.one_step(query, key, value, gates, state)
            return self._normalised(output), state
        return self._in_chunks(query, key, value, gates, state, documents)

    def attend_pieces(
        self,
        pieces: Pieces,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Tensor | None,
        causal: bool,
        inputs: Tensor | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """A piece maps the state S before it to A S + U; its output is o + p S.

        The recurrence is linear in the state and the values. One pass from the
        state [0, I], with the values [V, 0], gives [U, A] and [o, p]. Devices
        exchange U and A. Where a document starts in the piece, A is 0, and so
        is p from there on.
        """
        query = hide(query, key_mask)
        gates = self._visible_gates(query, key_mask, inputs)
        query, key = self.features(query, key)
        columns = value.shape[-1]
        state = ops.zeros_like(
            key_value_product(key[:, :, :1], value[:, :, :1])
        )
        identity = ops.zeros_like(state[..., :1]) + ops.eye(key.shape[-1])
        value = ops.concatenate([value, ops.zeros_like(key)], axis=-1)
        identity = ops.cast(identity, state.dtype)
        before = ops.concatenate([state, identity], axis=-1)
        with backends.inputs_given_in(self.compute_dtype):
            output, effect = self._product(
                before, query, key, value, *gates, documents=documents
            )
        if self.state_fades:  # then A is diagonal
            update, factor = split_at(effect, [columns])
            factor = ops.sum(factor, axis=-1, keepdims=True)
            effect = ops.concatenate([update, factor], axis=-1)

        def merge(effect, state):
            update, factor = split_at(effect, [columns])
            if self.state_fades:
                return factor * state + update
            return matmul(factor, state) + update

        state = pieces.before(effect, merge, state)
        output, reading = split_at(output, [columns])
        output = output + matmul(reading, state)
        return self._normalised(output)

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

    def _in_chunks(self, query, key, value, gates, state, documents):
        with backends.inputs_given_in(self.compute_dtype):
            if documents is not None:
                heads = query, key, value
                return self._attend(state, *heads, *gates, documents=documents)
            tensors = query, key, value, *gates
            return run_in_segments(self._attend, state, tensors)

    def _attend(self, state, query, key, value, *gates, documents=None):
        heads = query, key, value
        output, state = self._product(
            state, *heads, *gates, documents=documents
        )
        return self._normalised(output), state

    def _product(self, state, query, key, value, *gates, documents=None):
        """Output, before its normalisation, and state."""
        size = fitting_size(self.chunk_size, query.shape[2])
        starts = starts_of(documents)

        def chunked(key, value, *gates):
            if starts is None:
                return self.chunked(query, key, value, gates, state, size)
            if "starts" in inspect.signature(self.chunked).parameters:
                return self.chunked(
                    query, key, value, gates, state, size, starts=starts
                )
            heads = query, key, value
            return loop_over_positions(
                self.one_step, heads, gates, state, starts
            )

        return run_contained(chunked, key, value, *gates, documents=documents)

    def _normalised(self, output):
        return normalise_rows(output) if self.output_norm else output
