"""Masks over keys. `True` (or 1) marks a visible position, everywhere."""

from keras import backend
from keras import ops


def combine_masks(*masks):
    """Logical AND of the masks that are not `None`; `None` if all are.

    Args:
        *masks: bool or 0/1 tensors of one shape, or `None`.

    Returns:
        Bool tensor, or `None`.
    """
    combined = None
    for mask in masks:
        if mask is not None:
            # One mask given twice stays one object: `mask_inputs` sees that.
            dtype = getattr(mask, "dtype", None)
            if backend.standardize_dtype(dtype) != "bool":
                mask = ops.cast(mask, "bool")
            combined = (
                mask if combined is None else ops.logical_and(combined, mask)
            )
    return combined


def apply_mask(x, mask, axis=-2, value=0):
    """Sets masked positions to 0, or to `value`.

    Selects rather than multiplies, since 0 * NaN is NaN.

    Args:
        x: tensor `[B, H, S, D]`, or `[B, S, D]`.
        mask: bool tensor `(B, S)`, or `None` (then `x` is returned as it is).
        axis: int, the axis of `x` that runs over positions.
        value: float. Defaults to 0.

    Returns:
        Tensor of `x`'s shape.
    """
    if mask is None:
        return x
    visible = expand_to_rank(mask, len(x.shape), axis)
    return ops.where(visible, x, ops.cast(value, x.dtype))


def select(condition, x):
    """`x` where the condition holds, else 0."""
    return ops.where(condition, x, ops.cast(0, x.dtype))


def nan_where(condition, x):
    """NaN where the condition holds, else `x`."""
    return ops.where(condition, ops.cast(float("nan"), x.dtype), x)


def take_positions(x, index):
    """The entries of `[B, H, T, F]` at places `(B, N)`: `[B, H, N, F]`."""
    return ops.take_along_axis(x, expand_to_rank(index, rank=4, axis=2), axis=2)


def mask_inputs(inputs, masks):
    """Sets the masked positions of a layer's inputs to 0.

    Call it before any product. The gradient of a kernel is a sum of products
    with the inputs, and 0 * NaN is NaN: NaN in a masked row would reach it.

    Args:
        inputs: list of tensors `(B, ..., F)`. A tensor that is listed twice
            with one mask is masked once.
        masks: list of bool tensors `(B, ...)` or `None`, one for each input.

    Returns:
        List of tensors. An input whose mask is `None` stays unchanged.
    """
    cleared = {}
    for x, mask in zip(inputs, masks, strict=True):
        if mask is not None and (id(x), id(mask)) not in cleared:
            visible = ops.expand_dims(mask, -1)
            cleared[id(x), id(mask)] = select(visible, x)
    return [cleared.get((id(x), id(m)), x) for x, m in zip(inputs, masks)]


def expand_to_rank(mask, rank, axis):
    """Reshapes a `(B, S)` mask so that S lies on `axis` of a `rank`-D tensor.

    Args:
        mask: tensor `(B, S)`.
        rank: int, rank of the tensor that the mask must broadcast against.
        axis: int, the axis of the result that holds S.

    Returns:
        Tensor of rank `rank` with B first, S on `axis` and 1 elsewhere.
    """
    axis = axis % rank
    # expand_dims, not mask[:, None]: LiteRT turns the latter into Flex ops.
    for position in range(1, rank):
        if position != axis:
            mask = ops.expand_dims(mask, position)
    return mask


def visible_places(mask):
    """The indices of the visible positions, in order.

    Args:
        mask: bool tensor `(B, T)`.

    Returns:
        Tensor of int32 `(B, T)`. Entries after the last visible position are
        T - 1.
    """
    length = ops.shape(mask)[1]
    place = ops.arange(length, dtype="int32")
    places = ops.sort(ops.where(mask, place, length), axis=1)
    return ops.cast(ops.minimum(places, length - 1), "int32")


def visible_span(mask):
    """Where the visible positions begin and end, and the gaps between them.

    Args:
        mask: bool tensor `(B, T)`.

    Returns:
        Two tensors of int32 `(B, 1)`, the first visible position and the one
        after the last, both 0 where there is none; and a bool tensor `(B, T)`,
        `True` for masked positions between visible ones.
    """
    visible = ops.cast(mask, "int32")
    seen = ops.cumsum(visible, axis=1)
    count = ops.sum(visible, axis=1, keepdims=True)
    before_last = seen < count

    def number_of(places):
        return ops.sum(ops.cast(places, "int32"), axis=1, keepdims=True)

    end = number_of(before_last) + ops.cast(count > 0, "int32")
    start = ops.minimum(number_of(ops.equal(seen, 0)), end)
    gap = ops.logical_and(before_last, seen > 0)
    return start, end, ops.logical_and(gap, ops.logical_not(mask))


def key_mask_from_attention_mask(attention_mask):
    """Converts an attention mask that ignores the query to a key mask.

    Only the static shape decides, so that it also works in a compiled graph.

    Args:
        attention_mask: tensor `(B, S)`, `(B, 1, S)` or `(B, 1, 1, S)`.

    Returns:
        Bool tensor `(B, S)`.

    Raises:
        ValueError: if the shape lets the mask depend on the query or the head.
    """
    shape = tuple(attention_mask.shape)
    if len(shape) not in (2, 3, 4) or any(size != 1 for size in shape[1:-1]):
        raise ValueError(
            "`attention_mask` must not depend on the query position: linear "
            "attention sums over the keys once for all queries. "
            f"Received: shape {shape}, expected (batch, source) or "
            "(batch, 1, source). Pass `value_mask=` for padding, "
            "`use_causal_mask=True` for causal attention, or use "
            "`keras.layers.MultiHeadAttention` for any other mask."
        )
    for _ in shape[1:-1]:
        attention_mask = ops.squeeze(attention_mask, 1)
    return ops.cast(attention_mask, "bool")


def first_given(*masks):
    """Returns the first mask that is not `None`, or `None`.

    Keras passes an implicit mask under another name if a layer is called with
    more than one tensor. A layer therefore looks at several arguments.
    """
    return next((mask for mask in masks if mask is not None), None)
