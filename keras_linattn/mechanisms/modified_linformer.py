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

in chunks of 64. No exponent is over 0, see `Blocks`: a feature of the keys may
rise by any number. The projected reading has a K~ for each
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
import itertools
import math
from typing import Any

import keras
from keras import ops

from keras_linattn.core.annotations import Tree
from keras_linattn.core.causal import run_in_segments
from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.chunks import power_of_two
from keras_linattn.core.chunks import split_chunks
from keras_linattn.core.documents import attend_documents
from keras_linattn.core.documents import breaks_of
from keras_linattn.core.documents import chunks_of
from keras_linattn.core.documents import of_first
from keras_linattn.core.documents import starts_of
from keras_linattn.core.documents import within
from keras_linattn.core.exponential_sums import FLOOR
from keras_linattn.core.exponential_sums import HIDDEN
from keras_linattn.core.exponential_sums import add_chunk
from keras_linattn.core.exponential_sums import attend_both_ways_in_pieces
from keras_linattn.core.exponential_sums import largest_of
from keras_linattn.core.exponential_sums import state_of
from keras_linattn.core.folded import Factors
from keras_linattn.core.log_products import weights_within
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.masks import expand_to_rank
from keras_linattn.core.nonfinite import run_sanitized
from keras_linattn.core.numerics import LOWEST
from keras_linattn.core.numerics import accumulation_dtype
from keras_linattn.core.numerics import masked_softmax
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import maximum
from keras_linattn.core.numerics import safe_divide
from keras_linattn.core.numerics import softmax_parts
from keras_linattn.core.products import append_ones
from keras_linattn.core.products import key_value_product
from keras_linattn.core.products import product_within
from keras_linattn.core.products import sums_within
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._chunk_carry import merge_chunks
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits

CHUNK_SIZE = 64
BLOCK = 8
READINGS = ("factorised", "projected")


def position_weights(key, key_mask=None, axis=2):
    """`[S, D]` weights and `[D]` sums, A = weights / sums, S being `axis`.

    The division is left to the `[D, V]` summaries, which saves one pass over
    the `[S, D]` array.
    """
    visible = None if key_mask is None else expand_to_rank(key_mask, 4, axis)
    return softmax_parts(key, visible, axis)


def attend_factorised(query, key, value, key_mask=None):
    """softmax_D(Q) (A^T V)."""
    weights, total = position_weights(key, key_mask)
    total = ops.expand_dims(total, -1)  # [B, H, D, 1]
    summary = safe_divide(key_value_product(weights, value), total)
    return matmul(masked_softmax(query, axis=-1), summary)


def attend_within(query, key, value, documents):
    """`attend_factorised` of documents in one sequence.

    Keys are `LOWEST` where hidden.
    """
    weights, _ = weights_within(key, documents)
    query = safe_divide(
        masked_softmax(query, axis=-1), sums_within(weights, documents)
    )
    return product_within(query, weights, value, starts_of(documents))


def attend_projected(query, key, value, key_mask=None):
    """softmax(Q (A^T K)^T / sqrt D) (A^T V)."""
    weights, total = position_weights(key, key_mask)
    total = ops.expand_dims(total, -1)
    key_summary = safe_divide(key_value_product(weights, key), total)
    value_summary = safe_divide(key_value_product(weights, value), total)
    scores = matmul(query, ops.swapaxes(key_summary, -1, -2))
    scores = scores / math.sqrt(key.shape[-1])
    return matmul(masked_softmax(scores, axis=-1), value_summary)


def attend_causally(query, key, value, visible, state, documents=None):
    """The factorised reading over the keys s <= t.

    Args:
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, T, D]`.
        value: tensor `[B, H, T, V]`.
        visible: bool tensor `[B or 1, 1, T, 1]`.
        state: tensor `[B, H, D, V + 2]`: the largest key, the sum of
            exp(key - largest) times the value, and the sum of exp.
        documents: `Documents`, or `None`, its default: each row is one.

    Returns:
        The output `[B, H, T, V]`, and the state after the last position.
    """
    tensors = query, key, value, visible
    if documents is not None:
        tensors = (*tensors, starts_of(documents))
    return run_in_segments(attend_in_chunks, state, tensors)


