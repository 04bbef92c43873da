"""LARA, linear randomized attention: importance sampling with C proposals.

Softmax attention is the mean of f(w) = sum_s p(k_s, w) v_s / sum_s p(k_s, w)
under a density proportional to N(w; 0, I) p(q_t, w) sum_s p(k_s, w), where

    log p(x, w) = w . x / sqrt D - |x|^2 / (2 sqrt D)

(w in the scale of the keys, D^(1/4) times the paper's). LARA estimates it
from one sample (two, if antithetic) of each of C normal proposals around
mu_c = q-bar_c + k-bar_c, where q-bar and k-bar `[C, D]` are means of segments
(or of the blocks of a grid) of queries and keys, each through a linear map and
a layer normalisation:

    w_c   = mu_c + normal noise in training, mu_c at inference
    log r_tc = log alpha_tc + log p(q_t, w_c) + log sum_s p(k_s, w_c)
               - log p(mu_c, w_c)
    out_t = sum_c softmax_c(log r_tc) (softmax_s(log p(k_s, w_c)) V)

    alpha_tc = p(mu_c, w_c) / sum_c' p(mu_c', w_c)
               + a (t_tc - mean_c t_tc),  not below 1e-8
    t_tc     = softmax_c(q-bar_c . q_t / sqrt D)

Cost: O((T + S) C (D + V) + C^2 D) time; C is chosen, and does not grow with
the length; 2 D (D + 3) parameters, shared by the heads.
Source: Zheng, Wang, Kong, "Linear complexity randomized self-attention
mechanism", ICML 2022, arXiv 2204.04667; details after the authors' code
(HKUNLP/efficient-attention, the weights that it calls "mis-opt").
Differs from the paper: we hold its abstract and the authors' code, not the
numbers of its equations. The code takes the softmax of t over the queries,
which ties it to the length and the padding; ours is over the landmarks. For
sequences the code maps positions before it averages them; here, as for its
images, the means are mapped. Landmark c exists where both its segments hold a
visible position. The deviation 1 of the noise is the code's: samples follow
the densities that they are weighted by if it is D^(1/4), and only then, and
with a = 0, does the estimate tend to softmax attention as C grows.
"""

import dataclasses
import math
from typing import Any

import keras
from keras import ops

from keras_linattn.core.masks import apply_mask
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import expand_to_rank
from keras_linattn.core.numerics import masked_exp
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import maximum
from keras_linattn.core.numerics import mean
from keras_linattn.core.segments import check_landmarks
from keras_linattn.core.segments import is_square
from keras_linattn.core.segments import landmark_means
from keras_linattn.core.segments import softmax_over
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits

EPSILON = 1e-5  # of the layer normalisation
SMALLEST_ALPHA = 1e-8


