"""Embedding of byte n-grams, so that short models see more than bytes."""

from typing import Any

import keras
from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.boundaries import LookingBack
from keras_linattn.core.boundaries import numbers_and_mask
from keras_linattn.core.lengths import is_empty
from keras_linattn.layers._arguments import check_segment_ids
from keras_linattn.layers._arguments import positive
from keras_linattn.layers._base_layer import BaseLayer
from keras_linattn.layers._base_layer import makes_sublayers
from keras_linattn.layers._sublayers import policy_for_config
from keras_linattn.layers._sublayers import sublayer_policy

# (prime, multiplier) of each half of the hash. The primes are 2 modulo 3, so
# that the cube is a permutation, and small enough that products of residues,
# and the two halves together, fit in int32. Two bigrams have the same pair of
# sums only if their tokens differ by more than 44,000.
HALVES = ((46337, 5017), (46307, 39843))


@keras.saving.register_keras_serializable("keras_linattn")
class NGramEmbedding(BaseLayer):
    """Sum of the embeddings of the n-grams that end at each position.

    Single tokens have a table of their own; longer n-grams share
    `num_buckets` rows for each order through a hash. Token 0 is padding.
    An n-gram looks back only, so padding at the end changes nothing before it.

    Args:
        vocabulary_size: int > 0, number of token ids, padding included.
        embed_dim: int > 0, F.
        orders: tuple of ints > 0, lengths of the n-grams. Defaults to
            `(1, 2, 3, 4)`.
        num_buckets: int > 0, rows of the table of each order > 1. Defaults to
            8192.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        tokens: int tensor `(B, T)`.
        segment_ids: optional int tensor `(B, T)`, for rows that hold several
            documents: an n-gram does not reach into the document before.
            Positions with equal ids are adjacent, and 0 marks padding.

    Returns:
        Tensor `(B, T, F)`, with the Keras mask `tokens != 0`.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> layer = keras_linattn.layers.NGramEmbedding(257, 16, num_buckets=100)
    >>> tuple(layer(np.ones((4, 10), "int32")).shape)
    (4, 10, 16)

    Source: Bojanowski et al., 2017, arXiv 1607.04606, section 3.2 (hashed
    character n-grams; their bag of n-grams of a word, here of a position).
    """

    takes_integers = True

    def __init__(
        self,
        vocabulary_size: int,
        embed_dim: int,
        orders: tuple[int, ...] = (1, 2, 3, 4),
        num_buckets: int = 8192,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not orders or any(n < 1 for n in orders):
            raise ValueError(
                "`orders` must name at least one n-gram length, each >= 1. "
                f"Received: orders={orders!r}."
            )
        self.supports_masking = True
        self.vocabulary_size = positive("vocabulary_size", vocabulary_size)
        self.embed_dim = positive("embed_dim", embed_dim)
        self.orders = tuple(orders)
        self.num_buckets = positive("num_buckets", num_buckets)
        self._make_tables()

    @makes_sublayers
    def _make_tables(self):
        self._tables = [
            keras.layers.Embedding(
                self.vocabulary_size if n == 1 else self.num_buckets,
                self.embed_dim,
                dtype=sublayer_policy(self.dtype_policy, f"order_{n}"),
                name=f"order_{n}",
            )
            for n in self.orders
        ]

    def build(self, tokens_shape):
        for table in self._tables:
            table.build(tokens_shape)

    def call(self, tokens: Tensor, segment_ids: Tensor | None = None) -> Tensor:
        tokens = ops.cast(tokens, "int32")
        documents = None
        if segment_ids is not None and not is_empty(tokens.shape):
            check_segment_ids(segment_ids, tokens)
            numbers, visible = numbers_and_mask(segment_ids)
            documents = LookingBack(numbers, max(self.orders) - 1)
            tokens = ops.where(visible, tokens, 0)
        buckets = ngram_buckets(
            tokens, self.orders, self.num_buckets, documents
        )
        embedded = [
            table(tokens if n == 1 else buckets[n])
            for n, table in zip(self.orders, self._tables)
        ]
        return sum(embedded[1:], embedded[0])

    def compute_mask(self, tokens, mask=None):
        return ops.not_equal(tokens, 0)

    def compute_output_spec(self, tokens, segment_ids=None):
        if segment_ids is not None:
            check_segment_ids(segment_ids, tokens)
        shape = self.compute_output_shape(tokens.shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def compute_output_shape(self, tokens_shape):
        return (*tokens_shape, self.embed_dim)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "dtype": policy_for_config(self.dtype_policy, self._tables),
            "vocabulary_size": self.vocabulary_size,
            "embed_dim": self.embed_dim,
            "orders": self.orders,
            "num_buckets": self.num_buckets,
        }


def ngram_buckets(tokens, orders, num_buckets, documents=None):
    """Returns the bucket of the n-gram that ends at each position.

    The n-gram's tokens, times a multiplier for each place, add up modulo two
    primes. Cubes then mix the two sums: neighbouring sums fall into buckets as
    random numbers do, whatever `num_buckets` is. No product leaves int32.

    Args:
        tokens: int32 tensor `(B, T)`, entries >= 0.
        orders: tuple of ints > 0, lengths of the n-grams.
        num_buckets: int > 0.
        documents: optional `LookingBack`: what lies before a document counts
            as 0.

    Returns:
        Dict from each order above 1 to an int32 tensor `(B, T)`.
    """
    length, longest = ops.shape(tokens)[1], max(orders)
    padded = ops.pad(tokens, [(0, 0), (longest - 1, 0)])
    residues = [padded % prime for prime, _ in HALVES]
    sums, buckets = [0, 0], {}
    for place in range(longest):
        start = longest - 1 - place
        same = None if documents is None else documents.same(place)
        for half, (prime, multiplier) in enumerate(HALVES):
            window = residues[half][:, start : start + length]
            if documents is not None:
                window = ops.where(same, window, 0)
            factor = pow(multiplier, place + 1, prime)
            sums[half] = sums[half] + window * factor % prime
        if place and place + 1 in orders:
            buckets[place + 1] = _mixed(*sums) % num_buckets
    return buckets


def _mixed(first, second):
    """Two sums as one int32 number that depends on every bit of both."""
    (prime, _), (other, _) = HALVES
    first = _cubed(first % prime, prime)
    return first * other + _cubed((first + second) % other, other)


def _cubed(x, prime):
    return x * x % prime * x % prime
