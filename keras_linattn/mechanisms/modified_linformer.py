"""Modified Linformer: linear attention with no projection dimension to tune.

Linformer's head is softmax(Q (E K)^T / sqrt D) (F V) with learned E, F of
shape [k, S]. Here the keys themselves say how positions are summarised:

    A  = softmax_S(K)      [S, D]   where along the sequence feature j lives
    K~ = A^T K  [D, D]     V~ = A^T V  [D, V]
    reading="projected":   out = softmax(Q K~^T / sqrt D) V~
    reading="factorised":  out = softmax_D(Q) V~

Causally the factorised reading takes A over the keys up to each position,

    out_t = sum_j softmax_D(q_t)_j (sum_(s <= t) e^(k_sj) v_s) / Z_tj,
    Z_tj = sum_(s <= t) e^(k_sj),

in chunks of 64. Exponents are relative to the largest key before the chunk or
its first one, so a feature may rise by 80 above all before it within a chunk
(beyond that the result is NaN). The projected reading has a K~ for each
position and no linear causal form.

Cost: O((T + S) D V) factorised, O((T + S) D (D + V)) projected; the summary
is D V (and D D); no parameter, nothing depends on a k or fixes a length.
Source: Verma, "Revisiting Linformer with a modified self-attention with
linear complexity", 2020, arXiv 2101.10277. The factorised reading is the
efficient attention of Shen et al., 2021, arXiv 1812.01243, section 3.
Differs from the paper: we hold its abstract, which states the properties
(linear time and space, independent of the projection dimension, for text,
images and audio), and no formula. Both readings are this project's.
"""

import dataclasses
import math

import keras
from keras import ops

from keras_linattn.core.chunks import fitting_size
from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.chunks import split_chunks
from keras_linattn.core.folded import Factors
from keras_linattn.core.masks import spread
from keras_linattn.core.numerics import accumulation_dtype
from keras_linattn.core.numerics import masked_softmax
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import maximum
from keras_linattn.core.numerics import safe_divide
from keras_linattn.core.numerics import softmax_parts
from keras_linattn.core.poison import run_contained
from keras_linattn.core.products import append_ones
from keras_linattn.core.products import key_value_product
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._chunk_carry import loop_over_chunks
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits

CHUNK_SIZE = 64
LOWEST = -1e30  # the largest of no keys; finite, since inf - inf is NaN
READINGS = ("factorised", "projected")


def position_weights(key, key_mask=None, axis=2):
    """`[S, D]` weights and `[D]` sums, A = weights / sums, S being `axis`.

    The division is left to the `[D, V]` summaries, which saves one pass over
    the `[S, D]` array.
    """
    visible = None if key_mask is None else spread(key_mask, 4, axis)
    return softmax_parts(key, visible, axis)


def attend_factorised(query, key, value, key_mask=None):
    """softmax_D(Q) (A^T V)."""
    weights, total = position_weights(key, key_mask)
    total = ops.expand_dims(total, -1)  # [B, H, D, 1]
    summary = safe_divide(key_value_product(weights, value), total)
    return matmul(masked_softmax(query, axis=-1), summary)


def attend_projected(query, key, value, key_mask=None):
    """softmax(Q (A^T K)^T / sqrt D) (A^T V)."""
    weights, total = position_weights(key, key_mask)
    total = ops.expand_dims(total, -1)
    key_summary = safe_divide(key_value_product(weights, key), total)
    value_summary = safe_divide(key_value_product(weights, value), total)
    scores = matmul(query, ops.swapaxes(key_summary, -1, -2))
    scores = scores / math.sqrt(key.shape[-1])
    return matmul(masked_softmax(scores, axis=-1), value_summary)


def largest_of(state):
    """The largest key in a state `[..., D, V + 2]`, `[..., D, 1]`."""
    return ops.where(state[..., -1:] > 0, state[..., :1], LOWEST)


def add_chunk(chunk, state):
    """The state with a chunk's own state, both `[..., D, V + 2]`."""
    ours, theirs = largest_of(state), largest_of(chunk)
    largest = maximum(ours, theirs)
    sums = ops.exp(ours - largest) * state[..., 1:]
    sums = sums + ops.exp(theirs - largest) * chunk[..., 1:]
    return ops.concatenate([largest, sums], axis=-1)


