"""KerasHub's backbones and tasks with other attention, as their subclasses.

`LinearGPT2Backbone` is a `GPT2Backbone` whose attention layers are exchanged
when it is made, and therefore also when it is loaded. `LinearGPT2CausalLM` is
its task. They keep attributes, presets and `generate`, which uses a state
instead of the cache.
"""

import functools
import sys

import keras
from keras import ops

from keras_linattn.convert import _states
from keras_linattn.convert._heads import ThroughMechanism
from keras_linattn.convert._inside import ExchangedInside
from keras_linattn.convert._inside import entries_for

FAMILIES = {
    "Albert": "MaskedLM TextClassifier",
    "Bart": "",
    "Bert": "MaskedLM TextClassifier TextEmbedder",
    "DistilBert": "MaskedLM TextClassifier",
    "Electra": "",
    "GPT2": "CausalLM",
    "Llama": "CausalLM",
    "Llama3": "CausalLM",
    "OPT": "CausalLM",
    "Qwen3": "CausalLM TextEmbedder",
    "Roberta": "MaskedLM TextClassifier",
    "ViT": "ImageClassifier",
    "XLMRoberta": "MaskedLM TextClassifier TextEmbedder",
}
NAMES = tuple(
    f"{family}{kind}"
    for family, tasks in FAMILIES.items()
    for kind in ("Backbone", *tasks.split())
)


def is_hub_model(layer):
    """Is it a backbone or a task of KerasHub?"""
    hub = sys.modules.get("keras_hub")  # not imported: then it cannot be one
    return hub is not None and isinstance(
        layer, (hub.models.Backbone, hub.models.Task)
    )


def convert_hub_model(model, mechanism, chosen):
    """The same backbone or task with other attention, without its weights.

    Args:
        model: `keras_hub.models.Backbone` or `keras_hub.models.Task`.
        mechanism: `Mechanism`, which each layer gets a copy of.
        chosen: list of attention layers inside the model.

    Raises:
        ValueError: if the family is not one of `FAMILIES`.
    """
    name = type(model).__name__
    if isinstance(model, ExchangedInside):
        raise ValueError(
            "A converted model cannot be converted again. Received: a "
            f"`{name}`. Convert the original with all `layers` at once."
        )
    if name not in NAMES:
        raise ValueError(
            "`linearize` converts some of KerasHub's backbones and tasks. "
            f"Received: `{name}`. Use a model of one of the families "
            f"{', '.join(FAMILIES)}."
        )
    cls = hub_class(name)
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        entries = entries_for(model, mechanism, chosen)
        return cls.from_config({**model.get_config(), "attention": entries})
    config = model.get_config()
    config["backbone"] = convert_hub_model(backbone, mechanism, chosen)
    # The same object, because its config does not have the vocabulary.
    config["preprocessor"] = model.preprocessor
    return cls.from_config(config)


def hub_class(name):
    """The subclass of KerasHub's class `name`, registered with Keras."""
    family = max((f for f in FAMILIES if name.startswith(f)), key=len)
    return _classes(family)[name]


@functools.cache
def _classes(family):
    """All subclasses of a family: `from_preset` finds a task by its class."""
    import keras_hub

    models = keras_hub.models
    name = f"{family}Backbone"
    base = getattr(models, name)
    backbone = _subclass(base, LinearBackbone)
    classes = {name: backbone}
    for task in FAMILIES[family].split():
        base = getattr(models, f"{family}{task}")
        is_lm = issubclass(base, models.CausalLM)
        classes[f"{family}{task}"] = _subclass(
            base, *(LinearCausalLM,) * is_lm, backbone_cls=backbone
        )
    return classes


def _subclass(base, *bases, **attributes):
    cls = type(f"Linear{base.__name__}", (*bases, base), attributes)
    return keras.saving.register_keras_serializable("keras_linattn")(cls)


class LinearBackbone(ExchangedInside):
    """A backbone in which some attention layers are exchanged.

    Args:
        attention: list with an entry for each attention layer: the config of
            its mechanism, or `None` where it stays softmax.
        **kwargs: arguments of the backbone.
    """

    def __init__(self, attention, **kwargs):
        super().__init__(**kwargs)
        self._exchange_inside(attention)

    def get_config(self):
        return {**super().get_config(), "attention": self._attention_entries}


class LinearCausalLM:
    """Generation with states in place of a cache of keys and values."""

    def generate_step(self, inputs, stop_token_ids=None):
        lengths = ops.sum(ops.cast(inputs["padding_mask"], "int32"), axis=-1)
        # The sampler begins with the last token of the shortest prompt, which
        # the state must not include yet.
        object.__setattr__(self, "_seeds", ops.min(lengths) - 1)
        try:
            return super().generate_step(inputs, stop_token_ids)
        finally:
            object.__setattr__(self, "_seeds", None)

    def _build_cache(self, token_ids):
        batch, length = ops.shape(token_ids)
        cache = self._empty_cache(batch, length)
        seeds = getattr(self, "_seeds", None)
        limit = length if seeds is None else seeds
        cache = _states.with_limit(cache, limit)
        _, hidden_states, cache = self.call_with_cache(token_ids, cache, 0)
        return hidden_states, _states.with_limit(cache, _states.ALL)

    def _empty_cache(self, batch, length):
        """Zeros `(B, L, N)`, states before the first of `length` tokens."""
        layers = [
            layer
            for layer in self.backbone._flatten_layers()
            if isinstance(layer, ThroughMechanism)
        ]
        size = max(
            _states.size_of(
                layer.with_states(length).state_spec(*layer.head_sizes())
            )
            for layer in layers
        )
        return ops.zeros((batch, self.backbone.num_layers, size))


class Later:
    """A placeholder for a class that is made at its first use.

    A file contains the names of its classes, and making one of these classes
    imports KerasHub. Until then Keras finds this object under the name of the
    class. It has the attributes of the class that Keras needs.
    """

    def __init__(self, name):
        self._name = name

    def from_config(self, config):
        return hub_class(self._name).from_config(config)

    @property
    def __bases__(self):
        return (hub_class(self._name),)

    def __eq__(self, other):
        return other is self or other is hub_class(self._name)

    def __hash__(self):
        return hash(self._name)


def register_names():
    """Registers the names of all converted classes, so that files load."""
    objects = keras.saving.get_custom_objects()
    for name in NAMES:
        objects.setdefault(f"keras_linattn>Linear{name}", Later(name))
