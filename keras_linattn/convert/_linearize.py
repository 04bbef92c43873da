"""Replace the softmax attention of a model."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import keras

from keras_linattn import mechanisms
from keras_linattn.convert._conversion import Conversion
from keras_linattn.convert._sites import choose
from keras_linattn.convert._sites import named
from keras_linattn.convert._sites import sites_of
from keras_linattn.convert._sites import unknown_sites_of
from keras_linattn.convert._weights import carry
from keras_linattn.mechanisms import Mechanism

# KerasHub's tasks keep their class, and so `generate`.
Model = TypeVar("Model", bound=keras.Model)


def linearize(
    model: Model,
    mechanism: str | dict | type | Mechanism = "hedgehog",
    layers: str | int | list | Callable | None = None,
    window: int | None = None,
) -> Model:
    """Returns a copy of a trained model whose attention is linear.

    All weights are copied; the original does not change. If the mechanism has
    weights of its own, they get their initial values: train them with
    `distill`, or fine-tune the model. A layer with a `sliding_window` keeps
    exact attention in its window, which is linear too, whatever `mechanism` is.

    Args:
        model: built `keras.Model`.
        mechanism: name, dict, class or object, see `mechanisms.get`. Each
            layer gets a mechanism of its own. Defaults to `"hedgehog"`.
        layers: which attention layers to convert; the others stay exact. A
            name (of the layer, or of a layer or model around it), an index, a
            list of names and indices, or a function of a layer that returns a
            bool. Defaults to `None`: all of them.
        window: int > 0 or `None`. With a window, `hedgehog` becomes
            `hybrid_window`: exact attention within the window and linear
            attention beyond it. `softmax` becomes `local`: exact attention
            within the window only. Defaults to `None`.

    Returns:
        A model of the same kind, not compiled.

    Raises:
        ValueError: if the model is not built or has no softmax attention. One
            error lists all layers that cannot be converted, with the reasons.
        TypeError: if `model` is not a `keras.Model`.

    Example:

    >>> import keras_linattn
    >>> x = keras.Input((None, 16))
    >>> y = keras.layers.MultiHeadAttention(2, 8, name="attention")(x, x)
    >>> model = keras.Model(x, y)
    >>> linear = keras_linattn.linearize(model)
    >>> type(linear.get_layer("attention")).__name__
    'LinearMultiHeadAttention'

    Source: Zhang et al., 2024, arXiv 2402.04347; Zhang et al., 2024, arXiv
    2410.10254.
    """
    check_model(model)
    sites, unknown = sites_of(model), unknown_sites_of(model)
    if not sites:
        raise ValueError(
            "The model must have softmax attention to convert: layers "
            "`MultiHeadAttention` or `GroupQueryAttention` of Keras, or layers "
            "of this package with the mechanism softmax. Received: the model "
            f"`{model.name}`, a {type(model).__name__} without such a layer."
            + (f" Of other classes: {named(unknown)}." if unknown else "")
        )
    if unknown and layers is None:
        warnings.warn(
            "`linearize` converts attention layers of known classes. These "
            f"layers keep the attention that they have: {named(unknown)}. "
            "Pass `layers=` to choose the layers without this warning.",
            stacklevel=2,
        )
    chosen = choose(sites, layers)
    conversion = Conversion(chosen, replacement(mechanism, window))
    new = conversion.copy(model)
    conversion.raise_faults()
    carry(model, new)
    return new


def check_model(model):
    """Raises an error unless `model` is a built `keras.Model`."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`linearize` takes a `keras.Model`. Received: "
            f"{model!r} of type {type(model).__name__}. Put a layer into a "
            "`keras.Sequential` with an `Input` first."
        )
    if not model.built:
        raise ValueError(
            "`linearize` needs a built model, whose weights it copies. "
            f"Received: the model `{model.name}`, which is not built. Call it "
            "on a batch, or load its weights, first."
        )


def replacement(mechanism, window=None):
    """Returns the `Mechanism` that `linearize` makes copies of.

    Raises:
        ValueError: if the mechanism has no form with a window.
    """
    mechanism = mechanisms.get(mechanism)
    if window is None:
        return mechanism
    options = {
        "window": window,
        "state_dtype": mechanism.get_config()["state_dtype"],
    }
    if isinstance(mechanism, mechanisms.Hedgehog):
        return mechanisms.HybridWindow(tied=mechanism.tied, **options)
    if isinstance(mechanism, mechanisms.Softmax):
        return mechanisms.Local(**options)
    raise ValueError(
        "`window` needs the mechanism 'hedgehog' or 'softmax'. "
        f"Received: window={window!r} with `{type(mechanism).__name__}`. "
        "Leave `window` out."
    )
