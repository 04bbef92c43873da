"""Layouts: the one place where axes change places.

Letters, here and everywhere in the package:

    B batch        H heads          T query length    S key length
    D key dim      V value dim      R feature rank    C chunk length
    F features of the layer's input

Keras projects to `[B, T, H, D]` (and its `dot_product_attention` calls the
head size H); mechanisms work on `[B, H, T, D]`.
"""

import math

from keras import ops


def heads_first(x):
    """`[B, T, H, D]` to `[B, H, T, D]`, and back: it is its own inverse."""
    return ops.transpose(x, (0, 2, 1, 3))


heads_last = heads_first


class AxisFolding:
    """Reduces attention over any axes to attention over one.

    Attended axes become T, the others join the batch. For the usual input of
    one sequence axis this is `heads_first` and nothing else.

    Args:
        rank: int, rank of the layer's input `(B, ..., F)`.
        attention_axes: tuple of int or `None` (all axes between batch and
            features), the attended axes of that input.

    Raises:
        ValueError: if an axis is out of range or is named twice.
    """

    def __init__(self, rank, attention_axes=None):
        inner = tuple(range(1, rank - 1))
        self.attended = inner
        if attention_axes is not None:
            axes = tuple(a + rank if a < 0 else a for a in attention_axes)
            if not axes or len(set(axes)) < len(axes) or set(axes) - set(inner):
                raise ValueError(
                    "`attention_axes` must name axes between the batch and the "
                    f"feature axis, each once: one or more of {inner}. "
                    f"Received: attention_axes={tuple(attention_axes)} for an "
                    f"input of rank {rank}."
                )
            self.attended = tuple(sorted(axes))
        self.free = tuple(a for a in inner if a not in self.attended)
        self.trivial = rank == 3
        # The projected tensor (B, ..., H, D) has one axis more.
        self._order = (0, *self.free, rank - 1, *self.attended, rank)

    def folded_shape(self, shape):
        """Static `[B', H, T, D]` of `(B, ..., H, D)`; `None` = unknown."""
        batch = [shape[a] for a in (0, *self.free)]
        length = [shape[a] for a in self.attended]
        return (_product(batch), shape[-2], _product(length), shape[-1])

    def folded_features_shape(self, shape):
        """Static `(B', T, F)` of the layer's input `(B, ..., F)`."""
        heads = self.folded_shape((*shape[:-1], 1, shape[-1]))
        return (heads[0], *heads[2:])

    def fold_features(self, x):
        """The layer's input `(B, ..., F)` to `(B', T, F)`."""
        if self.trivial:
            return x
        return ops.squeeze(self.fold(ops.expand_dims(x, -2)), 1)

    def fold(self, x):
        """`(B, ..., H, D)` to `[B', H, T, D]`."""
        if self.trivial:
            return heads_first(x)
        shape = ops.shape(x)
        batch = math.prod(shape[a] for a in (0, *self.free))
        length = math.prod(shape[a] for a in self.attended)
        x = ops.transpose(x, self._order)
        return ops.reshape(x, (batch, shape[-2], length, shape[-1]))

    def fold_mask(self, mask):
        """`(B, ...)`, one entry for each position, to `(B', T)`."""
        if mask is None or self.trivial:
            return mask
        shape = ops.shape(mask)
        batch = math.prod(shape[a] for a in (0, *self.free))
        length = math.prod(shape[a] for a in self.attended)
        mask = ops.transpose(mask, (0, *self.free, *self.attended))
        return ops.reshape(mask, (batch, length))

    def unfold(self, x, like):
        """`[B', H, T, V]` back to `(B, ..., H, V)`.

        Args:
            x: tensor `[B', H, T, V]`.
            like: tensor `(B, ..., H, D)`, as it was before `fold`.
        """
        if self.trivial:
            return heads_last(x)
        shape = (*ops.shape(like)[:-1], ops.shape(x)[-1])
        x = ops.reshape(x, tuple(shape[a] for a in self._order))
        inverse = [0] * len(self._order)
        for place, axis in enumerate(self._order):
            inverse[axis] = place
        return ops.transpose(x, inverse)


def _product(sizes):
    return None if None in sizes else math.prod(sizes)
