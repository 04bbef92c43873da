"""Causal products whose past fades, in chunks; all exponents are <= 0.

S_t = diag(a_t) S_(t-1) + k_t^T v_t,   o_t = q_t S_t,   0 < a_t <= 1.

Decays come as logarithms. Inside a chunk only their running sum b since the
chunk's start is used, and between chunks the sum over the chunk, so that no
product over the length underflows and nothing is divided by one.

`carry` everywhere is a callable `(transition, update, start, breaks)`, see
`mechanisms/_chunk_carry.py`. `starts` are those of documents, see
`core.documents.starts_of`; `None`, the default: each row is one document.
"""

from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.chunks import split_chunks
from keras_linattn.core.documents import breaks_of
from keras_linattn.core.documents import chunks_of
from keras_linattn.core.documents import earlier_pairs
from keras_linattn.core.documents import of_first
from keras_linattn.core.documents import of_last
from keras_linattn.core.numerics import cumsum
from keras_linattn.core.numerics import matmul
from keras_linattn.core.products import key_value_product


def running_decay(log_decay, chunks=None):
    """b, the sums of `[..., C, D]` since the start of a chunk, or a document.

    Here and below `chunks` are `core.documents.DocumentChunks`, or `None`.
    """
    if chunks is None:
        return cumsum(log_decay, axis=-2)
    # Sums over more than a document would round by what others hold.
    return matmul(ops.cast(chunks.earlier(), log_decay.dtype), log_decay)


def decay_between(running, chunks=None):
    """exp(b_t - b_s) for s <= t, else 0: `[..., C, 1]` to `[..., C, C]`."""
    difference = running - ops.swapaxes(running, -1, -2)
    # Selected before the exponential: elsewhere it would overflow.
    decay = ops.exp(earlier_pairs(difference, chunks))
    return earlier_pairs(decay, chunks)


def decay_to_end(running, chunks=None):
    """exp(b_C - b_s), `[..., C, D]`: what the end of a chunk has of s."""
    return ops.exp(of_last(running[..., -1:, :] - running, chunks))


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
    heads = query * ops.exp(running), key * decay_to_end(running, chunks), value
    whole = ops.exp(running[..., -1:, :])
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
    faded = query * ops.exp(running)
    grown = key * ops.exp(-running)
    scores = matmul(faded, ops.swapaxes(grown, -1, -2))
    scores = earlier_pairs(scores, chunks)
    heads = faded, key * decay_to_end(running, chunks), value
    whole = ops.exp(running[..., -1:, :])
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
