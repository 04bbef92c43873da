"""Copies weights from a model to its converted copy."""

import keras
from keras import ops

from keras_linattn.mechanisms import Mechanism


def carry(old, new):
    """Assigns the weights of `old`, and their `trainable` flags, to `new`.

    Layers of a model are matched by name. Weights in a layer are matched by
    their order. Weights of a mechanism are copied only to a mechanism of the
    same class.

    Args:
        old: layer or model.
        new: the same after conversion.
    """
    if isinstance(old, keras.Model) and isinstance(new, keras.Model):
        layers = {layer.name: layer for layer in new.layers}
        if [layer.name for layer in old.layers] and all(
            layer.name in layers for layer in old.layers
        ):
            for layer in old.layers:
                carry(layer, layers[layer.name])
            return
    _carry_weights(old, new)


def _carry_weights(old, new):
    theirs, their_mechanisms = _split(old)
    ours, our_mechanisms = _split(new)
    _assign(old, theirs, ours)
    if len(their_mechanisms) == len(our_mechanisms):
        for one, other in zip(their_mechanisms, our_mechanisms):
            if type(one) is type(other):
                _assign(one, one.weights, other.weights)
    for layer in new._flatten_layers():
        # Layers that keep values derived from their weights.
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def _split(layer):
    """Returns the weights outside mechanisms, and the mechanisms."""
    found = [x for x in layer._flatten_layers() if isinstance(x, Mechanism)]
    inside = {id(w) for mechanism in found for w in mechanism.weights}
    return [w for w in layer.weights if id(w) not in inside], found


def _assign(layer, old, new):
    same = [(w.name, tuple(w.shape)) for w in old] == [
        (w.name, tuple(w.shape)) for w in new
    ]
    if not same:
        raise ValueError(
            "The converted layer must have the weights of the original. "
            f"Received: layer `{layer.name}` with weights "
            f"{[(w.path, tuple(w.shape)) for w in old]}, after conversion "
            f"{[(w.path, tuple(w.shape)) for w in new]}. Merge LoRA weights "
            "and convert before you quantize."
        )
    for one, other in zip(old, new):
        # A copy: under JAX both would share an array, which training donates.
        other.assign(ops.copy(one))
        other.trainable = one.trainable
