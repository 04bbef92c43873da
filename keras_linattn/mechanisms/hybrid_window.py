"""Hybrid attention: exact within a window, linear attention beyond it.

out_t = (g sum_near e^(q_t . k_s / sqrt D - m_t) v_s
         + sum_far phi(q_t) . phi(k_s) v_s) / (the same with v = 1),

near: the window of `local`; far: the other positions that t may see; m_t: the
largest score near t; phi: the feature map of `hedgehog`; g = sigmoid(a), a
number for each head. With `least_score` m_t is at least that number.

Cost: O(T W (D + V) + T D V) time; state: that of `local` and of `hedgehog`.
Source: Zhang et al., "LoLCATs: on low-rank linearizing of large language
models", 2024, arXiv 2410.10254, and HazyResearch/lolcats (Apache-2.0),
`linear_window_attention_sw.py`; a window beside linear attention: Arora et
al., "Simple linear attention language models balance the recall-throughput
tradeoff" (Based), 2024, arXiv 2402.18668.
Differs from the papers: the two-sided form is ours. Windows slide; the authors'
fastest kernels move them in steps. g starts at 1 / 2. `least_score` is ours:
without it the largest near weight is g for every query, also where all near
scores are low and what matters is beyond the window.
"""

from typing import Any

from keras import ops

from keras_linattn.core.annotations import Tree
from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.documents import backwards
from keras_linattn.core.documents import starts_of
from keras_linattn.core.documents import with_next
from keras_linattn.core.masks import select
from keras_linattn.core.numerics import LOWEST
from keras_linattn.core.numerics import masked_exp
from keras_linattn.core.numerics import matmul
from keras_linattn.core.products import append_ones
from keras_linattn.core.products import causal_product
from keras_linattn.core.products import divide_by_last
from keras_linattn.core.windows import contained
from keras_linattn.core.windows import keys_of
from keras_linattn.core.windows import leaving_keys
from keras_linattn.core.windows import near_scores
from keras_linattn.core.windows import spoil_near
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits
from keras_linattn.mechanisms.hedgehog import Hedgehog
from keras_linattn.mechanisms.local import WindowMechanism
from keras_linattn.mechanisms.local import entries_of
from keras_linattn.mechanisms.local import split_entries

# Largest near scores count as at most so much below `least_score`, because
# without far positions the near sum is the normaliser, which must not be 0.
RANGE = 60.0


def near_sums(query, key, value, near, factor, least_score=None):
    """The window's share of the two sums, `[B, H, T, V + 1]`.

    Args:
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, E, D]`.
        value: tensor `[B, H, E, V]`.
        near: `Near`.
        factor: tensor `[1, H, 1, 1, 1]`, g.
        least_score: float or `None`, see `HybridWindow`.
    """
    key, value, finite = contained(key, value)
    scores = near_scores(query, key, near)
    # The far share is not divided by e^m_t, so m_t has a gradient.
    weights = masked_exp(scores, near.pairs, max_is_constant=False)
    value = keys_of(near, append_ones(value))
    if least_score is not None:
        factor = factor * _reduction(scores, near.pairs, least_score)
    sums = factor * matmul(weights, value)
    sums = spoil_near(sums, finite, near)
    return join_chunks(sums, ops.shape(query)[2])


def _reduction(scores, pairs, least_score):
    """e^(largest score - `least_score`), at most 1: `[B, H, N, C, 1]`."""
    scores = ops.where(pairs, scores, ops.cast(LOWEST, scores.dtype))
    largest = ops.max(scores, axis=-1, keepdims=True)
    return ops.exp(ops.clip(largest - least_score, -RANGE, 0.0))


