"""Local attention: exact softmax attention within a window.

out_t = softmax_s(q_t . k_s / sqrt D) V over t - W < s <= t, and without a
causal mask over |t - s| < W.

Cost: O(T W (D + V)) time, O(T W) memory; state: W - 1 keys and values.
Source: Beltagy, Peters, Cohan, "Longformer: the long-document transformer",
2020, arXiv 2004.05150, section 3.1; causal: Jiang et al., "Mistral 7B", 2023,
arXiv 2310.06825, section 2.
Differs from the papers: W counts the query's own position, and the visible
positions only (`skip_hidden`); no global tokens, no dilation.
"""

from typing import Any

import keras
from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.annotations import Tree
from keras_linattn.core.documents import Documents
from keras_linattn.core.documents import documents_of
from keras_linattn.core.masks import hide
from keras_linattn.core.masks import select
from keras_linattn.core.masks import spread
from keras_linattn.core.numerics import split_at
from keras_linattn.core.windows import Near
from keras_linattn.core.windows import attend_near
from keras_linattn.core.windows import last_keys
from keras_linattn.core.windows import near_by_place
from keras_linattn.core.windows import near_by_rank
from keras_linattn.core.windows import with_held
from keras_linattn.mechanisms._base import Mechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits


class WindowMechanism(Mechanism):
    """What mechanisms with a window share: its arguments, and its state.

    Args:
        window: int > 0, W.
        skip_hidden: bool.
        **kwargs: arguments of `Mechanism`.
    """

    def __init__(self, window: int, skip_hidden: bool, **kwargs: Any):
        super().__init__(**kwargs)
        if not isinstance(window, int) or window <= 0:
            raise ValueError(
                "`window` must be a positive integer, the number of positions "
                f"that a query sees. Received: window={window!r}."
            )
        if not isinstance(skip_hidden, bool):
            raise ValueError(
                "`skip_hidden` must be `True` or `False`. "
                f"Received: skip_hidden={skip_hidden!r}."
            )
        self.window = window
        self.skip_hidden = skip_hidden

    def near(
        self,
        length: int,
        causal: bool,
        mask: Tensor | None,
        held: Tensor | None = None,
        documents: Documents | None = None,
    ) -> Near:
        """`Near` of T positions; see `core/windows.py`."""
        options = {"held": held, "documents": documents}
        if mask is None or not self.skip_hidden:
            return near_by_place(length, self.window, causal, mask, **options)
        mask = ops.cast(mask, "bool")
        return near_by_rank(mask, self.window, causal, **options)

    def window_spec(
        self, num_heads: int, key_dim: int, value_dim: int
    ) -> keras.KerasTensor:
        """The last W - 1 keys and values, and 1 for those that are visible."""
        width = key_dim + value_dim + 1
        return keras.KerasTensor(
            (None, num_heads, self.window - 1, width),
            dtype=self.state_dtype,
        )

    def take_in(
        self,
        window: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None,
        documents: Documents | None = None,
    ) -> tuple[Tensor, Near, Tensor]:
        """Puts new positions behind those that a window holds.

        Returns:
            Entries `[B, H, W - 1 + T, D + V + 1]`, their `Near`, and the
            window that holds the last ones.
        """
        length = ops.shape(key)[2]
        held = window[:, 0, :, -1] > 0.5
        near = self.near(length, True, key_mask, held, documents)
        entries = entries_of(key, value, key_mask)
        entries = ops.concatenate([window, entries], axis=2)
        after = last_keys(near, entries, self.window)
        if documents is not None:
            after = self._of_last_document(after, near, documents.query)
        return entries, near, after

    def _of_last_document(self, window, near, documents):
        """Hides what the window holds of earlier documents."""
        numbers = with_held(documents, self.window - 1)
        numbers = spread(numbers, rank=4, axis=2)
        own = last_keys(near, numbers, self.window) == numbers[:, :, -1:]
        return select(own, window)


def entries_of(key, value, key_mask):
    """Keys, values and a column of 1 where visible, `[B, H, T, D + V + 1]`."""
    seen = hide(ops.ones_like(key[..., :1]), key_mask)
    return ops.concatenate([key, value, seen], axis=-1)


