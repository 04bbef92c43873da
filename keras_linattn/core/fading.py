"""Scores whose features fade, exact for decays of any strength.

With a decay 0 <= a_td <= 1 for each feature and g = log a <= 0, the score of a
query t and a key s <= t is

    sum_d q_td k_sd exp(g_(s + 1)d + ... + g_td),

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
        log_decay: tensor `[..., C, D]`, g.

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
        earlier, _ = _halves(key, count, block)
        before_first, before_second = _halves(before, count, block)
        after_first, after_second = _halves(after, count, block)
        lasting = ops.swapaxes(earlier * ops.exp(after_first), -1, -2)
        fade = ops.exp(before_second)
        scores = [
            _join(
                *_halves(score, count, block),
                matmul(_halves(query, count, block)[1] * fade, lasting),
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


def _halves(x, count, block):
    """Both halves of blocks of rows, `[count, block, anything]` each."""
    x = ops.reshape(x, (count, 2, block, x.shape[-1]))
    return ops.unstack(x, 2, axis=1)


def _join(first, second, corner):
    """The lower triangular blocks `[first 0; corner second]`."""
    upper = ops.concatenate([first, ops.zeros_like(first)], axis=-1)
    lower = ops.concatenate([corner, second], axis=-1)
    return ops.concatenate([upper, lower], axis=1)
