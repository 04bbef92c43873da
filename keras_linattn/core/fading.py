"""Scores that fade by another factor in each feature: exponents are <= 0.

The score of a query t and a key s <= t is

    sum_d q_td k_sd exp(g_(s + 1)d + ... + g_td),   g = log a <= 0,

a matrix product only where the exponent is split at a position between s and
t. So a chunk is halved again and again: its second half reads the first one
across the middle, as one product, and the halves are chunks of their own.

Each exponent is a sum of what lies between two positions, never a difference
of two sums: decays of any strength overflow nowhere, and a strong one costs
the weak ones beside it no digits.
"""

import math
import typing

from keras import ops

from keras_linattn.core.numerics import matmul
from keras_linattn.core.triangles import halves
from keras_linattn.core.triangles import join_halves


class Fading(typing.NamedTuple):
    """Sums of the logarithms of decays within each chunk.

    Args:
        before: tensor `[..., C, D]`, from the chunk's start to a position,
            with it.
        after: tensor `[..., C, D]`, from behind a position to the chunk's end.
        total: tensor `[..., 1, D]`, of the whole chunk.
    """

    before: typing.Any
    after: typing.Any
    total: typing.Any


def fading_scores(queries, key, log_decay):
    """Scores within chunks, and the decays to their ends.

    Args:
        queries: sequence of tensors `[..., C, D]`, C a power of 2.
        key: tensor `[..., C, D]`.
        log_decay: tensor `[..., C, D]`, or `[..., C, 1]` for one decay of all
            features.

    Returns:
        List of tensors `[..., C, C]`, one for each of `queries`, 0 for s > t;
        and `Fading`.
    """
    leading, size = ops.shape(key)[:-2], key.shape[-2]
    count = math.prod(leading) * size  # blocks of one position
    before = ops.reshape(log_decay, (count, 1, log_decay.shape[-1]))
    after = ops.zeros_like(before)
    scores = [
        ops.reshape(ops.sum(query * key, axis=-1), (count, 1, 1))
        for query in queries
    ]
    block = 1
    while block < size:
        count //= 2
        earlier, _ = halves(key, count, block)
        before_first, before_second = halves(before, count, block)
        after_first, after_second = halves(after, count, block)
        lasting = ops.swapaxes(earlier * ops.exp(after_first), -1, -2)
        fade = ops.exp(before_second)
        scores = [
            join_halves(
                *halves(score, count, block),
                matmul(halves(query, count, block)[1] * fade, lasting),
            )
            for query, score in zip(queries, scores, strict=True)
        ]
        first, second = before_first[:, -1:], before_second[:, -1:]
        before = ops.concatenate([before_first, before_second + first], axis=1)
        after = ops.concatenate([after_first + second, after_second], axis=1)
        block *= 2
    before, after = (
        ops.reshape(x, (*leading, size, x.shape[-1])) for x in (before, after)
    )
    scores = [ops.reshape(x, (*leading, size, size)) for x in scores]
    return scores, Fading(before, after, before[..., -1:, :])
