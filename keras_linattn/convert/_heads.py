"""Attention layers of other packages that attend through a mechanism.

A layer inside a block of another package cannot be replaced, because the block
makes it again whenever the block is loaded. `exchange` changes its class to a
subclass with the same variables that attends through a mechanism.
"""

import contextlib
import dataclasses
import functools

import keras
from keras import ops

from keras_linattn.convert import _states
from keras_linattn.convert._sites import HUB
from keras_linattn.convert._sites import KERAS
from keras_linattn.convert._sites import heads_of
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import key_mask_from_attention_mask
from keras_linattn.core.shapes import AxisFolding
from keras_linattn.mechanisms import Softmax


@dataclasses.dataclass(frozen=True)
class Masks:
    """The parts of a mask `(B, T, S)`.

    Not a tuple: Keras rejects an argument that mixes tensors and other values.

    Args:
        query: bool tensor `(B, T)`, or `None`.
        key: bool tensor `(B, S)`, or `None`.
        causal: bool.
    """

    query: object = None
    key: object = None
    causal: bool = False


def masks_from(mask):
    """Returns the `Masks` of a mask that a layer was called with.

    Raises:
        ValueError: if it may depend on the query.
    """
    if mask is None or isinstance(mask, Masks):
        return mask or Masks()
    return Masks(key=key_mask_from_attention_mask(mask))


class ThroughMechanism:
    """Base of exchanged layers, which attend through `self.mechanism`."""

    def _attend(self, query, key, value, masks, training=None):
        """Attends over heads `(B, ..., H, D)`, as the layer projects them."""
        folding = AxisFolding(
            len(query.shape) - 1, getattr(self, "_attention_axes", None)
        )
        query_mask = folding.fold_mask(masks.query)
        heads = self.mechanism(
            *(folding.fold(x) for x in (query, key, value)),
            key_mask=folding.fold_mask(masks.key),
            query_mask=query_mask,
            causal=masks.causal,
            training=training,
        )
        heads = apply_mask(heads, query_mask)
        heads = self._dropout_layer(heads, training=training)
        return folding.unfold(heads, like=query)

    def _scores(self, query, key, masks):
        folding = AxisFolding(len(query.shape) - 1, self._attention_axes)
        return self.mechanism.attention_scores(
            folding.fold(query),
            folding.fold(key),
            key_mask=folding.fold_mask(masks.key),
            causal=masks.causal,
        )

    def _advance(self, query, key, value, cache, start):
        """Attends to new positions, from the state in a cache, see `_states`.

        Args:
            query: tensor `(B, T, H, D)`, new positions.
            key: tensor `(B, T, H, D)`.
            value: tensor `(B, T, H, D)`.
            cache: tensor `(B, N)`.
            start: int or int tensor, the index of the first new position.

        Returns:
            Tensor `(B, T, H, D)`, and the new cache.
        """
        query, key, value = (
            ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value)
        )
        sizes = (query.shape[1], query.shape[3], value.shape[3])
        mechanism = self.with_states(_places_in(cache, *sizes))
        state = _states.unpacked(cache, mechanism.state_spec(*sizes))
        heads, state = mechanism.step(
            state,
            query,
            key,
            value,
            key_mask=_states.visible(cache, ops.shape(query)[2], start),
        )
        heads = ops.transpose(heads, (0, 2, 1, 3))
        return heads, _states.packed(cache, state)

    def with_states(self, length):
        """The mechanism; softmax gets a cache of `length` positions."""
        if isinstance(self.mechanism, Softmax):
            return _cached_softmax(length, self.mechanism.dtype_policy.name)
        return self.mechanism

    def head_sizes(self):
        """Heads H, and the sizes D and V of each."""
        return heads_of(self)[:3]


def _places_in(cache, heads, key_dim, value_dim):
    """Returns the number of positions in an exact layer's cache `(B, N)`."""
    # Two columns are other numbers: the limit of `_states`, and a count.
    return (cache.shape[1] - 2) // (heads * (key_dim + value_dim))


@functools.lru_cache(maxsize=64)
def _cached_softmax(length, policy):
    return Softmax(cache_length=length, dtype=policy)


class _KerasHeads(ThroughMechanism):
    """For Keras' layers, whose masks come in parts."""

    def _compute_attention_mask(
        self,
        query,
        value,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        use_causal_mask=False,
    ):
        key = masks_from(attention_mask).key
        return Masks(
            combine_masks(query_mask),
            combine_masks(value_mask, key_mask, key),
            use_causal_mask,
        )

    def _compute_attention(
        self,
        query,
        key,
        value,
        attention_mask=None,
        training=None,
        return_attention_scores=False,
    ):
        masks = masks_from(attention_mask)
        heads = self._attend(query, key, value, masks, training)
        if not return_attention_scores:
            return heads, None
        return heads, self._scores(query, key, masks)


