"""Linformer: keys and values projected from length S to a fixed k.

out = softmax(Q (E K)^T / sqrt D) (F V), E and F learned, [k, S].

Cost: O((T + S) k (D + V)) time; 2 k S parameters; works up to the length S it
is built for (trait `needs_length`).
Source: Wang, Li, Khabsa, Fang, Ma, "Linformer: self-attention with linear
complexity", 2020, arXiv 2006.04768, equation 7 and section 4 (sharing).
Differs from the paper: inputs shorter than S are taken as padded with zeros,
and masked keys and values are 0 before the projection, which is exact for the
projection but leaves k columns in the softmax however few keys are visible.
"""

import math
from typing import Any

import keras
from keras import ops

from keras_linattn.core.numerics import masked_softmax
from keras_linattn.core.numerics import matmul
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits

SHARING = ("none", "headwise", "key_value")


def attend(query, key, value, key_projection, value_projection):
    """Equation 7; the projections are `[H or 1, k, S]`."""
    keys = matmul(key_projection, key)  # [B, H, k, D]
    values = matmul(value_projection, value)  # [B, H, k, V]
    scores = matmul(query, ops.swapaxes(keys, -1, -2))
    scores = scores / math.sqrt(key.shape[-1])
    return matmul(masked_softmax(scores, axis=-1), values)


def first_columns(projection, length):
    """The columns of positions 0 ... length - 1: `[H or 1, k, length]`.

    Where the length is known only at run time, columns past the last one are
    NaN: too long an input must not give a plausible answer.
    """
    size = projection.shape[-1]
    if isinstance(length, int):
        return projection[..., :length]
    position = ops.arange(length)
    columns = ops.take(projection, ops.minimum(position, size - 1), axis=-1)
    return ops.where(position < size, columns, float("nan"))


@register("linformer")
class Linformer(Mechanism):
    """Linformer attention, for sequences up to a fixed length.

    Call arguments, result and errors: see `Mechanism`. Give the same object
    to several layers to share one projection between them ("layerwise" in
    the paper).

    Args:
        projection_dim: int > 0, k. Cost grows linearly with it. Defaults to
            64.
        sequence_length: int > 0 or `None`, the longest input S. Defaults to
            `None`: the length of the input that the layer is built with.
        sharing: `"none"` (E, F for each head), `"headwise"` (one E and one F
            for all heads) or `"key_value"` (one E for keys, values and all
            heads). Defaults to `"headwise"`.
        **kwargs: arguments of `keras.layers.Layer`.

    Raises:
        ValueError: if an argument is out of range; if no length is given and
            the input's is unknown; if an input is longer than
            `sequence_length`.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> linformer = mechanisms.Linformer(projection_dim=3, sequence_length=8)
    >>> tuple(linformer(x, x, x).shape)
    (1, 2, 6, 4)

    Source: Wang et al., 2020, arXiv 2006.04768, equation 7.
    """

    traits = Traits(
        normalised=False,
        key_order_free=False,
        needs_length=True,
        cost="(T + S) k (D + V)",
        state="k (D + V)",
        source="Wang et al. 2020, arXiv 2006.04768",
    )

    def __init__(
        self,
        projection_dim: int = 64,
        sequence_length: int | None = None,
        sharing: str = "headwise",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, size in (
            ("projection_dim", projection_dim),
            ("sequence_length", sequence_length),
        ):
            optional = name == "sequence_length" and size is None
            if not optional and (not isinstance(size, int) or size <= 0):
                raise ValueError(
                    f"`{name}` must be a positive integer. "
                    f"Received: {name}={size!r}."
                )
        if sharing not in SHARING:
            raise ValueError(
                f"`sharing` must be one of {SHARING}. "
                f"Received: sharing={sharing!r}."
            )
        self.projection_dim = projection_dim
        self.sequence_length = sequence_length
        self.sharing = sharing

    def build(self, query_shape, key_shape, value_shape):
        if self.sequence_length is None:
            self.sequence_length = key_shape[2]
        if self.sequence_length is None:
            raise ValueError(
                "Linformer must know the longest input when it is built. "
                f"Received: key shape {tuple(key_shape)}. Pass "
                "mechanism={'name': 'linformer', 'sequence_length': ...} or "
                "give the input a fixed length."
            )
        heads = key_shape[1] if self.sharing == "none" else 1
        shape = (heads, self.projection_dim, self.sequence_length)
        self.key_projection = self._projection("key_projection", shape)
        self.value_projection = (
            self.key_projection
            if self.sharing == "key_value"
            else self._projection("value_projection", shape)
        )

    def _projection(self, name, shape):
        # Variance 1/S: a sum over S positions keeps the scale of K and V.
        deviation = 1.0 / math.sqrt(self.sequence_length)
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=keras.initializers.RandomNormal(stddev=deviation),
            autocast=False,  # the sum over S runs in float32, weights too
        )

    def attend(
        self, query, key, value, *, key_mask, query_mask, causal, training
    ):
        length = ops.shape(key)[2]
        projections = (
            ops.cast(first_columns(p, length), key.dtype)
            for p in (self.key_projection, self.value_projection)
        )
        return attend(query, key, value, *projections)
