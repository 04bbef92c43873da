"""The states that layers and blocks are called with: specs and checks."""

from keras import KerasTensor
from keras import tree


def with_exact_states(kwargs):
    """Arguments of `keras.layers.Layer` for a layer that is called with states.

    Under half-precision policies Keras casts all that a layer is called with,
    also a state, whose sums over the length need float32. Such a layer casts
    its inputs itself.
    """
    return {**kwargs, "autocast": False}


def check_caches(
    cross_layer, encoder_sequence, self_cache, cross_cache, causal
):
    """Raises a `ValueError` unless these arguments go together.

    Args:
        cross_layer: the block's cross-attention layer or `None`.
        encoder_sequence: tensor or `None`.
        self_cache: tree of tensors or `None`.
        cross_cache: tree of tensors or `None`.
        causal: bool, the block's `use_causal_mask`.
    """
    has_cross = cross_layer is not None
    if self_cache is not None and not causal:
        raise ValueError(
            "A `self_attention_cache` needs causal attention, because it "
            "summarizes the positions before. Received: self_attention_cache "
            f"of {_shape(self_cache)}, use_causal_mask={causal!r}. Leave the "
            "cache out, or pass `use_causal_mask=True`."
        )
    if not has_cross and cross_cache is not None:
        raise ValueError(
            "A `cross_attention_cache` needs an `encoder_sequence`. "
            f"Received: cross_attention_cache of {_shape(cross_cache)}, "
            "encoder_sequence=None. Pass both, or leave the cache out."
        )
    if has_cross != (encoder_sequence is not None):
        raise ValueError(
            "A decoder block must be called with as many sequences as it was "
            f"built for, {1 + has_cross}. Received: encoder_sequence of "
            f"{_shape(encoder_sequence)}. Create one block with and one "
            "without cross-attention."
        )
    if has_cross and (self_cache is None) != (cross_cache is None):
        raise ValueError(
            "With cross-attention, you must pass both caches or none. "
            f"Received: self_attention_cache of {_shape(self_cache)}, "
            f"cross_attention_cache of {_shape(cross_cache)}. Start them with "
            "`get_initial_state` and `get_initial_cross_state`."
        )
    if cross_cache is not None and has_cross:
        _check_summary(cross_layer.mechanism)


def check_segments(cross_layer, decoder_ids, encoder_ids, cross_cache):
    """Raises a `ValueError` unless these arguments go together.

    Args:
        cross_layer: the block's cross-attention layer or `None`.
        decoder_ids: tensor or `None`.
        encoder_ids: tensor or `None`.
        cross_cache: tree of tensors or `None`.
    """
    given = (
        f"Received: decoder_segment_ids of {_shape(decoder_ids)}, "
        f"encoder_segment_ids of {_shape(encoder_ids)}"
    )
    wanted = decoder_ids is not None and cross_layer is not None
    if wanted != (encoder_ids is not None):
        raise ValueError(
            "A block with cross-attention needs both `decoder_segment_ids` "
            "and `encoder_segment_ids`, or none. Without cross-attention "
            f"`encoder_segment_ids` must be `None`. {given}. Pass both, or "
            "leave `encoder_segment_ids` out."
        )
    if wanted and cross_cache is not None:
        raise ValueError(
            "A `cross_attention_cache` can hold one document for each row. "
            f"{given}, cross_attention_cache of {_shape(cross_cache)}. Leave "
            "both caches out, or give each document a row of its own."
        )


def _check_summary(mechanism):
    """Raises a `ValueError` unless a state sums up keys in any order.

    Then the state after the last key is all that the bidirectional form knows
    of keys and values.
    """
    traits = mechanism.traits
    wanted = traits.recurrent and traits.bidirectional and traits.cross
    if not wanted or traits.positional or traits.gated:
        raise ValueError(
            "A `cross_attention_cache` needs a mechanism whose state does not "
            "depend on the order of the keys. Received: cross_mechanism of "
            f"class `{type(mechanism).__name__}`. Leave both caches out, or "
            "use a mechanism such as 'linear_transformer'."
        )


def cache_spec(cache):
    """`KerasTensor`s of the shapes and dtypes in a tree of tensors."""
    return tree.map_structure(lambda x: KerasTensor(x.shape, x.dtype), cache)


def _shape(x):
    """For error messages: shapes, never values."""
    shapes = [tuple(leaf.shape) for leaf in tree.flatten(x) if leaf is not None]
    return f"shape {', '.join(map(str, shapes))}" if shapes else "None"


def with_batch(spec, batch):
    """The state's spec for a batch size, which may be `None`."""
    return tree.map_structure(
        lambda x: KerasTensor((batch, *x.shape[1:]), dtype=x.dtype), spec
    )
