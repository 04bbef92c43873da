"""Targets for language models whose rows hold several documents."""

import numpy as np
from keras import ops

from keras_linattn.core.annotations import Tensor


def next_token_targets(
    tokens: Tensor, segment_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns what follows each token, and where that is to be learnt.

    The last token of a document has no target: what follows it in the row is
    the beginning of another document, or padding.

    Args:
        tokens: int array or tensor `(B, T)`, or `(T,)` for one row; 0 is
            padding where there are no `segment_ids`.
        segment_ids: int array or tensor of the same shape: equal ids stand
            side by side, and 0 marks padding. Defaults to `None`: one
            document a row.

    Returns:
        Targets, of the shape and dtype of `tokens`, 0 where there is none; and
        float32 sample weights of that shape, 1 or 0. NumPy arrays unless
        `tokens` is a tensor of the backend.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> targets, weights = keras_linattn.models.next_token_targets(
    ...     np.array([5, 6, 7, 8, 9, 0]), np.array([1, 1, 1, 2, 2, 0]))
    >>> targets.tolist(), weights.astype(int).tolist()
    ([6, 7, 0, 9, 0, 0], [1, 1, 0, 1, 0, 0])
    """
    xp = ops if ops.is_tensor(tokens) else np
    if segment_ids is None:
        segment_ids = xp.not_equal(tokens, 0)
    following = _shifted(xp, tokens)
    counts = xp.logical_and(
        xp.equal(segment_ids, _shifted(xp, segment_ids)),
        xp.not_equal(segment_ids, 0),
    )
    targets = xp.where(counts, following, xp.zeros_like(following))
    if xp is np:
        return targets, counts.astype("float32")
    return targets, ops.cast(counts, "float32")


def _shifted(xp, x):
    """What follows each position, and 0 at the end."""
    return xp.concatenate([x[..., 1:], xp.zeros_like(x[..., :1])], axis=-1)
