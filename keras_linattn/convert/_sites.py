"""Finds the attention layers of a model, and those that `layers` chooses."""

import typing

import keras

from keras_linattn import mechanisms
from keras_linattn.layers import LinearMultiHeadAttention

# Attention layers of KerasHub that are not a `MultiHeadAttention` of Keras:
# all have rotary positions and grouped keys.
HUB = ("LlamaAttention", "Qwen3Attention", "QwenAttention")
# The default of KerasHub's `Qwen3Backbone`. Models without windows have it too.
QWEN3_DEFAULT = 32768
KERAS = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


class Site(typing.NamedTuple):
    """A layer in a model, and the names of the layers around it.

    Args:
        path: str, names from the model down to the layer, joined by `/`.
        layer: the layer.
    """

    path: str
    layer: object

    @property
    def name(self):
        return self.layer.name


def sites_of(model):
    """The softmax attention layers of a model in their order, each once."""
    return [site for site in walk(model, is_softmax) if is_softmax(site.layer)]


def walk(model, is_leaf=lambda layer: False):
    """All layers in a model as `Site`s, each once, outer layers first.

    Args:
        model: layer or model.
        is_leaf: callable of a layer, whether to leave out the layers inside.
    """
    seen = set()

    def below(layer, path):
        for sub in sublayers(layer):
            if id(sub) not in seen:
                seen.add(id(sub))
                yield Site(f"{path}{sub.name}", sub)
                if not is_leaf(sub):
                    yield from below(sub, f"{path}{sub.name}/")

    return below(model, "")


def sublayers(layer):
    """The layers directly inside a layer or a model."""
    if isinstance(layer, keras.Model):
        return layer.layers
    if not isinstance(layer, keras.layers.Layer):
        return []  # an operation of `keras.ops` in a functional model
    return list(layer._flatten_layers(include_self=False, recursive=False))


def is_softmax(layer):
    """Is it an attention layer whose attention is softmax attention?"""
    if isinstance(layer, LinearMultiHeadAttention):
        return isinstance(layer.mechanism, mechanisms.Softmax)
    mechanism = getattr(layer, "mechanism", None)
    if not isinstance(mechanism, (type(None), mechanisms.Softmax)):
        return False
    if isinstance(layer, KERAS):
        return True
    names = [cls.__name__ for cls in type(layer).__mro__]
    return any(name in HUB for name in names)


def unknown_sites_of(model):
    """Layers that look like attention, which `linearize` does not know.

    Their class is named `...Attention`, and no layer inside is known.
    """

    def is_known(layer):
        mechanism = getattr(layer, "mechanism", None)
        return is_softmax(layer) or isinstance(mechanism, mechanisms.Mechanism)

    def is_unknown(layer):
        return type(layer).__name__.endswith("Attention") and not any(
            is_known(site.layer) for site in walk(layer)
        )

    def is_leaf(layer):
        return is_known(layer) or is_unknown(layer)

    return [
        site
        for site in walk(model, is_leaf)
        if is_unknown(site.layer) and not is_known(site.layer)
    ]


def named(sites):
    """The paths of layers with their classes, for messages."""
    return ", ".join(f"{s.path} ({type(s.layer).__name__})" for s in sites)


def linear_sites_of(model):
    """The attention layers of a model whose mechanism is not softmax."""
    return [site for site in walk(model, is_linear) if is_linear(site.layer)]


def is_linear(layer):
    """Is it an attention layer with a mechanism other than softmax?"""
    mechanism = getattr(layer, "mechanism", None)
    return (
        isinstance(mechanism, mechanisms.Mechanism)
        and not isinstance(mechanism, mechanisms.Softmax)
        and hasattr(layer, "_query_dense")
    )


def heads_of(layer):
    """Returns H, D, V and the number of key heads of a built layer."""
    heads, key_dim = layer._query_dense.kernel.shape[1:]
    groups = layer._key_dense.kernel.shape[1]
    return heads, key_dim, layer._value_dense.kernel.shape[2], groups


def choose(sites, layers):
    """The sites that `layers` of `linearize` names.

    Raises:
        ValueError: if a name or an index matches no attention layer, or if no
            layer is chosen.
        TypeError: if `layers` is of another type.
    """
    if layers is None:
        return sites
    if callable(layers):
        chosen = [site for site in sites if layers(site.layer)]
    else:
        if isinstance(layers, (str, int)):
            layers = [layers]
        numbers = {n for entry in layers for n in _numbers(sites, entry)}
        chosen = [sites[n] for n in sorted(numbers)]
    if not chosen:
        raise ValueError(
            "`layers` must choose at least one attention layer. Received: "
            f"layers={layers!r}. {_listed(sites)}"
        )
    return chosen


def _numbers(sites, entry):
    """The numbers of the sites that a name or an index refers to."""
    count = len(sites)
    if isinstance(entry, bool) or not isinstance(entry, (str, int)):
        raise TypeError(
            "`layers` takes names, indices, a list of them, or a function of "
            f"a layer that returns a bool. Received: {entry!r} of type "
            f"{type(entry).__name__}."
        )
    if isinstance(entry, int):
        found = [entry % count] if -count <= entry < count else []
    else:
        found = [n for n, site in enumerate(sites) if _is_named(site, entry)]
    if not found:
        raise ValueError(
            "An entry of `layers` matches no attention layer. Received: "
            f"{entry!r}. {_listed(sites)}"
        )
    return found


def _is_named(site, name):
    """Is `name` that of the layer, its path, or the path of an outer layer?"""
    parts = site.path.split("/")
    return name == site.name or name in (
        "/".join(parts[: n + 1]) for n in range(len(parts))
    )


def _listed(sites):
    lines = [f"{n}: {site.path}" for n, site in enumerate(sites)]
    return "The model has: " + ", ".join(lines) + "."


def mechanism_for(layer, mechanism):
    """The mechanism that a layer gets in conversion.

    Exact attention in a window is linear: a layer that has one keeps it.
    Cross-attention gets no window, whose two sequences need one length.
    """
    window = window_of(layer)
    if window is not None:
        return mechanisms.Local(window, skip_hidden=False)
    if isinstance(mechanism, mechanisms.HybridWindow) and is_cross(layer):
        return mechanisms.Hedgehog(
            tied=mechanism.tied,
            state_dtype=mechanism.get_config()["state_dtype"],
        )
    return mechanism


def is_cross(layer):
    """Do a layer's queries and values come from two sequences?"""
    if layer.name == "cross_attention":  # in decoder blocks, KerasHub's too
        return True
    for node in layer._inbound_nodes:
        names = dict(zip(("query", "value"), node.arguments.args))
        names |= node.arguments.kwargs
        query, value = names.get("query"), names.get("value")
        if value is None:
            continue
        lengths = query.shape[-2], value.shape[-2]
        if query is not value and (None in lengths or len(set(lengths)) == 2):
            return True
    return False


def window_of(layer):
    """The number of positions of a layer's own window, or `None`."""
    if not getattr(layer, "use_sliding_window_attention", True):
        return None  # Qwen's layers have a size all the same
    if getattr(layer, "sliding_window_size", None) == QWEN3_DEFAULT:
        return None
    names = "_sliding_window", "sliding_window", "sliding_window_size"
    found = (getattr(layer, name, None) for name in names)
    return next((size for size in found if size), None)