class _CachedHeads(_KerasHeads):
    """For KerasHub's `CachedMultiHeadAttention`, with a state for a cache."""

    def call(
        self,
        query,
        value,
        key=None,
        attention_mask=None,
        cache=None,
        cache_update_index=None,
        return_attention_scores=False,
        training=None,
    ):
        if cache is None:
            return super().call(
                query,
                value,
                key=key,
                attention_mask=attention_mask,
                return_attention_scores=return_attention_scores,
                training=training,
            )
        heads, cache = self._advance(
            self._query_dense(query),
            self._key_dense(value if key is None else key),
            self._value_dense(value),
            cache,
            cache_update_index,
        )
        return self._output_dense(heads), cache


class _RotaryHeads(ThroughMechanism):
    """For layers of decoders with rotary positions and grouped keys."""

    def call(
        self,
        hidden_states,
        attention_mask=None,
        cache=None,
        cache_update_index=None,
        training=None,
    ):
        start = 0 if cache_update_index is None else cache_update_index
        heads = self._projected(hidden_states, start)
        if cache is None:
            masks = masks_from(attention_mask)
            return self._output_dense(self._attend(*heads, masks, training))
        heads, cache = self._advance(*heads, cache, start)
        return self._output_dense(heads), cache

    def _projected(self, x, start):
        """Query, key and value `(B, T, H, D)`, normalised and rotated."""
        query, key = self._query_dense(x), self._key_dense(x)
        if hasattr(self, "_query_dense_layer_norm"):
            query = self._query_dense_layer_norm(query)
            key = self._key_dense_layer_norm(key)
        query, key = (
            self.rotary_embedding_layer(heads, start_index=start)
            for heads in (query, key)
        )
        groups = self.num_key_value_groups
        key, value = (
            ops.repeat(heads, groups, axis=2)
            for heads in (key, self._value_dense(x))
        )
        return query, key, value


# Classes of KerasHub by name, since it is imported in functions only.
HUB_HEADS = {
    "CachedMultiHeadAttention": _CachedHeads,
    **dict.fromkeys(HUB, _RotaryHeads),
}


def heads_for(cls):
    """The base for a subclass of an attention layer's class, or `None`."""
    if cls in KERAS:
        return _KerasHeads
    if cls.__module__.partition(".")[0] == "keras_hub":
        return HUB_HEADS.get(cls.__name__)
    return None


@functools.cache
def _exchanged_class(cls):
    return type(f"Linear{cls.__name__}", (heads_for(cls), cls), {})


def exchange(layer, mechanism):
    """Makes a layer, built or not, attend through a mechanism.

    Args:
        layer: attention layer of a class that `heads_for` knows.
        mechanism: `Mechanism`, which becomes the layer's.

    Raises:
        ValueError: if the mechanism has gates, which need the layer's input.
    """
    if mechanism.traits.gated:
        raise ValueError(
            "A mechanism with gates needs the layer's input, which attention "
            "inside another layer does not pass on. Received: "
            f"`{type(mechanism).__name__}`. Use a mechanism without the trait "
            "`gated`, such as 'hedgehog' or 'linear_transformer'."
        )
    layer.__class__ = _exchanged_class(type(layer))
    if layer.built:
        return _give(layer, mechanism)
    build = layer.build  # of the former class, bound to the layer

    @functools.wraps(build)
    def build_both(*args, **kwargs):
        build(*args, **kwargs)
        _give(layer, mechanism)

    layer.build = build_both


def _give(layer, mechanism):
    """Builds the mechanism of a built layer, under the layer's name."""
    # States are in float32 under half-precision policies too.
    layer.autocast = False
    heads, key_dim, value_dim = layer.head_sizes()
    with contextlib.ExitStack() as stack:
        for name in layer.path.split("/"):
            stack.enter_context(keras.name_scope(name))
        mechanism.build(
            *((None, heads, None, size) for size in (key_dim, key_dim)),
            (None, heads, None, value_dim),
        )
    # Keras locks a built layer; the mechanism must be added all the same.
    layer._tracker.unlock()
    layer.mechanism = mechanism
    layer._tracker.lock()
    if not layer.trainable:
        mechanism.trainable = False
    for sublayer in layer._flatten_layers(include_self=False):
        # Keras' softmax is not called; `quantize` rejects unbuilt layers.
        sublayer.built = True
