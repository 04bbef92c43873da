"""Causal products whose past fades, in chunks; all exponents are <= 0.

S_t = diag(a_t) S_(t-1) + k_t^T v_t,   o_t = q_t S_t,   0 < a_t <= 1.

Decays come as logarithms. Inside a chunk only their running sum b since the
chunk's start is used, and between chunks the sum over the chunk, so that no
product over the length underflows and nothing is divided by one. Decays of any
strength leave the digits of weak ones beside them, see `RunningDecay`.

`carry` everywhere is a callable `(transition, update, start, breaks)`, see
`mechanisms/_chunk_carry.py`. `starts` are those of documents, see
`core.documents.starts_of`; `None`, the default: each row is one document.
"""

import math
import typing

from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.chunks import split_chunks
from keras_linattn.core.documents import breaks_of
from keras_linattn.core.documents import chunks_of
from keras_linattn.core.documents import earlier_pairs
from keras_linattn.core.documents import not_later
from keras_linattn.core.documents import of_first
from keras_linattn.core.documents import of_last
from keras_linattn.core.numerics import cumsum
from keras_linattn.core.numerics import matmul
from keras_linattn.core.products import key_value_product

VANISHED = -104.0  # exp of it is 0 in float32; stronger decays add no more
DIGITS = 24  # bits, of a float32


class RunningDecay(typing.NamedTuple):
    """Sums b of log decays, as `coarse + fine`.

    b_t - b_s as a difference of two rounded sums has lost the digits of the
    weak decays between s and t, if strong ones come before. `coarse` is a sum
    of multiples of a power of 2, which rounds nothing, and `fine` is small.

    Args:
        coarse: tensor `[..., C, D]`, a constant for gradients.
        fine: tensor `[..., C, D]`.
    """

    coarse: typing.Any
    fine: typing.Any

    def total(self):
        """b."""
        return self.coarse + self.fine

    def last(self):
        """b_C of the chunk, `[..., 1, D]`."""
        return RunningDecay(*(x[..., -1:, :] for x in self))

    def transposed(self):
        return RunningDecay(*(ops.swapaxes(x, -1, -2) for x in self))

    def since(self, earlier):
        """b_t - b_s, with the digits of the difference."""
        return self.coarse - earlier.coarse + (self.fine - earlier.fine)


def running_decay(log_decay, chunks=None):
    """b, the sums of `[..., C, D]` since the start of a chunk.

    Here and below `chunks` are `core.documents.DocumentChunks`, or `None`. With
    them b serves for differences within a document only.

    Returns:
        `RunningDecay`.
    """
    # NaN must stay NaN, which `maximum` does not promise.
    vanished = ops.cast(VANISHED, log_decay.dtype)
    log_decay = ops.where(log_decay < VANISHED, vanished, log_decay)
    largest = math.ceil(math.log2(-VANISHED * log_decay.shape[-2]))
    unit = 2.0 ** (largest - DIGITS)
    coarse = ops.stop_gradient(ops.round(log_decay / unit) * unit)
    parts = coarse, log_decay - coarse
    if chunks is None:
        return RunningDecay(*(cumsum(x, axis=-2) for x in parts))
    # Each document's from its own start: other documents would round them.
    earlier = ops.cast(chunks.earlier(), log_decay.dtype)
    return RunningDecay(*(matmul(earlier, x) for x in parts))


def decay_between(running, chunks=None):
    """exp(b_t - b_s) for s <= t, else 0: `[..., C, 1]` to `[..., C, C]`."""
    difference = running.since(running.transposed())
    size = difference.shape[-1]
    pairs = not_later(size) if chunks is None else chunks.earlier()
    pairs = ops.cast(pairs, difference.dtype)
    # The differences are finite: products select, in a fifth of the time. The
    # exponential of what is not selected would overflow.
    return ops.exp(difference * pairs) * pairs


def decay_to_end(running, chunks=None):
    """exp(b_C - b_s), `[..., C, D]`: what the end of a chunk has of s."""
    return ops.exp(of_last(running.last().since(running), chunks))


