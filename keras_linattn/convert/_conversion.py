"""Copies of models and layers in which chosen attention layers differ."""

import re

import keras

from keras_linattn.convert._hub import convert_hub_model
from keras_linattn.convert._hub import is_hub_model
from keras_linattn.convert._inside import linearize_inside
from keras_linattn.convert._layers import convert_attention
from keras_linattn.convert._layers import convert_block
from keras_linattn.convert._layers import convert_model
from keras_linattn.convert._layers import has_mechanism_argument
from keras_linattn.convert._sites import sites_of


class Conversion:
    """One run of `linearize` over a model.

    Args:
        chosen: list of `Site`.
        mechanism: `Mechanism` that each layer gets a copy of.
    """

    def __init__(self, chosen, mechanism):
        self.paths = {id(site.layer): site.path for site in chosen}
        self.mechanism = mechanism
        self._faults = {}
        self._copies = {}  # of layers, by the id of the original
        self._originals = {}  # by the id of their copy

    def raise_faults(self):
        """Raises a `ValueError` that names all layers that failed."""
        if self._faults:
            lines = [f"- {path}: {why}" for path, why in self._faults.items()]
            raise ValueError(
                "These layers cannot be converted:\n"
                + "\n".join(lines)
                + "\nPass the layers to convert as `layers`, so that the "
                "others stay exact."
            )

    def copy(self, layer):
        """The copy of a layer or model, without its weights.

        A layer that is shared in the model is shared in the copy.
        """
        if id(layer) not in self._copies:
            copy = self._made(layer)
            self._copies[id(layer)] = copy
            self._originals[id(copy)] = layer
        return self._copies[id(layer)]

    def _made(self, layer):
        chosen = self._chosen_in(layer)
        if id(layer) in self.paths:
            return self._try(layer, [layer], convert_attention)
        if chosen and is_hub_model(layer):
            return self._try(layer, chosen, convert_hub_model, chosen)
        if type(layer) is keras.Sequential:
            return self._sequential(layer)
        if chosen and has_mechanism_argument(layer):
            make = convert_block
            if isinstance(layer, keras.Model):
                make = convert_model
            return self._try(layer, chosen, make, chosen)
        if isinstance(layer, keras.Function) and is_plain_functional(layer):
            return self._functional(layer)
        if chosen:
            return self._try(layer, chosen, linearize_inside, chosen)
        return plain_copy(layer)

    def _chosen_in(self, layer):
        """The chosen attention layers inside a layer."""
        found = (site.layer for site in sites_of(layer))
        return [x for x in found if id(x) in self.paths]

    def _sequential(self, model):
        inputs = [fresh_input(x) for x in model.inputs]
        layers = [self.copy(layer) for layer in model.layers]
        if any(isinstance(layer, StandIn) for layer in layers):
            return StandIn(model)
        options = {"name": model.name, "trainable": model.trainable}
        return self._try(
            model,
            self._chosen_in(model),
            lambda *_: keras.Sequential(inputs + layers, **options),
        )

    def _functional(self, model):
        # As `keras.models.clone_model` does. That function also compiles the
        # copy, which fails for a loss that is not registered.
        inputs = keras.tree.map_structure(fresh_input, model.input)
        outputs = model._run_through_graph(
            inputs, operation_fn=self.copy, call_fn=self._call
        )
        copy = keras.Model(inputs, outputs, name=model.name)
        copy.trainable = model.trainable
        return copy

    def _call(self, copy, *args, **kwargs):
        """Calls the copy of a layer, or a `StandIn` where that fails."""
        layer = self._originals[id(copy)]
        chosen = self._chosen_in(layer)
        chosen += [layer] if id(layer) in self.paths else []
        if not chosen or isinstance(copy, (keras.Model, StandIn)):
            return copy(*args, **kwargs)
        try:
            return copy(*args, **kwargs)
        except (TypeError, ValueError) as error:
            self._fail(chosen, error)
            return StandIn(layer)(*args, **kwargs)

    def _try(self, layer, chosen, make, *args):
        try:
            return make(layer, self.mechanism, *args)
        except (NotImplementedError, TypeError, ValueError) as error:
            self._fail(chosen, error)
            return StandIn(layer)

    def _fail(self, chosen, error):
        for layer in chosen:
            self._faults[self.paths[id(layer)]] = _cause(error)


class StandIn(keras.Operation):
    """Takes the place of a layer that could not be converted.

    The conversion can then go on, and one error names all layers that fail.
    """

    def __init__(self, layer):
        super().__init__(name=layer.name)
        self.layer = layer

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)


def _cause(error):
    """The message, without the text that Keras adds around an error in `call`.

    Keras prints the message itself in bold.
    """
    found = re.search(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.DOTALL)
    return found[1] if found else str(error)


def plain_copy(layer):
    """A new layer of the same class and config."""
    return type(layer).from_config(layer.get_config())


def is_plain_functional(model):
    """Is it `keras.Model(inputs, outputs)`, not a subclass of the user's?"""
    return type(model).__module__.partition(".")[0] == "keras"


def fresh_input(x):
    return keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)
