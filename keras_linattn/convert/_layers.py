"""Linear layers in place of attention layers, and of this package's blocks."""

import keras

from keras_linattn import mechanisms
from keras_linattn.convert._sites import KERAS
from keras_linattn.convert._sites import mechanism_for
from keras_linattn.layers import LinearMultiHeadAttention
from keras_linattn.layers._base_layer import BaseLayer
from keras_linattn.layers._stacks import entries_of_blocks
from keras_linattn.models._base import FunctionalModel


def convert_attention(layer, mechanism):
    """A new layer with the arguments of an attention layer, not built.

    Args:
        layer: `MultiHeadAttention` or `GroupQueryAttention` of Keras, or a
            `LinearMultiHeadAttention`.
        mechanism: `Mechanism`, which the new layer gets a copy of.

    Returns:
        A `LinearMultiHeadAttention`, or another object of the layer's class.
    """
    ours = isinstance(layer, LinearMultiHeadAttention)
    if not ours and type(layer) not in KERAS:
        raise TypeError(
            "Only attention layers of known classes can be converted. "
            f"Received: `{type(layer).__name__}` of "
            f"{type(layer).__module__}. Use Keras' layer, or leave this "
            "layer out of `layers`."
        )
    config = layer.get_config()
    config["mechanism"] = copy_of(mechanism_for(layer, mechanism))
    if ours:
        return type(layer).from_config(config)
    if isinstance(layer, keras.layers.GroupQueryAttention):
        config["num_heads"] = config.pop("num_query_heads")
        config["key_dim"] = config.pop("head_dim")
    if config["sliding_window"] is not None:
        # Exact attention in a window is linear: the layer makes it `Local`.
        config["mechanism"] = mechanisms.Softmax()
    return LinearMultiHeadAttention.from_config(config)


def has_mechanism_argument(layer):
    """Is it a layer or model of this package with an argument `mechanism`?"""
    return isinstance(layer, (BaseLayer, FunctionalModel)) and (
        "mechanism" in layer.get_config()
    )


def convert_block(layer, mechanism, chosen):
    """A new block whose chosen attention layers have another mechanism.

    Args:
        layer: block of this package.
        mechanism: `Mechanism`, which each layer gets a copy of.
        chosen: list of attention layers inside the block.
    """
    config = layer.get_config()
    for name in ("mechanism", "cross_mechanism"):
        own = getattr(layer, name, None)
        for attention in chosen:
            if attention.mechanism is own:
                config[name] = copy_of(mechanism_for(attention, mechanism))
    return type(layer).from_config(config)


def convert_model(model, mechanism, chosen):
    """A new model whose blocks with a chosen layer have another mechanism.

    Args:
        model: model of this package.
        mechanism: `Mechanism`, which each block gets a copy of.
        chosen: list of attention layers inside the model.
    """
    config = model.get_config()
    entries = entries_of_blocks(
        "mechanism", config["mechanism"], model.num_layers
    )
    owners = [
        layer.mechanism
        for layer in model.layers
        if hasattr(layer, "mechanism")
        for _ in range(getattr(layer, "num_layers", 1))
    ]
    config["mechanism"] = [
        as_entry(mechanism)
        if any(attention.mechanism is own for attention in chosen)
        else entry
        for own, entry in zip(owners, entries, strict=True)
    ]
    return type(model).from_config(config)


def copy_of(mechanism):
    """A new mechanism with the same arguments and a new name."""
    config = mechanism.get_config()
    del config["name"]
    return type(mechanism).from_config(config)


def as_entry(mechanism):
    """The mechanism as a dict, to which a model can add its input sizes.

    One that is not registered is returned as a copy.
    """
    name = mechanisms.name_of(mechanism)
    if name is None:
        return copy_of(mechanism)
    config = mechanism.get_config()
    for unused in ("name", "trainable", "dtype"):
        del config[unused]
    return {"name": name, **config}
