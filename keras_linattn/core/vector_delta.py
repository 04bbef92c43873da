"""The delta rule with a decay for each feature, in chunks.

S'_t = diag(a_t) S_(t-1),   S_t = S'_t - beta_t k_t^T (k_t S'_t - v_t),
o_t = q_t S_t,   0 <= a_t <= 1,   0 <= beta_t <= 1.

The equations of `core/delta.py`, with (k_t * exp(b_t - b_s)) . k_s in the
place of exp(b_t - b_s) (k_t . k_s).
"""

from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.chunks import power_of_two
from keras_linattn.core.chunks import split_chunks
from keras_linattn.core.delta import ChunkDecays
from keras_linattn.core.delta import delta_in_chunks
from keras_linattn.core.delta import delta_step
from keras_linattn.core.documents import chunks_of
from keras_linattn.core.documents import within
from keras_linattn.core.fading import fading_scores


@backends.with_fast_forms
def vector_delta_product(
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
        log_decay: tensor `[B, H, T, D]`, log a_t <= 0, 0 where masked.
        state: tensor `[B, H, D, V]`, S before the first position.
        loop: callable, `loop_over_chunks` of `mechanisms/_chunk_carry.py`.
        chunk_size: int > 0, C, rounded up to a power of 2.
        starts: bool tensor `[B, 1, T, 1]`, see `core.documents.starts_of`.
            Defaults to `None`: each row is one document.

    Returns:
        The output `[B, H, T, V]`, and S after the last position.
    """
    length = ops.shape(query)[2]
    chunk_size = power_of_two(chunk_size)
    chunks = chunks_of(starts, chunk_size)
    query, key, value, beta, log_decay = (
        split_chunks(x, chunk_size)
        for x in (query, key, value, beta, log_decay)
    )
    pairs, fading = fading_scores((query, key), key, log_decay)
    scores, overlaps = (within(x, chunks) for x in pairs)
    decays = ChunkDecays(
        since_start=ops.exp(fading.before),
        to_end=ops.exp(fading.after),
        whole=ops.exp(fading.total),
    )
    output, state = delta_in_chunks(
        (query, key, value, beta),
        scores,
        overlaps,
        decays,
        state,
        loop,
        chunks,
    )
    return join_chunks(output, length), state


def vector_delta_step(query, key, value, beta, log_decay, state):
    """One position: T = 1, no chunks. Args and result as above."""
    log_decay = ops.swapaxes(log_decay, -1, -2)  # of the rows of the state
    return delta_step(query, key, value, beta, log_decay, state)