def map_landmarks(x, kernel, bias, scale, offset):
    """LayerNorm(x W + b) over the last axis."""
    x = matmul(x, kernel) + bias
    x = x - mean(x, axis=-1, keepdims=True)
    variance = mean(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(variance + EPSILON) * scale + offset


def log_densities(samples, x):
    """log p(x_s, w_c) for all pairs: `[B, H, C, S]`."""
    root = math.sqrt(x.shape[-1])
    norms = ops.expand_dims(ops.sum(ops.square(x), axis=-1), 2) / (2 * root)
    return matmul(samples / root, ops.swapaxes(x, -1, -2)) - norms


def masked_logsumexp(x, mask=None):
    """log sum exp over what a mask `(B, S)` shows of the last axis, kept as 1.

    Where that is nothing: 0, with no gradient.
    """
    if mask is None:
        return ops.logsumexp(x, axis=-1, keepdims=True)
    visible = expand_to_rank(mask, 4, 3)
    total = ops.sum(masked_exp(x, visible), axis=-1, keepdims=True)
    floor = ops.where(visible, x, ops.cast(-1e30, x.dtype))
    largest = ops.stop_gradient(ops.max(floor, axis=-1, keepdims=True))
    empty = ops.equal(total, 0)
    total = ops.log(ops.where(empty, ops.ones_like(total), total))
    return ops.where(empty, ops.zeros_like(total), total + largest)


def log_alpha(query, query_landmarks, balance, coefficient, filled):
    """log alpha_tc `[B, H, T, C]`; `balance` is `[B, H, 1, C]`."""
    scores = query / math.sqrt(query.shape[-1])
    scores = matmul(scores, ops.swapaxes(query_landmarks, -1, -2))
    specific = softmax_over(scores, filled)
    # softmax sums to 1 over the landmarks there are: its mean is 1 / count.
    count = query_landmarks.shape[2]
    if filled is not None:
        count = ops.cast(expand_to_rank(filled, 4, 3), query.dtype)
        count = maximum(ops.sum(count, axis=-1, keepdims=True), 1)
    alpha = balance + coefficient * (specific - 1 / count)
    return ops.log(maximum(alpha, SMALLEST_ALPHA))


def attend(query, key, value, means, samples, landmarks, coefficient, masks):
    """The estimate from given samples.

    Args:
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, S, D]`.
        value: tensor `[B, H, S, V]`.
        means: tensor `[B, H, C, D]`, mu.
        samples: tensor `[B, H, C, D]`, w.
        landmarks: tensor `[B, H, C, D]`, q-bar.
        coefficient: float, a.
        masks: the key mask `(B, S)` and which landmarks exist, `(B, C)`;
            either may be `None`.

    Returns:
        Tensor `[B, H, T, V]`.
    """
    key_mask, filled = masks
    of_keys = log_densities(samples, key)
    summary = matmul(softmax_over(of_keys, key_mask), value)
    total = masked_logsumexp(of_keys, key_mask)  # [B, H, C, 1]
    root = math.sqrt(query.shape[-1])
    own = samples - means / 2
    own = ops.sum(own * means, axis=-1, keepdims=True) / root  # log p(mu, w)
    mixture = masked_logsumexp(log_densities(samples, means), filled)
    balance = _as_row(own - mixture)  # <= 0 where the landmark exists
    # Elsewhere exp may overflow, and 0 * inf is NaN in the gradient.
    balance = ops.exp(apply_mask(balance, filled, axis=-1))
    ratio = log_alpha(query, landmarks, balance, coefficient, filled)
    # log p(q, w) without |q|^2, which the softmax over c cancels.
    ratio = ratio + matmul(query, ops.swapaxes(samples / root, -1, -2))
    ratio = ratio + _as_row(total - own)
    return matmul(softmax_over(ratio, filled), summary)


def _as_row(x):
    return ops.swapaxes(x, -1, -2)


def _joined(x, other, axis=2):
    return ops.concatenate([x, other], axis=axis)


@register("lara")
class LinearRandomized(Mechanism):
    """Linear randomized attention (LARA).

    It is deterministic unless `training=True`. Call arguments, result and
    errors: see `Mechanism`.

    Args:
        num_landmarks: int > 0, C, the number of proposals. Cost grows
            linearly with it. Defaults to 49.
        alpha_coefficient: float, a, the part of the query in the weights of
            the proposals. Defaults to 1.
        noise_stddev: float, deviation in training of the samples around the
            means of their proposals. D^(1/4) makes the estimate consistent,
            see the module's docstring. Defaults to 1.
        antithetic: bool, whether training takes two samples of each
            proposal, mu + noise and mu - noise. Defaults to `False`.
        grid: tuple `(rows, columns)`, for positions that are the patches of
            an image, row by row: landmarks are means over blocks, and
            `num_landmarks` must be a square. Defaults to `None`: a sequence.
        seed: int or `None`, for the initial weights and the noise. Defaults
            to `None`: Keras' global seed.
        **kwargs: arguments of `keras.layers.Layer`.

    Raises:
        ValueError: if an argument is out of range, or if a length is not
            that of the grid.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> mechanism = mechanisms.get("lara", num_landmarks=3)
    >>> tuple(mechanism(x, x, x).shape)
    (1, 2, 6, 4)

    Source: Zheng, Wang, Kong, 2022, arXiv 2204.04667.
    """

    traits = Traits(
        key_order_free=False,
        pools_queries=True,
        grid=True,
        cost="(T + S) C (D + V) + C^2 D",
        state="C (D + V)",
        source="Zheng, Wang, Kong 2022, arXiv 2204.04667",
    )

    def __init__(
        self,
        num_landmarks: int = 49,
        alpha_coefficient: float = 1.0,
        noise_stddev: float = 1.0,
        antithetic: bool = False,
        grid: tuple[int, int] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_landmarks = num_landmarks
        self.alpha_coefficient = alpha_coefficient
        self.noise_stddev = noise_stddev
        self.antithetic = antithetic
        self.grid = check_landmarks(num_landmarks, grid)
        if not is_square(num_landmarks):
            self.traits = dataclasses.replace(self.traits, grid=False)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, query_shape, key_shape, value_shape):
        self.query_map = self._map_weights("query", query_shape[-1], 0)
        self.key_map = self._map_weights("key", query_shape[-1], 1)

    def _map_weights(self, name, dim, number):
        """Kernel, bias, scale and offset of one side's landmarks."""
        # Two kernels of one shape from one seed would be the same.
        seed = None if self.seed is None else self.seed + number
        initializer = keras.initializers.GlorotUniform(seed=seed)
        return [
            self.add_weight(
                name=f"{name}_{part}",
                shape=shape,
                initializer=start,
                autocast=False,
            )
            for part, shape, start in (
                ("kernel", (dim, dim), initializer),
                ("bias", (dim,), "zeros"),
                ("scale", (dim,), "ones"),
                ("offset", (dim,), "zeros"),
            )
        ]

    def _landmarks(self, x, weights, mask):
        means, filled = landmark_means(x, self.num_landmarks, mask, self.grid)
        weights = [ops.cast(weight, x.dtype) for weight in weights]
        return map_landmarks(means, *weights), filled

    def _noise(self, means):
        noise = keras.random.normal(
            ops.shape(means), dtype=means.dtype, seed=self.seed_generator
        )
        return noise * self.noise_stddev

    def attend(
        self, query, key, value, *, key_mask, query_mask, causal, training
    ):
        queries, query_filled = self._landmarks(
            query, self.query_map, query_mask
        )
        keys, key_filled = self._landmarks(key, self.key_map, key_mask)
        filled = combine_masks(query_filled, key_filled)
        means = samples = queries + keys
        if training:
            noise = self._noise(means)
            samples = means + noise
            if self.antithetic:
                samples = _joined(samples, means - noise)
                means, queries = (
                    _joined(means, means),
                    _joined(queries, queries),
                )
                filled = None if filled is None else _joined(filled, filled, 1)
        return attend(
            query,
            key,
            value,
            means,
            samples,
            queries,
            self.alpha_coefficient,
            (key_mask, filled),
        )