def split_entries(entries, key_dim):
    """Keys, values and the column of `entries_of`."""
    return split_at(entries, [key_dim, entries.shape[-1] - 1])


@register("local")
class Local(WindowMechanism):
    """Softmax attention of each position to those near it, in linear time.

    With `causal` a position sees itself and the W - 1 before it, without also
    the W - 1 after it: `sliding_window=W` of
    `keras.layers.MultiHeadAttention`. With W >= T it is softmax attention.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        window: int > 0, W. Defaults to 256.
        skip_hidden: bool, whether windows count the visible positions only,
            so that a hidden one, wherever it stands, is as if it were not
            there, and leaves a state as it is. `False` counts hidden ones
            too, as Keras' layer does, also in a state: then a prompt that is
            padded on the right goes on behind its padding. Both are the same
            for padding around a whole sequence. Defaults to `True`.
        **kwargs: arguments of `Mechanism`.

    Raises:
        ValueError: if an argument is out of range; if queries and keys differ
            in length.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> local = mechanisms.get({"name": "local", "window": 3})
    >>> tuple(local(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Beltagy et al., 2020, arXiv 2004.05150, section 3.1; Jiang et al.,
    2023, arXiv 2310.06825, section 2.
    """

    traits = Traits(
        causal=True,
        cross=False,
        recurrent=True,
        key_order_free=False,
        packs=True,
        splits=True,
        cost="T W (D + V)",
        state="W (D + V)",
        source="Beltagy et al. 2020, arXiv 2004.05150",
    )
    head_axes = {}
    keeps_near = True

    def __init__(
        self, window: int = 256, skip_hidden: bool = True, **kwargs: Any
    ):
        super().__init__(window, skip_hidden, **kwargs)

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
        length = ops.shape(query)[2]
        near = self.near(length, causal, key_mask, documents=documents)
        return attend_near(query, key, value, near)

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
        before = self.window - 1
        length = ops.shape(query)[2]
        if before > length:
            raise ValueError(
                "`window` must not exceed the length of a device's piece of "
                f"the sequence plus 1. Received: window={self.window}, "
                f"pieces of {length} positions. Use fewer devices or a "
                "shorter window."
            )
        entries = entries_of(key, value, key_mask)
        if before == 0:
            near = self.near(length, causal, key_mask, documents=documents)
            return attend_near(query, key, value, near)
        if causal:
            # The state at the end of the piece before this one.
            nothing = ops.zeros_like(entries[:, :, :before])
            *_, held = self.take_in(nothing, key, value, key_mask, documents)
            state = pieces.from_left(held)
            options = {"key_mask": key_mask, "documents": documents}
            return self.advance(state, query, key, value, **options)[0]

        def with_neighbours(x, axis):
            first, _ = split_at(x, [before], axis)
            _, last = split_at(x, [length - before], axis)
            parts = pieces.from_left(last), x, pieces.from_right(first)
            return ops.concatenate(parts, axis=axis)

        entries = with_neighbours(entries, axis=2)
        key, value, seen = split_entries(entries, key.shape[-1])
        seen = seen[:, 0, :, 0] > 0.5
        if documents is not None:
            ids = with_neighbours(pieces.ids, axis=1)
            documents = documents_of(ids)[0]
        near = self.near(length + 2 * before, False, seen, documents=documents)
        query = ops.pad(query, [(0, 0), (0, 0), (before, before), (0, 0)])
        return attend_near(query, key, value, near)[:, :, before:-before]

    def state_spec(self, num_heads: int, key_dim: int, value_dim: int) -> Tree:
        """`[B, H, W - 1, D + V + 1]`; the last column is 1 where visible."""
        return self.window_spec(num_heads, key_dim, value_dim)

    def advance(self, state, query, key, value, *, key_mask, documents=None):
        entries, near, state = self.take_in(
            state, key, value, key_mask, documents
        )
        key, value, _ = split_entries(entries, key.shape[-1])
        return attend_near(query, key, value, near), state
