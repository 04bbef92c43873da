"""Checks of arguments and shapes that several layers share."""

import keras

from keras_linattn.core.masks import mask_inputs


def positive(name, value):
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}."
        )
    return value


def above_one(name, value):
    if not isinstance(value, int) or value < 2:
        raise ValueError(
            f"`{name}` must be an integer above 1, so that a position sees "
            f"the one before. Received: {name}={value!r}."
        )
    return value


def rate(value):
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(
            "`dropout` must be a number from 0 up to, not including, 1. "
            f"Received: dropout={value!r}."
        )
    return value


def as_tuple(name, value):
    """An int or a sequence of ints as a tuple; `None` stays."""
    if value is None or value == ():
        return None
    value = (value,) if isinstance(value, int) else value
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(entry, int) for entry in value
    ):
        raise ValueError(
            f"`{name}` must be an integer, or a list or tuple of them. "
            f"Received: {name}={value!r}."
        )
    return tuple(value)


def check_input_shapes(query_shape, value_shape, key_shape):
    """Static check that three inputs can be attended over."""
    ranks = {len(query_shape), len(value_shape), len(key_shape)}
    shapes = (
        f"Received: query shape {tuple(query_shape)}, value shape "
        f"{tuple(value_shape)}, key shape {tuple(key_shape)}."
    )
    if len(ranks) > 1 or min(ranks) < 3:
        raise ValueError(
            "Attention needs inputs of one rank, at least 3: (batch, "
            f"length, features). {shapes} Add the missing axis, for "
            "example with `keras.layers.Reshape`."
        )
    if tuple(value_shape[1:-1]) != tuple(key_shape[1:-1]):
        raise ValueError(
            f"`key` and `value` must have the same length. {shapes} Leave "
            "`key` out to attend over `value`."
        )


def known_features(features):
    """The features of the input of a layer that is not built yet."""
    if features is None:
        raise ValueError(
            "A layer that is not built needs `features`, the features of its "
            "input, to know the size of its state. Received: features=None. "
            "Pass `features`, or build the layer first."
        )
    return positive("features", features)


def check_floating(**inputs):
    """Static check that what is attended are no token ids or pixels."""
    given = {name: x for name, x in inputs.items() if x is not None}
    for name, x in given.items():
        dtype = keras.backend.standardize_dtype(x.dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise TypeError(
                "The inputs of this layer must be floating-point tensors. "
                f"Received: {name} of dtype {dtype}, shape {tuple(x.shape)}. "
                "Embed token ids with `keras.layers.Embedding` first, or "
                'convert numbers with `keras.ops.cast(x, "float32")`.'
            )


def check_mask(name, mask, x):
    """Static check that a mask has one entry for each position of `x`."""
    if mask is None:
        return
    shape, expected = tuple(mask.shape), tuple(x.shape[:-1])
    if len(shape) != len(expected) or any(
        None not in (size, wanted) and size not in (1, wanted)
        for size, wanted in zip(shape, expected)
    ):
        raise ValueError(
            "A mask must have one entry for each position. Received: "
            f"{name} of shape {shape}, expected {expected}. Leave out the "
            "axes of features, heads and queries. If you passed a value as "
            "the second argument of `LinearSelfAttention`, which takes one "
            "input, use `LinearMultiHeadAttention`."
        )


def check_segment_ids(segment_ids, query, key=None, causal=False):
    """Static check of `segment_ids`, an int tensor or a pair of them.

    Args:
        segment_ids: tensor `(B, T)`, or tensors `(B, T)` and `(B, S)`.
        query: tensor `(B, T, ...)`.
        key: optional tensor `(B, S, ...)`. Defaults to `None`: `query`.
        causal: bool. Defaults to `False`.
    """
    pair = isinstance(segment_ids, (tuple, list))
    key = query if key is None else key
    if len(query.shape) > 3 or (pair and (causal or len(segment_ids) != 2)):
        raise ValueError(
            "`segment_ids` must be one tensor (batch, length). Without a "
            "causal mask a pair of them, for queries and for keys, is also "
            "accepted. Inputs must be (batch, length, features). Received: "
            f"{len(segment_ids) if pair else 1} of them, causal={causal}, an "
            f"input of rank {len(query.shape)}. Attend over one axis, or give "
            "each document a row of its own."
        )
    for ids, x in zip(
        segment_ids if pair else (segment_ids,) * 2, (query, key)
    ):
        _check_ids(ids, x.shape[:2])


def _check_ids(ids, expected):
    dtype = keras.backend.standardize_dtype(getattr(ids, "dtype", "float32"))
    shape = tuple(getattr(ids, "shape", ()))
    if not keras.backend.is_int_dtype(dtype):
        raise TypeError(
            "`segment_ids` must be integers, 0 for padding. Received: dtype "
            f"{dtype}, shape {shape}. Convert them with "
            '`keras.ops.cast(x, "int32")`, and make a `keras.Input` for them '
            'with `dtype="int32"`.'
        )
    if len(shape) != 2 or any(
        isinstance(size, int) and isinstance(wanted, int) and size != wanted
        for size, wanted in zip(shape, expected)
    ):
        raise ValueError(
            "`segment_ids` must have one entry for each position. Received: "
            f"shape {shape}, expected {tuple(expected)}. For keys of another "
            "length pass a pair, the ids of the queries and those of the keys."
        )


def clear(query, key, value, query_mask, key_mask):
    """The three inputs with nothing behind their masks, which are checked."""
    check_mask("query_mask", query_mask, query)
    check_mask("the mask of keys and values", key_mask, value)
    return mask_inputs([query, key, value], [query_mask, key_mask, key_mask])


def check_streaming(causal, return_scores, one_length_axis):
    """Checks that a call with a state is one that has states."""
    if causal and not return_scores and one_length_axis:
        return
    raise ValueError(
        "`initial_state` and `return_state` need causal attention over inputs "
        "(batch, length, features), without `return_attention_scores`. "
        f"Received: causal={causal}, return_attention_scores={return_scores}, "
        f"inputs of rank {'3' if one_length_axis else 'above 3'}. Pass "
        "`causal=True` to `LinearSelfAttention`, or `use_causal_mask=True` to "
        "`LinearMultiHeadAttention`."
    )
