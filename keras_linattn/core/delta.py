"""The delta rule in chunks: what a key holds is replaced, not added to.

S'_t = a_t S_(t-1),   S_t = S'_t - beta_t k_t^T (k_t S'_t - v_t),
o_t = q_t S_t,   0 < a_t <= 1,   0 <= beta_t <= 1.

In a chunk that starts from S_0, with b the running sum of log a,

    S_t = exp(b_t) S_0 + sum_(s <= t) exp(b_t - b_s) k_s^T u_s,
    u_t = beta_t (v_t - exp(b_t) k_t S_0
                      - sum_(s < t) exp(b_t - b_s) (k_t . k_s) u_s),

so that U solves a triangular system whose right side is linear in S_0.
"""

import typing

from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.chunks import keep
from keras_linattn.core.chunks import num_chunks
from keras_linattn.core.chunks import power_of_two
from keras_linattn.core.chunks import split_chunks
from keras_linattn.core.decay import decay_between
from keras_linattn.core.decay import decay_to_end
from keras_linattn.core.decay import running_decay
from keras_linattn.core.documents import chunks_of
from keras_linattn.core.documents import of_last
from keras_linattn.core.masks import select
from keras_linattn.core.numerics import matmul
from keras_linattn.core.products import key_value_product
from keras_linattn.core.products import product_plus

SMALLEST_BLOCK = 8  # much faster than whole products of 64 rows


@backends.with_fast_forms
def delta_product(
    query,
    key,
    value,
    beta,
    log_decay,
    state,
    loop,
    chunk_size,
    starts=None,
):
    """The delta rule over any number of positions.

    Args:
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, T, D]`, of length <= 1, 0 where masked.
        value: tensor `[B, H, T, V]`.
        beta: tensor `[B, H, T, 1]` in [0, 1], 0 where masked.
        log_decay: tensor `[B, H, T, 1]`, log a_t <= 0, 0 where masked.
        state: tensor `[B, H, D, V]`, S before the first position.
        loop: callable, `loop_over_chunks` of `mechanisms/_chunk_carry.py`.
        chunk_size: int > 0, C.
        starts: bool tensor `[B, 1, T, 1]`, see `core.documents.starts_of`.
            Defaults to `None`: each row is one document.

    Returns:
        The output `[B, H, T, V]`, and S after the last position.
    """
    length = ops.shape(query)[2]
    query, key, value, beta, log_decay = (
        split_chunks(x, chunk_size)
        for x in (query, key, value, beta, log_decay)
    )
    chunks = chunks_of(starts, chunk_size)
    running = running_decay(log_decay, chunks)
    decay = decay_between(running, chunks)
    transposed = ops.swapaxes(key, -1, -2)
    decays = ChunkDecays(
        since_start=ops.exp(running.total()),
        to_end=decay_to_end(running, chunks),
        whole=ops.exp(running.last().total()),
    )
    output, state = delta_in_chunks(
        (query, key, value, beta),
        matmul(query, transposed) * decay,
        matmul(key, transposed) * decay,
        decays,
        state,
        loop,
        chunks,
    )
    return join_chunks(output, length), state


class ChunkDecays(typing.NamedTuple):
    """Factors by which chunks fade.

    Args:
        since_start: tensor `[B, H, N, C, D or 1]`, from the chunk's start to a
            position, with it.
        to_end: tensor `[B, H, N, C, D or 1]`, from behind a position to the
            chunk's end.
        whole: tensor `[B, H, N, 1, D or 1]`, of the whole chunk.
    """

    since_start: object
    to_end: object
    whole: object


def delta_in_chunks(heads, scores, overlaps, decays, state, loop, chunks):
    """The delta rule, from the faded products of each chunk's rows.

    Args:
        heads: query, key, value and beta, tensors `[B, H, N, C, .]`.
        scores: tensor `[B, H, N, C, C]`, of queries and keys, 0 for s > t and
            for other documents.
        overlaps: the same of keys and keys; what is not under the diagonal is
            not used.
        decays: `ChunkDecays`.
        state: tensor `[B, H, D, V]`.
        loop: callable, see `delta_product`.
        chunks: `DocumentChunks`, or `None`.

    Returns:
        The output `[B, H, N, C, V]`, and the state after the last chunk.
    """
    query, key, value, beta = heads
    # U = own - read S_0
    inverse = inverse_unit_lower(beta * overlaps)
    read = matmul(inverse, beta * decays.since_start * key)
    own = matmul(inverse, beta * value)
    reading = ops.concatenate([read, query * decays.since_start], axis=-2)
    lasting = of_last(key * decays.to_end, chunks)
    inputs = (
        own,
        reading,
        scores,
        ops.swapaxes(lasting, -1, -2),
        ops.swapaxes(decays.whole, -1, -2),  # of the state's rows
    )
    if chunks is not None:
        first = ops.concatenate([chunks.first, chunks.first], axis=-2)
        limits = ops.cast(first, key.dtype), ops.cast(chunks.breaks, key.dtype)
        inputs = (*inputs, *limits)
    return read_chunks(inputs, state, loop)


