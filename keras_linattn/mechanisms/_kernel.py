"""The base of mechanisms with a kernel phi(q) . phi(k)."""

import keras

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.annotations import Tree
from keras_linattn.core.causal import attend_causally
from keras_linattn.core.documents import Documents
from keras_linattn.core.masks import hide
from keras_linattn.core.numerics import matmul
from keras_linattn.core.products import append_ones
from keras_linattn.core.products import divide_by_last
from keras_linattn.core.products import kernel_attention
from keras_linattn.core.products import kernel_attention_in_pieces
from keras_linattn.core.products import key_value_product
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._traits import Traits


class KernelMechanism(Mechanism):
    """Linear attention with a kernel: write `features`, the base does the rest.

    out_t = phi(q_t) . sum_s phi(k_s) v_s^T / (phi(q_t) . sum_s phi(k_s))

    A subclass writes phi as `features`, or as `query_features` and
    `key_features` where they differ, and `num_features_for` where phi changes
    the number of features. All features must be >= 0, or at least their
    products phi(q) . phi(k). The causal form, states, masks, empty inputs and
    half precision come from this class, and the traits declare them.

    Call arguments, result and errors: see `Mechanism`. Constructor arguments
    are those of `Mechanism`.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> class Softplus(mechanisms.KernelMechanism):
    ...     def features(self, x):
    ...         return keras.ops.softplus(x)
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> tuple(Softplus()(x, x, x, causal=True).shape)
    (1, 2, 6, 4)
    """

    traits = Traits(
        causal=True,
        recurrent=True,
        packs=True,
        cost="(T + S) R V",
        state="R (V + 1)",
    )

    def features(self, x: Tensor) -> Tensor:
        """Computes phi of heads: `[B, H, T, D]` to `[B, H, T, R]`, >= 0."""
        raise NotImplementedError(
            f"`{type(self).__name__}` must define `features`, or both "
            "`query_features` and `key_features`."
        )

    def query_features(self, query: Tensor) -> Tensor:
        """Computes phi of the queries. Defaults to `features`."""
        return self.features(query)

    def key_features(self, key: Tensor) -> Tensor:
        """Computes phi of the keys. Defaults to `features`.

        The base masks the result.
        """
        return self.features(key)

    def num_features_for(self, key_dim: int) -> int:
        """Returns the number of features, R, from D. Defaults to D."""
        return key_dim

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
        if not causal:
            return self.attend_both_ways(query, key, value, key_mask, documents)
        query = self.query_features(query)
        key = hide(self.key_features(key), key_mask)
        return attend_causally(query, key, value, documents=documents)[0]

    def attend_pieces(
        self,
        pieces,
        query,
        key,
        value,
        *,
        key_mask,
        causal,
        documents=None,
    ):
        query = self.query_features(query)
        key = hide(self.key_features(key), key_mask)
        if documents is not None and not causal:
            return kernel_attention_in_pieces(query, key, value, pieces)
        of_last = key if documents is None else pieces.of_last_document(key)
        own = key_value_product(of_last, append_ones(value))
        if causal:
            state = pieces.sum_before(own)
            return attend_causally(query, key, value, state, documents)[0]
        return divide_by_last(matmul(query, pieces.sum(own)))

    def attend_both_ways(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None,
        documents: Documents | None = None,
    ) -> Tensor:
        """Computes the output without a causal mask.

        A kernel overrides it if its features can be scaled there to fit
        float32, which a causal form cannot do: it would look ahead.
        `documents` are those of `attend`.
        """
        query = self.query_features(query)
        key = hide(self.key_features(key), key_mask)
        return kernel_attention(query, key, value, documents)

    def state_spec(self, num_heads: int, key_dim: int, value_dim: int) -> Tree:
        """The state `[B, H, R, V + 1]`: the last column sums weights."""
        self.check_recurrent()
        rank = self.num_features_for(key_dim)
        return keras.KerasTensor(
            (None, num_heads, rank, value_dim + 1),
            dtype=self.state_dtype,
        )

    def advance(self, state, query, key, value, *, key_mask, documents=None):
        key = hide(self.key_features(key), key_mask)
        query = self.query_features(query)
        if len({key.shape[-1], state.shape[-2]} - {None}) > 1:
            raise ValueError(
                "The state must have a row for each feature of a key. "
                f"Received: {key.shape[-1]} features, a state of shape "
                f"{tuple(state.shape)}. Return the number of features from "
                f"`{type(self).__name__}.num_features_for`."
            )
        return attend_causally(query, key, value, state, documents)
