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
BLOCK = 8
FLOOR = -1e38  # the largest of no keys; finite, since inf - inf is NaN
HIDDEN = -3e38  # in place of a hidden key: exp(HIDDEN - FLOOR) is 0
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
    return ops.matmul(masked_softmax(query, axis=-1), summary)


def attend_projected(query, key, value, key_mask=None):
    """softmax(Q (A^T K)^T / sqrt D) (A^T V)."""
    weights, total = position_weights(key, key_mask)
    total = ops.expand_dims(total, -1)
    key_summary = safe_divide(key_value_product(weights, key), total)
    value_summary = safe_divide(key_value_product(weights, value), total)
    scores = ops.matmul(query, ops.swapaxes(key_summary, -1, -2))
    scores = scores / math.sqrt(key.shape[-1])
    return ops.matmul(masked_softmax(scores, axis=-1), value_summary)


def largest_of(state):
    """The largest key in a state `[..., D, V + 2]`, `[..., D, 1]`."""
    return ops.where(state[..., -1:] > 0, state[..., :1], FLOOR)


def add_chunk(chunk, state):
    """The state with a chunk's own state, both `[..., D, V + 2]`."""
    ours, theirs = largest_of(state), chunk[..., :1]
    largest = ops.maximum(ours, theirs)
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
    size = chunk_size_of(length)
    weights = split_chunks(masked_softmax(query, axis=-1), size)
    key, value = split_chunks(key, size), split_chunks(append_ones(value), size)
    key = ops.where(split_chunks(visible, size), key, HIDDEN)
    own = ops.stop_gradient(ops.max(key, axis=-2, keepdims=True))
    own = ops.maximum(own, FLOOR)
    sums = key_value_product(ops.exp(key - own), value)
    chunk = ops.concatenate([ops.swapaxes(own, -1, -2), sums], axis=-1)
    before, state = loop_over_chunks(add_chunk, chunk, state)
    past = ops.stop_gradient(ops.swapaxes(largest_of(before), -1, -2))
    largest = running_maximum(ops.stop_gradient(key), past)
    fade = ops.exp(past - largest)
    total = fade * ops.swapaxes(before[..., -1:], -1, -2)
    total = total + running_total(key, largest, past)
    # At least 1 where a key is visible, else 0.
    weights = weights / ops.maximum(total, 0.5)
    scores = scores_in_chunk(weights, key, largest)
    output = ops.matmul(scores, value[..., :-1])
    output = output + ops.matmul(weights * fade, before[..., 1:-1])
    return join_chunks(output, length), state


def chunk_size_of(length):
    """`CHUNK_SIZE`, or the power of 2 that holds a known, shorter length."""
    if not isinstance(length, int):
        return CHUNK_SIZE
    return min(CHUNK_SIZE, 1 << max(0, length - 1).bit_length())


def running_maximum(key, past):
    """M_t, the largest of a past `[..., 1, D]` and of the keys s <= t."""
    blocks = in_blocks(key)
    inside = [blocks[..., 0, :]]
    for i in range(1, blocks.shape[-2]):
        inside.append(ops.maximum(inside[-1], blocks[..., i, :]))
    before = [past[..., 0, :]]
    for i in range(blocks.shape[-3] - 1):
        before.append(ops.maximum(before[-1], inside[-1][..., i, :]))
    before = ops.expand_dims(ops.stack(before, axis=-2), -2)
    largest = ops.maximum(ops.stack(inside, axis=-2), before)
    return ops.reshape(largest, ops.shape(key))


def running_total(key, largest, past):
    """sum over s <= t of exp(k_s - M_t)."""
    own, largest = in_blocks(ops.exp(key - largest)), in_blocks(largest)
    inside = [own[..., 0, :]]
    for i in range(1, own.shape[-2]):
        fade = ops.exp(largest[..., i - 1, :] - largest[..., i, :])
        inside.append(fade * inside[-1] + own[..., i, :])
    ends = largest[..., -1, :]  # [..., blocks, D]
    before = [ops.zeros_like(past[..., 0, :])]
    starts = [past[..., 0, :]]
    for i in range(own.shape[-3] - 1):
        starts.append(ends[..., i, :])
        fade = ops.exp(starts[-2] - starts[-1])
        before.append(fade * before[-1] + inside[-1][..., i, :])
    before, starts = (
        ops.expand_dims(ops.stack(x, axis=-2), -2) for x in (before, starts)
    )
    total = ops.stack(inside, axis=-2)
    total = total + ops.exp(starts - largest) * before
    return ops.reshape(total, ops.shape(key))


def in_blocks(x):
    """`[..., C, D]` to `[..., C / 8, 8, D]`."""
    *rest, size, dim = ops.shape(x)
    block = min(size, BLOCK)
    return ops.reshape(x, (*rest, size // block, block, dim))


def scores_in_chunk(weights, key, largest):
    """sum_j weights_tj exp(k_sj - M_tj) for s <= t, else 0: `[..., C, C]`.

    The exponent is split at the largest key r of the first half of a pair of
    runs, s in the first and t in the second: k_s <= r <= M_t. So no factor is
    over 1, and none is lost whose product is not.
    """
    *rest, size, dim = ops.shape(key)
    scores = ops.sum(weights * ops.exp(key - largest), axis=-1)[..., None, None]
    half = 1
    while half < size:
        pairs = (*rest, size // (2 * half), 2, half, dim)
        key, weights, largest = (
            ops.reshape(x, pairs) for x in (key, weights, largest)
        )
        middle = largest[..., 0, -1:, :]
        first = ops.exp(key[..., 0, :, :] - middle)
        second = ops.exp(middle - largest[..., 1, :, :])
        second = weights[..., 1, :, :] * second
        cross = ops.matmul(second, ops.swapaxes(first, -1, -2))
        scores = ops.reshape(scores, (*pairs[:-1], half))
        upper = ops.pad(
            scores[..., 0, :, :], [(0, 0)] * (len(pairs) - 2) + [(0, half)]
        )
        lower = ops.concatenate([cross, scores[..., 1, :, :]], axis=-1)
        scores = ops.concatenate([upper, lower], axis=-2)
        half *= 2
    return ops.reshape(scores, (*rest, size, size))


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
