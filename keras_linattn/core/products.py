"""Products multiplied right to left, so that no `[T, S]` matrix is formed."""

from keras import ops

from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.chunks import split_chunks
from keras_linattn.core.numerics import safe_divide

CHUNK_SIZE = 64  # 64 and 128 were the fastest on CPU for D = 64


def key_value_product(key, value):
    """K^T V, the summary of all positions: `[B, H, D, V]`, O(S D V)."""
    return ops.matmul(ops.swapaxes(key, -1, -2), value)


def kernel_attention(query, key, value):
    """Normalised attention with the similarity `query . key`.

    out_t = q_t . (sum_s k_s v_s^T) / (q_t . sum_s k_s)

    Args:
        query: tensor `[B, H, T, R]`, features of the queries, >= 0.
        key: tensor `[B, H, S, R]`, features of the keys, 0 where masked.
        value: tensor `[B, H, S, V]`.

    Returns:
        Tensor `[B, H, T, V]`; 0 where no key is visible.
    """
    numerator = ops.matmul(query, key_value_product(key, value))
    key_sum = ops.expand_dims(ops.sum(key, axis=2), -1)  # [B, H, R, 1]
    return safe_divide(numerator, ops.matmul(query, key_sum))


def append_ones(value):
    """`[..., V]` to `[..., V + 1]`: the last column sums up the normaliser."""
    return ops.concatenate([value, ops.ones_like(value[..., :1])], axis=-1)


def divide_by_last(x):
    """Divides by the last column and drops it: undoes `append_ones`."""
    return safe_divide(x[..., :-1], x[..., -1:])


def causal_product(query, key, value, state=None, chunk_size=CHUNK_SIZE):
    """sum over s <= t of (q_t . k_s) v_s, in chunks.

    Inside a chunk the product is masked to its lower triangle; between chunks
    an exclusive running sum of K^T V is carried. O(T (C + R) V) time.

    Args:
        query: tensor `[B, H, T, R]`.
        key: tensor `[B, H, T, R]`.
        value: tensor `[B, H, T, V]`.
        state: tensor `[B, H, R, V]`, the sum of K^T V over the positions
            before these. Defaults to `None`: there are none.
        chunk_size: int > 0, C.

    Returns:
        The output `[B, H, T, V]`, and the state after the last position.
    """
    length = ops.shape(query)[2]
    query = split_chunks(query, chunk_size)
    key = split_chunks(key, chunk_size)
    value = split_chunks(value, chunk_size)
    scores = ops.matmul(query, ops.swapaxes(key, -1, -2))  # [B, H, N, C, C]
    position = ops.arange(chunk_size)
    past = ops.expand_dims(position, 1) >= ops.expand_dims(position, 0)
    inside = ops.matmul(ops.where(past, scores, ops.zeros_like(scores)), value)
    sums = key_value_product(key, value)  # [B, H, N, R, V]
    start = ops.zeros_like(sums[:, :, 0]) if state is None else state
    sums = ops.concatenate([ops.expand_dims(start, 2), sums], axis=2)
    running = ops.cumsum(sums, axis=2)
    # Shifted, not subtracted: a chunk's own sum holds its future positions.
    before = running[:, :, :-1]
    output = join_chunks(inside + ops.matmul(query, before), length)
    return output, running[:, :, -1]