def attend_in_chunks(state, query, key, value, visible, starts=None):
    """`attend_causally` for all positions together."""
    length = ops.shape(query)[2]
    size = chunk_size_of(length)
    chunks = chunks_of(starts, size)
    weights = split_chunks(masked_softmax(query, axis=-1), size)
    key, value = split_chunks(key, size), split_chunks(append_ones(value), size)
    key = ops.where(split_chunks(visible, size), key, HIDDEN)
    lasting = key if chunks is None else ops.where(chunks.last, key, HIDDEN)
    chunk = state_of(lasting, value)
    before, state = merge_chunks(add_chunk, chunk, state, breaks_of(chunks))
    past = ops.stop_gradient(ops.swapaxes(largest_of(before), -1, -2))
    blocks = Blocks(key, past, chunks)
    total = blocks.totals(before[..., -1:])
    # At least 1 where a key is visible, else 0.
    weights = in_blocks(weights) / maximum(total, 0.5)
    scores = within(blocks.scores(weights), chunks)
    output = matmul(scores, value[..., :-1])
    faded = weights * blocks.since_start
    faded = faded * blocks.exp(ops.expand_dims(past, -2) - blocks.start)
    faded = ops.reshape(faded, ops.shape(key))
    earlier = matmul(faded, before[..., 1:-1])
    return join_chunks(output + of_first(earlier, chunks), length), state


def chunk_size_of(length):
    """`CHUNK_SIZE`, or the power of 2 that holds a known, shorter length."""
    if not isinstance(length, int):
        return CHUNK_SIZE
    return min(CHUNK_SIZE, power_of_two(max(1, length)))


