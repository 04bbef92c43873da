"""cosFormer: kernel attention of relu features, near positions weighing more.

out_t = sum_s w_ts v_s / sum_s w_ts,
w_ts = relu(q_t) . relu(k_s) cos(pi (t - s) / 2M),   |t - s| < M.

Linear, since cos(a - b) = cos a cos b + sin a sin b: phi(x_i) =
[relu(x_i) cos(pi i / 2M), relu(x_i) sin(pi i / 2M)], all >= 0 for 0 <= i < M.

Cost: O((T + S) D V) time; state 2 D (V + 1) for each head and the position;
works up to the length M (trait `needs_length`).
Source: Qin, Sun, Deng, Li, Wei, Lv, Yan, Kong, Zhong, "cosFormer: rethinking
softmax in attention", ICLR 2022, arXiv 2202.08791, equations 9 to 12.
Differs from the paper: M is fixed rather than the length of the input, so
that padding changes nothing and decoding knows it; no epsilon: a query none
of whose features is a visible key's too gives 0.
"""

import math

import keras
from keras import ops

from keras_linattn.core.causal import attend_causally
from keras_linattn.core.masks import hide
from keras_linattn.mechanisms._kernel import KernelMechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits


def feature_map(x, position, sequence_length):
    """phi: `[B, H, T, D]` to `[B, H, T, 2 D]`.

    Args:
        x: tensor `[B, H, T, D]`.
        position: int tensor `[T]` or `[B, 1, T]`. From M on there are no
            weights: the features are NaN, since too long an input must not
            give a plausible answer.
        sequence_length: int, M.
    """
    position = ops.expand_dims(position, -1)
    # cos as the sine of the rest: near pi / 2 cos has no digits left.
    weights = [
        ops.sin(ops.cast(steps, x.dtype) * (math.pi / 2 / sequence_length))
        for steps in (sequence_length - position, position)
    ]
    known = position < sequence_length
    x = ops.relu(x)
    return ops.concatenate(
        [x * ops.where(known, w, float("nan")) for w in weights], axis=-1
    )


@register("cosformer")
class CosFormer(KernelMechanism):
    """Linear attention of relu features with a cosine of the distance.

    Call arguments, result and errors: see `Mechanism`. Positions are those in
    the tensor; only their differences count, so that padding on the left is
    as good as on the right. A query whose features meet no key's gives 0.

    Args:
        sequence_length: int > 0 or `None`, M, no input is longer. The cosine
            falls to 0 at this distance: the nearer M is to the lengths in
            use, the stronger the weighting. Defaults to `None`: the length of
            the input that the mechanism is built with.
        **kwargs: arguments of `keras.layers.Layer`.

    Raises:
        ValueError: if `sequence_length` is out of range, or is `None` and the
            length is unknown; if an input is known to be longer.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> mechanism = mechanisms.get("cosformer", sequence_length=512)
    >>> tuple(mechanism(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Qin et al., 2022, arXiv 2202.08791, equations 9 to 12.
    """

    traits = Traits(
        causal=True,
        recurrent=True,
        packs=True,
        normalised=False,
        key_order_free=False,
        positional=True,
        needs_length=True,
        cost="(T + S) D V",
        state="2 D (V + 1)",
        source="Qin et al. 2022, arXiv 2202.08791",
    )

    def __init__(self, sequence_length=None, **kwargs):
        super().__init__(**kwargs)
        if sequence_length is not None and (
            not isinstance(sequence_length, int) or sequence_length <= 0
        ):
            raise ValueError(
                "`sequence_length` must be a positive integer or `None`. "
                f"Received: sequence_length={sequence_length!r}."
            )
        self.sequence_length = sequence_length

    def build(self, query_shape, key_shape, value_shape):
        lengths = (query_shape[2], key_shape[2])
        if self.sequence_length is None and None not in lengths:
            self.sequence_length = max(lengths)
        if self.sequence_length is None:
            raise ValueError(
                "cosFormer must know the longest input when it is built. "
                f"Received: query shape {tuple(query_shape)}, key shape "
                f"{tuple(key_shape)}, sequence_length=None. Pass mechanism="
                "{'name': 'cosformer', 'sequence_length': ...} or give the "
                "input a fixed length."
            )

    def features(self, x):
        length = ops.shape(x)[2]
        return feature_map(x, ops.arange(length), self.sequence_length)

    def num_features_for(self, key_dim):
        return 2 * key_dim

    def state_spec(self, num_heads, key_dim, value_dim):
        """Dict of `sums` `[B, H, 2 D, V + 1]` and the next `position` `[B]`."""
        return {
            "sums": super().state_spec(num_heads, key_dim, value_dim),
            "position": keras.KerasTensor((None,), dtype="int32"),
        }

    def advance(self, state, query, key, value, *, key_mask):
        length = ops.shape(query)[2]
        position = ops.reshape(state["position"], (-1, 1, 1))
        position = position + ops.arange(length, dtype="int32")
        query, key = (
            feature_map(x, position, self.sequence_length) for x in (query, key)
        )
        output, sums = attend_causally(
            query, hide(key, key_mask), value, state["sums"]
        )
        state = {"sums": sums, "position": state["position"] + length}
        return output, state
