"""Blocks and models of any class in which some attention is exchanged."""

import functools
import importlib

import keras

from keras_linattn import mechanisms
from keras_linattn.convert._heads import Masks
from keras_linattn.convert._heads import ThroughMechanism
from keras_linattn.convert._heads import exchange
from keras_linattn.convert._heads import heads_for
from keras_linattn.convert._heads import masks_from
from keras_linattn.convert._sites import mechanism_for
from keras_linattn.convert._sites import sites_of
from keras_linattn.convert._sites import walk
from keras_linattn.core.masks import combine_masks


def entries_for(layer, mechanism, chosen):
    """Returns the entries that a layer's copy exchanges its attention by.

    Args:
        layer: block or model.
        mechanism: `Mechanism`, which each chosen layer gets a copy of.
        chosen: list of attention layers inside `layer`.

    Returns:
        List with an entry for each attention layer: the config of its
        mechanism, or `None` if it is not chosen.

    Raises:
        ValueError: if a chosen layer is of an unknown class.
    """
    numbers = {id(attention) for attention in chosen}
    entries = []
    for site in sites_of(layer):
        entry = None
        if id(site.layer) in numbers:
            if heads_for(type(site.layer)) is None:
                raise ValueError(
                    "Attention inside another layer must be of a known class. "
                    f"Received: `{type(site.layer).__name__}` of "
                    f"{type(site.layer).__module__}. Leave this layer out of "
                    "`layers`."
                )
            entry = keras.saving.serialize_keras_object(
                _copy_for(site.layer, mechanism)
            )
        entries.append(entry)
    return entries


def _copy_for(layer, mechanism):
    mechanism = mechanism_for(layer, mechanism)
    options = {"name": "mechanism", "dtype": layer.dtype_policy}
    return type(mechanism).from_config({**mechanism.get_config(), **options})


class ExchangedInside:
    """A base of layers that exchange attention layers inside themselves."""

    def _exchange_inside(self, attention):
        """Exchanges the attention layers that have an entry.

        Args:
            attention: list, from `entries_for`.
        """
        self._attention_entries = attention
        sites = sites_of(self)
        for site, entry in zip(sites, attention, strict=True):
            if entry is not None:
                exchange(site.layer, mechanisms.get(entry))
        for block in self._flatten_layers():
            if _is_decoder(block):
                _exchange_block(block)


@keras.saving.register_keras_serializable("keras_linattn")
class LinearizedLayer(ExchangedInside):
    """A layer of any class in which some attention layers are exchanged.

    Objects are of a subclass of this class and of the layer's own class. Files
    contain this one name for all of them; the config names the layer's own
    class. `linearize` and `from_config` make objects, the constructor does not.
    """

    @classmethod
    def from_config(cls, config):
        original, attention = config["layer"], config["attention"]
        layer = cls._restored(_class_of(original), original, attention)
        layer._quantized = config.get("quantized", {})
        return layer

    @staticmethod
    def _restored(base, original, attention):
        """Makes a layer from a class and the config of one of its objects."""
        cls = linearized_class(base)
        layer = super(LinearizedLayer, cls).from_config(original["config"])
        layer._original_config = original
        layer._attention_entries = attention
        if sites_of(layer):
            # The constructor made them; they have no weights yet.
            layer._exchange_inside(attention)
        return layer

    def get_config(self):
        # Keras can derive a config from the constructor's arguments, but not
        # in a class that defines `get_config`: the original is kept for that.
        config = dict(self._original_config["config"])
        now = super().get_config()
        config.update({key: now[key] for key in config if key in now})
        quantized = _quantized_inside(self)
        return {
            "layer": {**self._original_config, "config": config},
            "attention": self._attention_entries,
            **({"quantized": quantized} if quantized else {}),
        }

    def load_own_variables(self, store):
        # The constructor makes the sublayers anew, without quantization. Keras
        # fills this layer before the layers inside.
        _quantize_inside(self, getattr(self, "_quantized", {}))
        super().load_own_variables(store)