@register("hybrid_window")
class HybridWindow(WindowMechanism, Hedgehog):
    """Exact attention within a window, linear attention beyond it.

    Both share one normaliser. With W >= T it is softmax attention.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        window: int > 0, W, see `local`. Defaults to 64.
        skip_hidden: bool, whether windows count the visible positions only,
            see `local`. Defaults to `True`.
        tied: bool, whether queries and keys have one feature map. Defaults to
            `False`.
        least_score: float or `None`. The near weights of a query are divided
            by e^m, where m is its largest near score. With a number, m is at
            least that number, so that a window of low scores gets a small
            share. Defaults to `None`, as in the paper.
        **kwargs: arguments of `Mechanism`.

    Raises:
        ValueError: if an argument is out of range; if queries and keys differ
            in length.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> hybrid = mechanisms.get({"name": "hybrid_window", "window": 3})
    >>> tuple(hybrid(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Zhang et al., 2024, arXiv 2410.10254.
    """

    traits = Traits(
        causal=True,
        cross=False,
        recurrent=True,
        key_order_free=False,
        packs=True,
        cost="T (W + D) (D + V)",
        state="W (D + V) + 2 D (V + 1)",
        source="Zhang et al. 2024, arXiv 2410.10254",
    )
    head_axes = {"query_map": 0, "key_map": 0, "window_factor": 0}

    def __init__(
        self,
        window: int = 64,
        skip_hidden: bool = True,
        tied: bool = False,
        least_score: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(window, skip_hidden, tied=tied, **kwargs)
        if not isinstance(least_score, (int, float, type(None))):
            raise ValueError(
                "`least_score` must be a number or `None`. "
                f"Received: least_score={least_score!r}."
            )
        self.least_score = least_score

    def build(self, query_shape, key_shape, value_shape):
        super().build(query_shape, key_shape, value_shape)
        self.window_factor = self.add_weight(
            name="window_factor",
            shape=(query_shape[1],),
            initializer="zeros",
            autocast=False,
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
        length = ops.shape(query)[2]
        near = self.near(length, causal, key_mask, documents=documents)
        sums = self._near_sums(query, key, value, near)
        features = self.query_features(query)
        entries = entries_of(key, value, key_mask)
        dim = key.shape[-1]
        ahead, _ = self._far_sums(
            features, entries, dim, key_mask, documents=documents
        )
        sums = sums + ahead
        if not causal:
            # Later keys are the earlier keys of the reversed sequence.
            features, entries = (ops.flip(x, 2) for x in (features, entries))
            if key_mask is not None:
                key_mask = ops.flip(key_mask, 1)
            if documents is not None:
                documents = backwards(documents)
            behind, _ = self._far_sums(
                features, entries, dim, key_mask, documents=documents
            )
            sums = sums + ops.flip(behind, 2)
        return divide_by_last(sums)

    def _near_sums(self, query, key, value, near):
        factor = ops.sigmoid(ops.cast(self.window_factor, query.dtype))
        factor = ops.reshape(factor, (1, -1, 1, 1, 1))
        return near_sums(query, key, value, near, factor, self.least_score)

    def _far_sums(
        self, query, entries, key_dim, key_mask, state=None, documents=None
    ):
        """The share of all keys that have left the window, and their state."""
        if not self.skip_hidden:
            key_mask = None
        elif key_mask is not None:
            key_mask = ops.cast(key_mask, "bool")
        holds = state is not None
        entries = leaving_keys(entries, self.window, key_mask, holds, documents)
        key, value, seen = split_entries(entries, key_dim)
        key = select(seen > 0.5, self.key_features(key))
        if holds and documents is not None:
            documents = with_next(documents)
        starts = starts_of(documents)
        return causal_product(
            query, key, append_ones(value), state, starts=starts
        )

    def state_spec(self, num_heads: int, key_dim: int, value_dim: int) -> Tree:
        """Dict of the `window`, see `local`, and of the `sums` beyond it."""
        return {
            "sums": Hedgehog.state_spec(self, num_heads, key_dim, value_dim),
            "window": self.window_spec(num_heads, key_dim, value_dim),
        }

    def advance(self, state, query, key, value, *, key_mask, documents=None):
        entries, near, window = self.take_in(
            state["window"], key, value, key_mask, documents
        )
        keys, values, _ = split_entries(entries, key.shape[-1])
        sums = self._near_sums(query, keys, values, near)
        # One position more, so that the state has what leaves at the end.
        features = self.query_features(query)
        features = ops.pad(features, [(0, 0), (0, 0), (0, 1), (0, 0)])
        far, after = self._far_sums(
            features,
            entries,
            key.shape[-1],
            key_mask,
            state["sums"],
            documents,
        )
        sums = sums + far[:, :, :-1]
        return divide_by_last(sums), {"sums": after, "window": window}
