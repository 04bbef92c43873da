"""What mechanisms with a non-negative kernel phi(q) . phi(k) share."""

import keras
from keras import ops

from keras_linattn.core.causal import attend_causally
from keras_linattn.core.lengths import is_empty
from keras_linattn.core.masks import hide
from keras_linattn.core.numerics import accumulation_dtype
from keras_linattn.core.products import kernel_attention
from keras_linattn.mechanisms._base import Mechanism


class KernelMechanism(Mechanism):
    """out_t = phi(q_t) . sum_s phi(k_s) v_s^T / (phi(q_t) . sum_s phi(k_s)).

    A subclass writes `query_features`, `key_features` where keys have others,
    and `num_features_for`.
    """

    def query_features(self, query):
        """phi of the queries: `[B, H, T, D]` to `[B, H, T, R]`."""
        raise NotImplementedError(
            f"`{type(self).__name__}` must define `query_features`."
        )

    def key_features(self, key):
        """phi of the keys, those of the queries unless overridden."""
        return self.query_features(key)

    def num_features_for(self, key_dim):
        """R, from D."""
        return key_dim

    def attend(self, query, key, value, key_mask, query_mask, causal, training):
        query = self.query_features(query)
        key = hide(self.key_features(key), key_mask)
        if causal:
            return attend_causally(query, key, value)[0]
        return kernel_attention(query, key, value)

    def state_spec(self, num_heads, key_dim, value_dim):
        """`[B, H, R, V + 1]`; the last column sums the normaliser."""
        self.check_recurrent()
        rank = self.num_features_for(key_dim)
        return keras.KerasTensor(
            (None, num_heads, rank, value_dim + 1),
            dtype=accumulation_dtype(self.compute_dtype),
        )

    def step(self, state, query, key, value, key_mask=None):
        self.check_recurrent()
        dtype = query.dtype
        query, key, value = self._prepare(query, key, value, key_mask)
        if is_empty(query.shape):
            nothing = self._see_nothing(query, key, value)
            return ops.cast(nothing, dtype), state
        key = hide(self.key_features(key), key_mask)
        query = self.query_features(query)
        output, state = attend_causally(query, key, value, state)
        return ops.cast(output, dtype), state

    def check_recurrent(self):
        """Raises a `ValueError` where this configuration has no steps."""
        if not self.traits.recurrent:
            self.refuse_state()