def _quantized_inside(layer):
    """The arguments of `quantize` of the layers inside, by their number."""
    return {
        str(number): {
            "mode": sub.quantization_mode,
            "config": sub.get_config().get("quantization_config"),
        }
        for number, (_, sub) in enumerate(walk(layer))
        if isinstance(
            sub.dtype_policy, keras.dtype_policies.QuantizedDTypePolicy
        )
    }


def _quantize_inside(layer, quantized):
    """Quantizes layers inside that are not yet, see `_quantized_inside`."""
    for number, (_, sub) in enumerate(walk(layer)):
        options = quantized.get(str(number))
        if options is not None and sub.quantization_mode is None:
            config = options["config"]
            if config is not None:
                config = keras.saving.deserialize_keras_object(config)
            sub.quantize(options["mode"], config=config)


def linearize_inside(layer, mechanism, chosen):
    """A copy of a layer with other attention inside, without its weights.

    Args:
        layer: block or model with a config.
        mechanism: `Mechanism`, which each layer gets a copy of.
        chosen: list of attention layers inside `layer`.
    """
    base = type(layer)
    original = {
        "module": base.__module__,
        "class_name": base.__name__,
        "registered_name": keras.saving.get_registered_name(base),
        "config": layer.get_config(),
    }
    entries = entries_for(layer, mechanism, chosen)
    copy = LinearizedLayer._restored(base, original, entries)
    if isinstance(layer, keras.Model) and not copy.built:
        copy.build_from_config(layer.get_build_config())
        copy.built = True  # as Keras does for a loaded model
    return copy


@functools.cache
def linearized_class(base):
    """The subclass of a layer's class whose attention is exchanged."""
    namespace = {}
    if not hasattr(base.build, "_is_default"):

        @functools.wraps(base.build)  # Keras looks at its arguments
        def build(self, *args, **kwargs):
            base.build(self, *args, **kwargs)
            entries = getattr(self, "_attention_entries", None)
            # The constructor builds a functional model before it has entries.
            if entries is not None and not _is_exchanged(self):
                self._exchange_inside(entries)

        namespace["build"] = build
    bases = (LinearizedLayer, base)
    if hasattr(base, "_compute_self_attention_mask"):
        bases = (LinearizedLayer, MasksInParts, base)
    cls = type(f"Linear{base.__name__}", bases, namespace)
    # Files contain the base's name; its config says which class to make.
    register = keras.saving.register_keras_serializable
    register("keras_linattn", name="LinearizedLayer")(cls)
    register("keras_linattn")(LinearizedLayer)
    return cls


def _is_exchanged(layer):
    return any(isinstance(x, ThroughMechanism) for x in layer._flatten_layers())


def _class_of(config):
    """The class of a serialised layer."""
    package = config["module"].partition(".")[0]
    if package == "keras":
        return getattr(keras.layers, config["class_name"])
    if package == "keras_hub":
        importlib.import_module("keras_hub")  # registers its layers
    for name in (config["registered_name"], config["class_name"]):
        found = keras.saving.get_registered_object(name)
        if found is not None:
            return found
    raise ValueError(
        "The class of a converted layer must be known to Keras. Received: "
        f"`{config['class_name']}` of {config['module']}. Decorate it with "
        "`keras.saving.register_keras_serializable`, or pass it in "
        "`custom_objects`."
    )


def _is_decoder(layer):
    """Is it a decoder block of KerasHub, with a mask and a cache?"""
    return hasattr(layer, "_compute_self_attention_mask") and hasattr(
        layer, "_self_attention_layer"
    )


def _exchange_block(block):
    """Makes a decoder block pass on its masks in parts, and states."""
    attention = block._self_attention_layer
    if not isinstance(attention, ThroughMechanism):
        # Exact attention, with a cache in the shape of the other blocks'.
        exact = mechanisms.Softmax(name="mechanism")
        exchange(attention, _copy_for(attention, exact))
    if not isinstance(block, MasksInParts):
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
