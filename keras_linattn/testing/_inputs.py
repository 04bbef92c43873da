"""Random heads and masks, as NumPy arrays."""

import dataclasses
from typing import Any
from typing import Self

import numpy as np

from keras_linattn.core.annotations import Shape


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a mechanism is called with, as NumPy arrays.

    Args:
        query: float32 array `[B, H, T, D]`.
        key: float32 array `[B, H, S, D]`.
        value: float32 array `[B, H, S, V]`.
        key_mask: bool array `(B, S)`, `True` = visible, or `None`.
        query_mask: bool array `(B, T)`, or `None`.

    Example:

    >>> from keras_linattn import testing
    >>> inputs = testing.random_inputs(queries=3, keys=5)
    >>> inputs.query.shape, inputs.key.shape, inputs.key_mask
    ((2, 2, 3, 4), (2, 2, 5, 4), None)
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    key_mask: np.ndarray | None = None
    query_mask: np.ndarray | None = None

    @property
    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """Shapes of query, key and value."""
        return self.query.shape, self.key.shape, self.value.shape

    def replace(self, **arrays: Any) -> Self:
        """A copy with some arrays replaced."""
        return dataclasses.replace(self, **arrays)

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Key and query mask, all `True` where there is none."""
        batch, _, queries, _ = self.query.shape
        keys = self.key.shape[2]
        return (
            np.ones((batch, keys), bool)
            if self.key_mask is None
            else self.key_mask,
            np.ones((batch, queries), bool)
            if self.query_mask is None
            else self.query_mask,
        )


def random_inputs(
    batch: int = 2,
    heads: int = 2,
    queries: int = 6,
    keys: int = 6,
    key_dim: int = 4,
    value_dim: int = 4,
    visible: float | None = None,
    scale: float = 1.0,
    seed: int = 0,
) -> Inputs:
    """Normal heads, and masks that leave the given part visible.

    Args:
        batch: int, B.
        heads: int, H.
        queries: int, T.
        keys: int, S. With T = S both masks are the same, as in
            self-attention.
        key_dim: int, D.
        value_dim: int, V.
        visible: float in [0, 1] or `None`, probability that a position is
            visible. Defaults to `None`: no masks.
        scale: float, standard deviation of the heads. Defaults to 1.
        seed: int.

    Returns:
        `Inputs`.

    Example:

    >>> from keras_linattn import testing
    >>> testing.random_inputs(visible=0.5).key_mask.shape
    (2, 6)
    """
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return (scale * rng.standard_normal(shape)).astype("float32")

    key_mask = query_mask = None
    if visible is not None:
        key_mask = rng.random((batch, keys)) < visible
        query_mask = rng.random((batch, queries)) < visible
        if queries == keys:
            query_mask = key_mask
    return Inputs(
        normal(batch, heads, queries, key_dim),
        normal(batch, heads, keys, key_dim),
        normal(batch, heads, keys, value_dim),
        key_mask,
        query_mask,
    )
