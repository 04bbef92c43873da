"""cosFormer: kernel attention of relu features, near positions weighing more.

out_t = sum_s w_ts v_s / sum_s w_ts,
w_ts = relu(q_t) . relu(k_s) cos(pi (t - s) / 2M),   |t - s| < M.

Linear, since cos(a - b) = cos a cos b + sin a sin b: phi(x_i) =
[relu(x_i) cos(pi i / 2M), relu(x_i) sin(pi i / 2M)], all >= 0 for 0 <= i < M.

Cost: O((T + S) D V) time; state 2 D (V + 1) for each head and the position;
works up to the length M (trait `needs_length`).
Source: Qin, Sun, Deng, Li, Wei, Lv, Yan, Kong, Zhong, "cosFormer: rethinking
softmax in attention", ICLR 2022, arXiv 2202.08791, equations 9 to 12.
Differs from the paper: M is a constant, not the length of the input, so that
padding changes nothing and decoding can use it. There is no epsilon: the output
of a query is 0 if its products with all visible keys are 0.
"""

import math
from typing import Any

import keras
from keras import ops

from keras_linattn.core.annotations import Tree
from keras_linattn.core.causal import attend_causally
from keras_linattn.core.documents import first_places
from keras_linattn.core.masks import hide
from keras_linattn.core.masks import nan_where
from keras_linattn.core.masks import spread
from keras_linattn.core.poison import rows_reached
from keras_linattn.core.products import kernel_attention
from keras_linattn.mechanisms._kernel import KernelMechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits


def feature_map(x, position, sequence_length):
    """phi: `[B, H, T, D]` to `[B, H, T, 2 D]`.

    Args:
        x: tensor `[B, H, T, D]`.
        position: int tensor `[T]` or `[B or 1, 1, T]`. From M on there are no
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


def positions(query, key, documents=None):
    """Positions of queries and keys, in their documents: `(B or 1, T)`.

    Padding after a document is counted too.
    """
    if documents is None:
        return _places(query), _places(key)
    of_query = _places(query) - first_places(documents.query)
    if documents.one_sequence:
        return of_query, of_query
    return of_query, _places(key) - first_places(documents.key)


def _places(x):
    return ops.expand_dims(ops.arange(ops.shape(x)[2], dtype="int32"), 0)


@register("cosformer")
class CosFormer(KernelMechanism):
    """Linear attention of relu features with a cosine of the distance.

    Call arguments, result and errors: see `Mechanism`. Positions are those in
    the tensor; only their differences count, so that padding on the left is
    as good as on the right. The output of a query is 0 if its products with all
    visible keys are 0.

    Args:
        sequence_length: int > 0 or `None`, M, the maximum length of an input,
            or of a document with `segment_ids`: outputs that depend on a
            position from M on are NaN. The cosine is 0 at the distance M, so
            the weighting is stronger if M is near the lengths in use. Defaults
            to `None`: the length of the input that the mechanism is built
            with.
        **kwargs: arguments of `Mechanism`.

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

    head_axes = {}

    def __init__(self, sequence_length: int | None = None, **kwargs: Any):
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
        of_query, of_key = positions(query, key, documents)
        beyond = None
        if documents is not None and documents.one_sequence:
            beyond = self._beyond(of_query, key_mask, documents, causal)
            of_query = of_key = self._known(of_query)
        query = self._features(query, of_query)
        key = hide(self._features(key, of_key), key_mask)
        if causal:
            output, _ = attend_causally(query, key, value, documents=documents)
        else:
            output = kernel_attention(query, key, value, documents)
        return output if beyond is None else nan_where(beyond, output)

    def _features(self, x, position):
        position = ops.expand_dims(position, 1)
        return feature_map(x, position, self.sequence_length)

    def _known(self, position):
        """Positions limited to M - 1, so that their features are finite.

        NaN would reach other documents' gradients; it is written later, see
        `_beyond`.
        """
        return ops.minimum(position, self.sequence_length - 1)

    def _beyond(self, position, mask, documents, causal):
        """Bool `[B, 1, T, 1]`: the queries that attend beyond M."""
        known = position < self.sequence_length
        own = spread(ops.logical_not(known), rank=4, axis=2)
        # Padding after a document is counted too, but it is masked.
        shown = (
            known
            if mask is None
            else ops.logical_or(known, ops.logical_not(mask))
        )
        reached = rows_reached(spread(shown, rank=4, axis=2), documents, causal)
        return ops.logical_or(reached, own)

    def num_features_for(self, key_dim):
        return 2 * key_dim

    def state_spec(self, num_heads: int, key_dim: int, value_dim: int) -> Tree:
        """Dict of `sums` `[B, H, 2 D, V + 1]` and the next `position` `[B]`."""
        return {
            "position": keras.KerasTensor((None,), dtype="int32"),
            "sums": super().state_spec(num_heads, key_dim, value_dim),
        }

    def advance(self, state, query, key, value, *, key_mask, documents=None):
        before = ops.reshape(state["position"], (-1, 1))
        position, _ = positions(query, key, documents)
        # Documents after the first one start anew.
        in_first = True if documents is None else documents.query == 0
        position = position + ops.where(in_first, before, 0)
        known = position
        if documents is not None:
            known = self._known(position)
        query, key = (self._features(x, known) for x in (query, key))
        output, sums = attend_causally(
            query, hide(key, key_mask), value, state["sums"], documents
        )
        if documents is not None:
            beyond = self._beyond(position, key_mask, documents, causal=True)
            output = nan_where(beyond, output)
        return output, {"sums": sums, "position": position[:, -1] + 1}
