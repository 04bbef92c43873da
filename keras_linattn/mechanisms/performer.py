"""Performer: softmax attention estimated with positive random features.

exp(q . k / sqrt D) = E[phi(q) . phi(k)],
phi_r(x) = exp(w_r . u - |u|^2 / 2) / sqrt R,   u = x / D^(1/4),
w_r Gaussian, orthogonal in blocks of D. The error falls as 1 / sqrt R, once R
is well above exp(|u_q + u_k|^2), the variance of one feature relative to the
square of the kernel (lemma 2): for large heads much more slowly.

Cost: O((T + S) R (D + V)) time; state R (V + 1) for each head.
Source: Choromanski, Likhosherstov, Dohan, Song, Gane, Sarlos, Hawkins, Davis,
Mohiuddin, Kaiser, Belanger, Colwell, Weller, "Rethinking attention with
Performers", ICLR 2021, arXiv 2009.14794, lemmas 1 and 2, section 2.4.
R = 256 by default as in the authors' code.
Differs from the paper: nothing is added to the features (the authors' code
adds 1e-6); `redraw` is left to the caller. Exponentials are kept in range by
factors that cancel in the quotient:

- one for each query: its largest exponent, and |u|^2 / 2 with it;
- both ways, one for each feature, off the keys and onto the queries: its
  largest exponent among visible keys. So the normaliser is 1 at least, where
  one maximum for all keys (the authors' code) can lose a query that looks
  along another feature;
- causally none for the keys, since a maximum would look ahead. Their features
  are FLOOR at least and e^LARGEST at most, so that nothing overflows or counts
  as hidden: keys whose exponents are above -57 where the query's are largest
  (|u| up to about 10) have exact weights, and the weights of smaller ones tend
  to equal ones.

Exponents grow with the square of a head, and so does their rounding: |u| = 100
costs three digits of the weights. Outputs stay within the values at any size.
"""

from typing import Any

import keras
from keras import ops

from keras_linattn.core.log_products import log_kernel_attention
from keras_linattn.core.numerics import masked_exp
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import maximum
from keras_linattn.mechanisms._kernel import KernelMechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits

# Times values of 1e30, exponentials of a few tens still are float32 numbers.
FLOOR, LARGEST = 1e-30, 75.0


def query_exponents(query, projection):
    """w_r . u, `[B, H, T, R]`; |u|^2 / 2 cancels within a row."""
    return matmul(query / query.shape[-1] ** 0.25, ops.transpose(projection))


def key_exponents(key, projection):
    """w_r . u - |u|^2 / 2, `[B, H, S, R]`."""
    key = key / key.shape[-1] ** 0.25
    half_norm = ops.sum(ops.square(key), axis=-1, keepdims=True) / 2
    return matmul(key, ops.transpose(projection)) - half_norm


def attend(query, key, value, projection, key_mask=None, documents=None):
    """Attention both ways."""
    return log_kernel_attention(
        query_exponents(query, projection),
        key_exponents(key, projection),
        value,
        key_mask,
        documents,
    )


def orthogonal_gaussian(rows, dim, seed=None):
    """`[rows, dim]`: each row Gaussian, any `dim` in turn orthogonal.

    Args:
        rows: int, R.
        dim: int, D.
        seed: int, `keras.random.SeedGenerator` or `None`.
    """
    # A generator, since two draws from one number would share theirs.
    if not isinstance(seed, keras.random.SeedGenerator):
        seed = keras.random.SeedGenerator(seed)
    blocks = -(-rows // dim)
    square = keras.random.normal((blocks, dim, dim), seed=seed)
    basis, triangle = ops.qr(square)
    # The signs that make it uniform; without them row 1 has a fixed side.
    signs = ops.sign(ops.diagonal(triangle, axis1=-2, axis2=-1))
    basis = ops.swapaxes(basis, -1, -2) * ops.expand_dims(signs, -1)
    basis = ops.reshape(basis, (blocks * dim, dim))[:rows]
    lengths = keras.random.normal((rows, dim), seed=seed)
    lengths = ops.sqrt(ops.sum(ops.square(lengths), axis=-1, keepdims=True))
    return basis * lengths


@register("performer")
class Performer(KernelMechanism):
    """Linear attention that estimates softmax attention (FAVOR+).

    The features are random projections of queries and keys. All heads share
    one projection. It is drawn when the mechanism is built and saved with the
    model; only `redraw` changes it. Call arguments, result and errors: see
    `Mechanism`.

    Args:
        num_features: int > 0, R. Cost grows as R, and the error falls as
            1 / sqrt(R). Defaults to 256.
        seed: int or `None`, seed of the projection. Defaults to `None`: a
            random seed.
        **kwargs: arguments of `Mechanism`.

    Raises:
        ValueError: if `num_features` is not a positive integer.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> mechanism = mechanisms.get("performer", num_features=64, seed=0)
    >>> tuple(mechanism(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Choromanski et al., 2021, arXiv 2009.14794.
    """

    traits = Traits(
        causal=True,
        recurrent=True,
        packs=True,
        cost="(T + S) R (D + V)",
        state="R (V + 1)",
        source="Choromanski et al. 2021, arXiv 2009.14794",
    )

    def __init__(
        self, num_features: int = 256, seed: int | None = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        if not isinstance(num_features, int) or num_features <= 0:
            raise ValueError(
                "`num_features` must be a positive integer. "
                f"Received: num_features={num_features!r}."
            )
        self.num_features = num_features
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, query_shape, key_shape, value_shape):
        self.projection = self.add_weight(
            name="projection",
            shape=(self.num_features, query_shape[3]),
            initializer=self._draw,
            trainable=False,
            autocast=False,
        )

    def _draw(self, shape, dtype=None):
        drawn = orthogonal_gaussian(*shape, seed=self.seed_generator)
        return ops.cast(drawn, dtype or "float32")

    def redraw(self) -> None:
        """Replaces the projection by the next one of this seed."""
        self.projection.assign(self._draw(self.projection.shape))

    def attend_both_ways(self, query, key, value, key_mask, documents=None):
        projection = ops.cast(self.projection, query.dtype)
        return attend(query, key, value, projection, key_mask, documents)

    def query_features(self, query):
        projection = ops.cast(self.projection, query.dtype)
        return masked_exp(query_exponents(query, projection))

    def key_features(self, key):
        projection = ops.cast(self.projection, key.dtype)
        exponents = key_exponents(key, projection)
        return ops.exp(-maximum(-exponents, -LARGEST)) + FLOOR

    def num_features_for(self, key_dim):
        return self.num_features