@backends.with_fast_forms
def read_chunks(inputs, state, loop):
    """Outputs of all chunks, which read the state before each.

    Args:
        inputs: tuple of tensors, those of `advance_chunk` for each chunk.
        state: tensor `[B, H, D, V]`.
        loop: callable, see `delta_product`.

    Returns:
        The output `[B, H, N, C, V]`, and the state after the last chunk.
    """
    return loop(advance_chunk, inputs, state, inputs[0].shape[-2:])


def advance_chunk(inputs, state):
    """One chunk, from the state before it.

    Args:
        inputs: U from a state of 0 `[..., C, V]`; by what rows of the state U
            and the outputs read `[..., 2 C, D]`; scores `[..., C, C]`; by what
            U adds to the state `[..., D, C]`; the state's decay
            `[..., D or 1, 1]`; where there are documents, 1 for rows that read
            the state `[..., 2 C, 1]`, and 1 for a chunk that drops it
            `[..., 1, 1]`.
        state: tensor `[..., D, V]`.

    Returns:
        The output `[..., C, V]`, and the state after the chunk.
    """
    own, reading, scores, lasting, decay, *limits = inputs
    size = own.shape[-2]
    found = matmul(reading, state)
    if limits:
        first, breaks = (x > 0 for x in limits)
        found, state = select(first, found), keep(state, breaks)
    added = own - found[..., :size, :]
    output = product_plus(found[..., size:, :], scores, added)
    return output, product_plus(decay * state, lasting, added)


def inverse_unit_lower(lower):
    """Inverse of I + L, L the part of `lower` under the diagonal.

    From the inverses of neighbouring diagonal blocks, that of the block of
    both: [A 0; B D] has the corner -D^-1 B A^-1. Products only: a model that
    JAX exports with LAPACK's triangular solver does not run in TensorFlow
    Serving.

    Args:
        lower: tensor `[..., C, C]`, C static.
    """
    size = lower.shape[-1]
    count = power_of_two(num_chunks(size, SMALLEST_BLOCK))
    block = size if count == 1 else SMALLEST_BLOCK
    missing = block * count - size
    if missing:  # rows of I
        edges = [(0, 0)] * (len(lower.shape) - 2) + [(0, missing)] * 2
        lower = ops.pad(lower, edges)
    inverse = _inverse_of_small(_blocks_below(lower, block))
    while block < size:
        corner = _blocks_below(lower, block, 1)
        first, second = ops.unstack(
            ops.reshape(inverse, (*ops.shape(corner)[:-2], 2, block, block)),
            2,
            axis=-3,
        )
        corner = -matmul(matmul(second, corner), first)
        upper = ops.concatenate([first, ops.zeros_like(corner)], axis=-1)
        corner = ops.concatenate([corner, second], axis=-1)
        inverse = ops.concatenate([upper, corner], axis=-2)
        block *= 2
    return inverse[..., 0, :size, :size]


def _blocks_below(x, size, below=0):
    """Square blocks `[..., N, size, size]` of a matrix `[..., C, C]`.

    Those on the diagonal, or with `below=1` those under each other one.
    """
    starts = range(0, x.shape[-1], size * (1 + below))
    rows = (slice(i + below * size, i + (1 + below) * size) for i in starts)
    columns = (slice(i, i + size) for i in starts)
    blocks = [x[..., row, column] for row, column in zip(rows, columns)]
    return ops.stack(blocks, axis=-3)


def _inverse_of_small(lower):
    """`inverse_unit_lower` of few rows, by whole products with masks."""
    size = lower.shape[-1]
    inverse = ops.broadcast_to(
        ops.eye(size, dtype=lower.dtype), ops.shape(lower)
    )
    block = 1
    while block < size:
        corners = ops.where(_corners(size, block), lower, 0)
        if block > 1:  # at first the blocks are 1
            corners = matmul(matmul(inverse, corners), inverse)
        inverse = inverse - corners
        block *= 2
    return inverse


def _corners(size, block):
    """Bool `[C, C]`: lower left quarter of each diagonal block of 2 blocks."""
    place = ops.arange(size) // block
    row, column = ops.expand_dims(place, 1), ops.expand_dims(place, 0)
    return ops.logical_and(row == column + 1, row % 2 == 1)


def delta_step(query, key, value, beta, log_decay, state):
    """One position: T = 1, no chunks. Args and result as above."""
    state = ops.exp(log_decay) * state
    error = matmul(key, state) - value  # [B, H, 1, V]
    state = state - beta * key_value_product(key, error)
    return matmul(query, state), state