class Blocks:
    """The keys of chunks, in blocks `[..., N, C, D]` of a few positions.

    Every exponential is of a number <= 0. Between a key s and a later position
    t there is a position whose M, the largest key up to it, splits the
    exponent: k_s <= M <= M_t. So no factor overflows, and none is 0 whose
    product with the other is not.

    With documents M begins anew where one starts, and falls between a key and
    a query of two documents. Exponents are held at 0 there: such a score means
    nothing.

    Args:
        key: tensor `[..., C, D]`, a chunk.
        past: tensor `[..., 1, D]`, the largest key before it.
        chunks: `DocumentChunks`, or `None`.
    """

    def __init__(self, key, past, chunks=None):
        self.key = in_blocks(key)
        self.joints = Joints(chunks)
        rows = rows_of(ops.stop_gradient(self.key))
        inside = running(maximum, rows, self.joints.rows, FLOOR)
        ends = [past[..., 0, :], *rows_of(inside[-1])]
        ends = running(maximum, ends, self.joints.blocks, FLOOR)
        self.start = stack_rows(ends[:-1])[..., None, :]
        # M_t, and what it is at the end of each block.
        earlier = held(self.start, self.joints.unbroken, FLOOR)
        self.largest = maximum(stack_rows(inside), earlier)
        self.end = stack_rows(ends[1:])[..., None, :]
        since_start = self.exp(self.start - self.largest)
        self.since_start = held(since_start, self.joints.unbroken)
        self.own = ops.exp(self.key - self.largest)

    def exp(self, x):
        """exp, of 0 for what only two documents can have."""
        return ops.exp(x if self.joints.unbroken is None else held(x, x <= 0))

    def totals(self, before):
        """sum over s <= t of exp(k_s - M_t), `before` `[..., D, 1]` included.

        That one is relative to the past.
        """
        largest, own = rows_of(self.largest), rows_of(self.own)
        inside = list(own[:1])
        for i, joint in zip(range(1, len(own)), self.joints.rows):
            fade = self.exp(largest[i - 1] - largest[i])
            inside.append(fade * held(inside[-1], joint) + own[i])
        starts = [before[..., 0]]
        fades = rows_of(self.exp(self.start - self.end)[..., 0, :])
        blocks = zip(fades, rows_of(inside[-1]), self.joints.blocks)
        for fade, block, joint in blocks:
            starts.append(fade * held(starts[-1], joint) + block)
        starts = self.since_start * stack_rows(starts[:-1])[..., None, :]
        return stack_rows(inside) + held(starts, self.joints.unbroken)

    def scores(self, weights):
        """sum_j weights_tj exp(k_sj - M_tj) for s <= t, else 0.

        Args:
            weights: tensor `[..., N, C, D]`.

        Returns:
            Tensor `[..., N C, N C]`.
        """
        *rest, size, dim = ops.shape(self.key)
        scores = ops.sum(weights * self.own, axis=-1)[..., None, None]
        arrays = self.key, self.largest, weights
        half = 1
        while half < size:
            pairs = (*rest, size // (2 * half), 2, half, dim)
            halves = [halves_of(ops.reshape(x, pairs)) for x in arrays]
            (key, _), (early, late), (_, weight) = halves
            middle = early[..., -1:, :]
            scores = join_scores(
                scores,
                self.exp(key - middle),
                weight * self.exp(middle - late),
            )
            half *= 2
        *rest, count, _, _ = ops.shape(self.key)
        first = self.exp(self.key - self.end)
        second = arrays[2] * self.since_start
        scores = ops.reshape(scores, (*rest, count, size, size))
        half = 1
        while half < count:
            pairs = (*rest, count // (2 * half), 2, half)
            (key, _), (_, weight), (early, _), (_, late) = (
                halves_of(ops.reshape(x, (*pairs, x.shape[-2], dim)), -4)
                for x in (first, second, self.end, self.start)
            )
            middle = early[..., -1:, :, :]
            pairs = (*pairs[:-2], half * size, dim)
            scores = join_scores(
                scores,
                ops.reshape(key * self.exp(early - middle), pairs),
                ops.reshape(weight * self.exp(middle - late), pairs),
            )
            half *= 2
        return ops.reshape(scores, (*rest, count * size, count * size))


def join_scores(scores, key, query):
    """Scores of pairs of runs, from those of each run.

    Args:
        scores: tensor `[..., 2 P, C, C]`.
        key: tensor `[..., P, C, D]`, of the first runs.
        query: tensor `[..., P, C, D]`, of the second runs.

    Returns:
        Tensor `[..., P, 2 C, 2 C]`.
    """
    cross = matmul(query, ops.swapaxes(key, -1, -2))
    early, late = halves_of(
        ops.reshape(scores, (*ops.shape(cross)[:-2], 2, *cross.shape[-2:]))
    )
    upper = ops.concatenate([early, ops.zeros_like(cross)], axis=-1)
    lower = ops.concatenate([cross, late], axis=-1)
    return ops.concatenate([upper, lower], axis=-2)


def halves_of(x, axis=-3):
    # Not two slices: their gradients are two whole arrays to be added.
    return ops.unstack(x, 2, axis=axis)


def rows_of(x):
    return ops.unstack(x, x.shape[-2], axis=-2)


def stack_rows(rows):
    return ops.stack(rows, axis=-2)


def running(function, parts, joints, nothing):
    """The first part, the first two, ... put together by `function`.

    Where a joint is `False`, `nothing` takes the place of the parts before.
    """
    result = list(parts[:1])
    for part, joint in zip(parts[1:], joints):
        result.append(function(held(result[-1], joint, nothing), part))
    return result


def held(x, condition, other=0.0):
    """`x` where the condition holds, else `other`; `x` without a condition."""
    if condition is None:
        return x
    return ops.where(condition, x, ops.cast(other, x.dtype))


class Joints:
    """Whether documents go on from block to block and from row to row.

    Args:
        chunks: `DocumentChunks`, or `None`: they do everywhere. Attributes are
            then `None` too.

    Attributes:
        rows: for each row of a block after the first, bool `[..., N, 1]`:
            whether the document of the row before goes on.
        blocks: for each block, bool `[..., 1]`: whether the document before it
            goes on to its end.
        unbroken: bool `[..., N, C, 1]`, whether the document before a block
            goes on to a position in it.
    """

    def __init__(self, chunks):
        self.rows = self.blocks = itertools.repeat(None)
        self.unbroken = None
        if chunks is None:
            return
        number = in_blocks(chunks.number)
        rows, at_end = rows_of(number), number[..., -1, :]
        zero = ops.zeros_like(at_end[..., :1, :])
        before = ops.concatenate([zero, at_end[..., :-1, :]], axis=-2)
        self.rows = [ops.equal(*pair) for pair in itertools.pairwise(rows)]
        self.blocks = rows_of(ops.equal(before, at_end))
        self.unbroken = ops.equal(number, before[..., None, :])


def in_blocks(x):
    """`[..., C, D]` to `[..., C / 8, 8, D]`."""
    *rest, size, dim = ops.shape(x)
    block = min(size, BLOCK)
    return ops.reshape(x, (*rest, size // block, block, dim))


@register("modified_linformer")
class ModifiedLinformer(Mechanism):
    """Linear attention whose projection comes from the keys themselves.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        reading: `"factorised"` or `"projected"`, see the module's docstring:
            our two readings of the paper. Defaults to `"factorised"`.
        **kwargs: arguments of `Mechanism`.

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
        packs=True,
        splits=True,
        cost="(T + S) D V",
        state="D V",
        source="Verma 2020, arXiv 2101.10277",
    )
    head_axes = {}

    def __init__(self, reading: str = "factorised", **kwargs: Any):
        super().__init__(**kwargs)
        if reading not in READINGS:
            raise ValueError(
                f"`reading` must be one of {READINGS}. "
                f"Received: reading={reading!r}."
            )
        self.reading = reading
        if reading == "projected":
            self.traits = dataclasses.replace(
                self.traits,
                causal=False,
                recurrent=False,
                separable=False,
                packs=False,
                splits=False,
            )

    def attend(
        self,
        query,
        key,
        value,
        *,
        key_mask,
        query_mask,
        causal,
        training,
        documents=None,
    ):
        if self.reading == "projected":
            return attend_projected(query, key, value, key_mask)
        if causal:
            state = self.initial_state_for(query, value)
            options = {"key_mask": key_mask, "documents": documents}
            return self.advance(state, query, key, value, **options)[0]
        if documents is None:
            return attend_factorised(query, key, value, key_mask)
        forms = attend_within, attend_factorised
        heads = query, apply_mask(key, key_mask, value=LOWEST), value
        return attend_documents(*forms, *heads, documents, LOWEST)

    def attend_pieces(
        self,
        pieces,
        query,
        key,
        value,
        *,
        key_mask,
        causal,
        documents=None,
    ):
        if documents is not None and not causal:
            heads = query, key, value
            return attend_both_ways_in_pieces(
                attend_within, *heads, key_mask, pieces
            )
        shown = apply_mask(key, key_mask, value=HIDDEN)
        if documents is not None:
            shown = ops.where(pieces.in_last, shown, HIDDEN)
        own = state_of(shown, append_ones(value))
        if causal:
            state = self.initial_state_for(query, value)
            apart = isinstance(state, tuple)
            state = ops.concatenate(state, axis=-1) if apart else state
            state = pieces.before(own, add_chunk, state)
            state = (state[..., :1], state[..., 1:]) if apart else state
            options = {"key_mask": key_mask, "documents": documents}
            return self.advance(state, query, key, value, **options)[0]
        largest = pieces.max(own[..., :1])
        sums = pieces.sum(ops.exp(own[..., :1] - largest) * own[..., 1:])
        summary = safe_divide(sums[..., :-1], sums[..., -1:])
        return matmul(masked_softmax(query, axis=-1), summary)

    def factors(self, query, key, key_mask=None):
        weights, total = position_weights(key, key_mask, axis=1)
        scale = safe_divide(ops.ones_like(total), total)
        query = masked_softmax(query, axis=-1)
        return Factors(query, weights, scale, scale * total)

    def state_spec(self, num_heads: int, key_dim: int, value_dim: int) -> Tree:
        """Returns the spec of the state, `[B, H, D, V + 2]`.

        The columns are the largest key, the sums of values and the sum of
        weights. With a `state_dtype` of half precision the state is a pair,
        `[B, H, D, 1]` and `[B, H, D, V + 1]`: the largest key is an exponent
        and stays in full precision.
        """
        self.check_recurrent()
        rows = (None, num_heads, key_dim)
        exact = accumulation_dtype(self.compute_dtype)
        if self.state_dtype == exact:
            return keras.KerasTensor((*rows, value_dim + 2), dtype=exact)
        return (
            keras.KerasTensor((*rows, 1), dtype=exact),
            keras.KerasTensor((*rows, value_dim + 1), dtype=self.state_dtype),
        )

    def advance(self, state, query, key, value, *, key_mask, documents=None):
        visible = ops.ones_like(key[:1, :1, :, :1], dtype="bool")
        if key_mask is not None:
            visible = expand_to_rank(ops.cast(key_mask, "bool"), 4, 2)
        apart = isinstance(state, tuple)
        before = ops.concatenate(state, axis=-1) if apart else state

        def attend(key, value):
            return attend_causally(
                query, key, value, visible, before, documents
            )

        output, state = run_sanitized(attend, key, value, documents=documents)
        if apart:
            state = state[..., :1], state[..., 1:]
        return output, state