@backends.with_fast_forms
def scalar_decay_product(
    query, key, value, log_decay, state, carry, chunk_size, starts=None
):
    """The product with one decay for each head and position.

    Args:
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, T, D]`, 0 where masked.
        value: tensor `[B, H, T, V]`.
        log_decay: tensor `[B, H, T, 1]`, log a_t <= 0, 0 where masked.
        state: tensor `[B, H, D, V]`, S before the first position.
        carry: callable, see above.
        chunk_size: int > 0, C.
        starts: bool tensor `[B, 1, T, 1]` or `None`, see above.

    Returns:
        The output `[B, H, T, V]`, and S after the last position.
    """
    length = ops.shape(query)[2]
    query, key, value, log_decay = (
        split_chunks(x, chunk_size) for x in (query, key, value, log_decay)
    )
    chunks = chunks_of(starts, chunk_size)
    running = running_decay(log_decay, chunks)
    # Elsewhere a score may be infinite, and inf * 0 is NaN.
    scores = matmul(query, ops.swapaxes(key, -1, -2))
    scores = earlier_pairs(scores, chunks)
    scores = scores * decay_between(running, chunks)
    faded = query * ops.exp(running.total())
    heads = faded, key * decay_to_end(running, chunks), value
    whole = ops.exp(running.last().total())
    output, state = fade_in_chunks(heads, scores, whole, state, carry, chunks)
    return join_chunks(output, length), state


@backends.with_fast_forms
def vector_decay_product(
    query, key, value, log_decay, state, carry, chunk_size, starts=None
):
    """The product with a decay for each feature: `log_decay` `[B, H, T, D]`.

    The score of t and s is sum_d q_td k_sd exp(b_td - b_sd), a matrix product
    only if exp(-b_s) is formed alone: `chunk_size` times the smallest
    `log_decay` must not be under -64, which exp(64) ~ 6e27 survives.

    Args and result: those of `scalar_decay_product`.
    """
    length = ops.shape(query)[2]
    query, key, value, log_decay = (
        split_chunks(x, chunk_size) for x in (query, key, value, log_decay)
    )
    chunks = chunks_of(starts, chunk_size)
    running = running_decay(log_decay, chunks)
    total = running.total()
    faded = query * ops.exp(total)
    grown = key * ops.exp(-total)
    scores = matmul(faded, ops.swapaxes(grown, -1, -2))
    scores = earlier_pairs(scores, chunks)
    heads = faded, key * decay_to_end(running, chunks), value
    whole = ops.exp(running.last().total())
    output, state = fade_in_chunks(heads, scores, whole, state, carry, chunks)
    return join_chunks(output, length), state


def fade_in_chunks(heads, scores, whole, state, carry, chunks):
    """The product, from the faded scores of each chunk.

    Args:
        heads: tensors `[B, H, N, C, .]`: query times the decay since its chunk
            began, key times the decay to its chunk's end, value.
        scores: tensor `[B, H, N, C, C]`, 0 for s > t and other documents.
        whole: tensor `[B, H, N, 1, D or 1]`, decay of each chunk.
        state: tensor `[B, H, D, V]`.
        carry: callable, see above.
        chunks: `DocumentChunks`, or `None`.

    Returns:
        The output `[B, H, N, C, V]`, and the state after the last chunk.
    """
    query, key, value = heads
    update = key_value_product(of_last(key, chunks), value)
    decay = ops.swapaxes(whole, -1, -2)
    before, state = carry(decay, update, state, breaks_of(chunks))
    earlier = of_first(matmul(query, before), chunks)
    return matmul(scores, value) + earlier, state


def decay_step(query, key, value, log_decay, state):
    """One position: T = 1, no chunks. Args and result as above."""
    decay = ops.swapaxes(ops.exp(log_decay), -1, -2)  # [B, H, D or 1, 1]
    state = decay * state + key_value_product(key, value)
    return matmul(query, state), state