def attend_causally(query, key, value, visible, state):
    """The factorised reading over the keys s <= t.

    Args:
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, T, D]`.
        value: tensor `[B, H, T, V]`.
        visible: bool tensor `[B or 1, 1, T, 1]`.
        state: tensor `[B, H, D, V + 2]`: the largest key, the sum of
            exp(key - largest) times the value, and the sum of exp alone.

    Returns:
        The output `[B, H, T, V]`, and the state after the last position.
    """
    length = ops.shape(query)[2]
    size = fitting_size(CHUNK_SIZE, length)
    weights = split_chunks(masked_softmax(query, axis=-1), size)
    key, value = split_chunks(key, size), split_chunks(append_ones(value), size)
    visible = split_chunks(ops.cast(visible, "int32"), size)
    first = ops.logical_and(visible > 0, ops.cumsum(visible, axis=-2) == 1)
    first = ops.sum(ops.where(first, key, 0), axis=-2, keepdims=True)
    visible = visible > 0
    largest = ops.max(ops.where(visible, key, LOWEST), axis=-2, keepdims=True)
    own = ops.where(visible, ops.exp(key - ops.stop_gradient(largest)), 0)
    chunk = ops.concatenate(
        [
            ops.stop_gradient(ops.swapaxes(largest, -1, -2)),
            key_value_product(own, value),
        ],
        axis=-1,
    )
    before, state = loop_over_chunks(add_chunk, chunk, state)
    # What the exponents in a chunk are relative to: nothing of its future.
    past = ops.swapaxes(largest_of(before), -1, -2)  # [B, H, N, 1, D]
    sees_any = ops.any(visible, axis=-2, keepdims=True)
    start = ops.where(sees_any, ops.maximum(past, first), past)
    start, past = ops.stop_gradient(start), ops.stop_gradient(past)
    key = ops.where(visible, ops.exp(key - start), 0)
    fade = ops.exp(past - start)
    total = fade * ops.swapaxes(before[..., -1:], -1, -2)
    total = total + ops.cumsum(key, axis=-2)  # [B, H, N, C, D], Z
    weights = safe_divide(weights, total)
    scores = ops.tril(ops.matmul(weights, ops.swapaxes(key, -1, -2)))
    output = ops.matmul(scores, value[..., :-1])
    output = output + ops.matmul(weights * fade, before[..., 1:-1])
    return join_chunks(output, length), state


@register("modified_linformer")
class ModifiedLinformer(Mechanism):
    """Linear attention whose projection comes from the keys themselves.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        reading: `"factorised"` or `"projected"`, see the module's docstring:
            our two readings of the paper. Defaults to `"factorised"`.
        **kwargs: arguments of `keras.layers.Layer`.

    Raises:
        ValueError: if `reading` is neither.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> mechanism = mechanisms.ModifiedLinformer(reading="projected")
    >>> tuple(mechanism(x, x, x).shape)
    (1, 2, 6, 4)

    Source: Verma, 2020, arXiv 2101.10277; Shen et al., 2021, arXiv 1812.01243.
    """

    traits = Traits(
        causal=True,
        recurrent=True,
        separable=True,
        cost="(T + S) D V",
        state="D V",
        source="Verma 2020, arXiv 2101.10277",
    )

    def __init__(self, reading="factorised", **kwargs):
        super().__init__(**kwargs)
        if reading not in READINGS:
            raise ValueError(
                f"`reading` must be one of {READINGS}. "
                f"Received: reading={reading!r}."
            )
        self.reading = reading
        if reading == "projected":
            self.traits = dataclasses.replace(
                self.traits, causal=False, recurrent=False, separable=False
            )

    def attend(self, query, key, value, key_mask, query_mask, causal, training):
        if self.reading == "projected":
            return attend_projected(query, key, value, key_mask)
        if causal:
            state = self.initial_state_for(query, value)
            return self._causally(state, query, key, value, key_mask)[0]
        return attend_factorised(query, key, value, key_mask)

    def factors(self, query, key, key_mask=None):
        weights, total = position_weights(key, key_mask, axis=1)
        scale = safe_divide(ops.ones_like(total), total)
        query = masked_softmax(query, axis=-1)
        return Factors(query, weights, scale, scale * total)

    def state_spec(self, num_heads, key_dim, value_dim):
        """`[B, H, D, V + 2]`: largest key, sums of values, sum of weights."""
        if not self.traits.recurrent:
            self.refuse_state()
        return keras.KerasTensor(
            (None, num_heads, key_dim, value_dim + 2),
            dtype=accumulation_dtype(self.compute_dtype),
        )

    def step(self, state, query, key, value, key_mask=None):
        if not self.traits.recurrent:
            self.refuse_state()
        dtype = query.dtype
        heads = self._prepare(query, key, value, key_mask)
        output, state = self._causally(state, *heads, key_mask)
        return ops.cast(output, dtype), state

    def _causally(self, state, query, key, value, key_mask):
        visible = ops.ones_like(key[:1, :1, :, :1], dtype="bool")
        if key_mask is not None:
            visible = spread(ops.cast(key_mask, "bool"), 4, 2)

        def attend(key, value):
            return attend_causally(query, key, value, visible, state)

        return run_contained(attend, key, value)
