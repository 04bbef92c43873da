"""Blocks and models of any class, some of whose attention is exchanged."""

import functools

import keras

from keras_linattn import mechanisms
from keras_linattn.convert._heads import Masks
from keras_linattn.convert._heads import ThroughMechanism
from keras_linattn.convert._heads import exchange
from keras_linattn.convert._heads import heads_for
from keras_linattn.convert._heads import masks_from
from keras_linattn.convert._layers import copy_of
from keras_linattn.convert._sites import sites_of
from keras_linattn.core.masks import combine_masks


def entries_for(layer, mechanism, chosen):
    """What a layer's copy needs to know of the attention inside it.

    Args:
        layer: block or model.
        mechanism: `Mechanism`, which each chosen layer gets a copy of.
        chosen: list of attention layers inside `layer`.

    Returns:
        List with an entry for each attention layer: the config of its
        mechanism, or `None` if it is not chosen.

    Raises:
        ValueError: if the class of one is not known.
    """
    numbers = {id(attention) for attention in chosen}
    entries = []
    for site in sites_of(layer):
        entry = None
        if id(site.layer) in numbers:
            if heads_for(type(site.layer)) is None:
                raise ValueError(
                    "Inside another layer, attention must be of a class whose "
                    f"parts are known. Received: `{type(site.layer).__name__}`"
                    f" of {type(site.layer).__module__}."
                )
            entry = keras.saving.serialize_keras_object(
                _mechanism_for(site.layer, mechanism)
            )
        entries.append(entry)
    return entries


def _mechanism_for(layer, mechanism):
    window = getattr(layer, "_sliding_window", None) or getattr(
        layer, "sliding_window", None
    )
    options = {"name": "mechanism", "dtype": layer.dtype_policy}
    if window is not None:
        # Keras' window, exact, is linear in our form.
        return mechanisms.Local(window, skip_hidden=False, **options)
    config = copy_of(mechanism).get_config()
    return type(mechanism).from_config({**config, **options})


class ExchangedInside:
    """A base of layers that exchange attention layers inside themselves."""

    def _exchange_inside(self, attention):
        """Exchanges the attention layers that there are.

        Args:
            attention: list, from `entries_for`.
        """
        self.attention = attention
        for site, entry in zip(sites_of(self), attention, strict=True):
            if entry is not None:
                exchange(site.layer, mechanisms.get(entry))
        _exchange_blocks(self)


def _exchange_blocks(layer):
    """Lets decoder blocks hand on their masks in parts."""
    for block in [layer, *layer._flatten_layers(include_self=False)]:
        attention = getattr(block, "_self_attention_layer", None)
        if not isinstance(attention, ThroughMechanism):
            continue
        if hasattr(block, "_compute_self_attention_mask"):
            block.__class__ = _block_class(type(block))
            block.autocast = False  # its cache is a state, see `_heads`


@functools.cache
def _block_class(cls):
    return type(f"Linear{cls.__name__}", (MasksInParts, cls), {})


class MasksInParts:
    """A decoder block that does not merge its masks into one `(B, T, S)`."""

    def _compute_self_attention_mask(
        self,
        decoder_sequence,
        decoder_padding_mask,
        decoder_attention_mask,
        use_causal_mask=True,
        **unused,
    ):
        mask = decoder_padding_mask
        if mask is None:
            mask = getattr(decoder_sequence, "_keras_mask", None)
        other = masks_from(decoder_attention_mask).key
        return Masks(key=combine_masks(mask, other), causal=use_causal_mask)
