"""Hybrid attention: exact within a window, linear attention beyond it.

out_t = (g sum_near e^(q_t . k_s / sqrt D - m_t) v_s
         + sum_far phi(q_t) . phi(k_s) v_s) / (the same with v = 1),

near: the window of `local`; far: the other positions that t may see; m_t: the
largest score near t; phi: the feature map of `hedgehog`; g = sigmoid(a), a
number for each head. With `keep_scale` the near weights are
e^(a + q_t . k_s / sqrt D) / (2 D), without m_t.

Cost: O(T W (D + V) + T D V) time; state: that of `local` and of `hedgehog`.
Source: Zhang et al., "LoLCATs: on low-rank linearizing of large language
models", 2024, arXiv 2410.10254, and HazyResearch/lolcats (Apache-2.0),
`linear_window_attention_sw.py`; a window beside linear attention: Arora et
al., "Simple linear attention language models balance the recall-throughput
tradeoff" (Based), 2024, arXiv 2402.18668.
Differs from the papers: the two-sided form is ours. Windows slide; the authors'
fastest kernels move them in steps. g starts at 1 / 2. `keep_scale` is ours:
with m_t the window's sum is at least g, also where no near key matters; without
it, near and far weights start equal for a query of zeros.
"""

import math

from keras import ops

from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.documents import backwards
from keras_linattn.core.documents import starts_of
from keras_linattn.core.documents import with_next
from keras_linattn.core.masks import select
from keras_linattn.core.numerics import LOWEST
from keras_linattn.core.numerics import masked_exp
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import maximum
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


# Of the largest near score. The near weights are of no account below it, but
# without far positions their sum is the normaliser.
LEAST_SCORE = -60.0


def near_sums(query, key, value, near, factors):
    """The window's share of the two sums.

    Args:
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, E, D]`.
        value: tensor `[B, H, E, V]`.
        near: `Near`.
        factors: function of the scores, that returns what to multiply the near
            sums and the far sums by.

    Returns:
        Tensor `[B, H, T, V + 1]`, and the factor of the far sums.
    """
    key, value, finite = contained(key, value)
    scores = near_scores(query, key, near)
    weights = masked_exp(scores, near.pairs)
    value = keys_of(near, append_ones(value))
    factor, of_far = factors(scores, near)
    sums = factor * matmul(weights, value)
    sums = spoil_near(sums, finite, near)
    length = ops.shape(query)[2]
    if not isinstance(of_far, float):
        of_far = join_chunks(of_far, length)
    return join_chunks(sums, length), of_far


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
        keep_scale: bool, whether near weights keep the scale of their scores,
            as in softmax attention. `False` divides them by the largest one
            of each query, as the paper does. Then the window has a share even
            if all that matters is beyond it. Defaults to `False`.
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
        window=64,
        skip_hidden=True,
        tied=False,
        keep_scale=False,
        **kwargs,
    ):
        super().__init__(window, skip_hidden, tied=tied, **kwargs)
        self.keep_scale = keep_scale

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
        sums, factor = near_sums(query, key, value, near, self._factors)
        features = self.query_features(query)
        entries = entries_of(key, value, key_mask)
        dim = key.shape[-1]
        ahead, _ = self._far_sums(
            features, entries, dim, key_mask, documents=documents
        )
        sums = sums + factor * ahead
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
            sums = sums + factor * ops.flip(behind, 2)
        return divide_by_last(sums)

    def _factors(self, scores, near):
        """The factors of near and far sums, see `near_sums`."""
        factor = ops.cast(self.window_factor, scores.dtype)
        factor = ops.reshape(factor, (1, -1, 1, 1, 1))
        if not self.keep_scale:
            return ops.sigmoid(factor), 1.0
        scores = ops.where(near.pairs, scores, ops.cast(LOWEST, scores.dtype))
        largest = ops.stop_gradient(ops.max(scores, axis=-1, keepdims=True))
        largest = maximum(largest, LEAST_SCORE)
        # The logarithm of the largest near weight, by which both sums are
        # divided if it is positive: no exponential is then above 1.
        largest = largest + factor - math.log(2 * self.key_map.shape[-1])
        zero = ops.zeros_like(largest)
        near_factor = ops.exp(ops.minimum(largest, zero))
        return near_factor, ops.exp(ops.minimum(-largest, zero))

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

    def state_spec(self, num_heads, key_dim, value_dim):
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
        sums, factor = near_sums(query, keys, values, near, self._factors)
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
        sums = sums + factor * far[:, :, :-1]
        return divide_by_last(sums), {"sums": after, "window": window}
