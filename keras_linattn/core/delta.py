"""The delta rule in chunks: what a key holds is replaced, not added to.

S'_t = a_t S_(t-1),   S_t = S'_t - beta_t k_t^T (k_t S'_t - v_t),
o_t = q_t S_t,   0 < a_t <= 1,   0 <= beta_t <= 1.

In a chunk that starts from S_0, with b the running sum of log a,

    S_t = exp(b_t) S_0 + sum_(s <= t) exp(b_t - b_s) k_s^T u_s,
    u_t = beta_t (v_t - exp(b_t) k_t S_0
                      - sum_(s < t) exp(b_t - b_s) (k_t . k_s) u_s),

so that U solves a triangular system whose right side is linear in S_0.
"""

from keras import ops

from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.chunks import split_chunks
from keras_linattn.core.decay import decay_between
from keras_linattn.core.decay import lower_triangle
from keras_linattn.core.products import key_value_product


def delta_product(query, key, value, beta, log_decay, state, carry, chunk_size):
    """The delta rule over any number of positions.

    Args:
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, T, D]`, of length <= 1, 0 where masked.
        value: tensor `[B, H, T, V]`.
        beta: tensor `[B, H, T, 1]` in [0, 1], 0 where masked.
        log_decay: tensor `[B, H, T, 1]`, log a_t <= 0, 0 where masked.
        state: tensor `[B, H, D, V]`, S before the first position.
        carry: callable `(transition, update, start)`, see
            `mechanisms/_chunk_carry.py`.
        chunk_size: int > 0, C.

    Returns:
        The output `[B, H, T, V]`, and S after the last position.
    """
    length = ops.shape(query)[2]
    key_dim = key.shape[-1]
    query, key, value, beta, log_decay = (
        split_chunks(x, chunk_size)
        for x in (query, key, value, beta, log_decay)
    )
    running = ops.cumsum(log_decay, axis=-2)  # [B, H, N, C, 1]
    decay = decay_between(running)
    faded = ops.exp(running)
    transposed = ops.swapaxes(key, -1, -2)
    # U = own - read S_0: both right sides in one solve.
    right = beta * ops.concatenate([key * faded, value], axis=-1)
    overlap = beta * ops.matmul(key, transposed) * decay
    solved = solve_unit_lower(overlap, right)
    read, own = solved[..., :key_dim], solved[..., key_dim:]
    scores = ops.matmul(query, transposed) * decay
    total = running[..., -1:, :]
    key = key * ops.exp(total - running)
    transition = ops.exp(total) * ops.eye(key_dim, dtype=key.dtype)
    transition = transition - key_value_product(key, read)
    before, state = carry(transition, key_value_product(key, own), state)
    reading = query * faded - ops.matmul(scores, read)
    output = ops.matmul(scores, own) + ops.matmul(reading, before)
    return join_chunks(output, length), state


def solve_unit_lower(lower, right):
    """X of (I + L) X = right, L the part of `lower` under the diagonal.

    Args:
        lower: tensor `[..., C, C]`, C static.
        right: tensor `[..., C, X]`.
    """
    size = lower.shape[-1]
    strict = lower_triangle(size, diagonal=False)
    lower = ops.where(strict, lower, ops.zeros_like(lower))
    unit = lower + ops.eye(size, dtype=lower.dtype)
    return ops.solve_triangular(unit, right, lower=True)


def delta_step(query, key, value, beta, log_decay, state):
    """One position: T = 1, no chunks. Args and result as above."""
    state = ops.exp(log_decay) * state
    error = ops.matmul(key, state) - value  # [B, H, 1, V]
    state = state - beta * key_value_product(key, error)
    return ops.matmul(query, state), state
