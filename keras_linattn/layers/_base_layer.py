"""The base of all layers: `keras.RematScope`, and sublayers that follow."""

import functools
import inspect
from collections.abc import Callable
from typing import Any
from typing import Self

import keras

from keras_linattn.core.arguments import takes_numpy as takes_numpy
from keras_linattn.layers._arguments import check_floating
from keras_linattn.layers._recomputation import recompute
from keras_linattn.layers._sublayers import with_mechanism


class BaseLayer(keras.layers.Layer):
    """A layer whose calls can be computed again; not for use on its own.

    Its first input is of floating point, unless `takes_integers` says that it
    may be token ids.
    """

    takes_integers = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        takes_numpy(cls)

    def __call__(self, *args, **kwargs):
        if not self.takes_integers:
            name = _first_argument(type(self))
            x = args[0] if args else kwargs.get(name)
            # Here for both: what is symbolic does not come to `call`.
            check_floating(**{name: x if hasattr(x, "dtype") else None})
        return super().__call__(*args, **kwargs)

    def rematerialized_call(
        self, layer_call: Callable, *args: Any, **kwargs: Any
    ) -> Callable:
        """`layer_call` as the `keras.RematScope` of this layer wants it.

        TensorFlow recomputes functions of positional tensors only, and Keras
        would draw other random numbers the second time.
        """
        scope = super().rematerialized_call

        def call(*args, **kwargs):
            def remat(run):
                return scope(run, *args, **kwargs)

            return recompute(layer_call, self, args, kwargs, remat)

        return call

    def get_config(self) -> dict:
        # Defined, since Keras' own for layers without one fails if a dtype
        # policy is an object.
        return super().get_config()

    @classmethod
    def from_config(cls, config: dict) -> Self:
        return super().from_config(with_mechanism(config))


@functools.cache  # a signature takes longer than a small layer's call
def _first_argument(cls):
    """The name of the first argument of a layer's call."""
    _, name, *_ = inspect.signature(cls.call).parameters
    return name


def makes_sublayers(method):
    """Decorates a method that makes sublayers: they follow their layer.

    Keras freezes the sublayers that there are when `trainable` is set, and not
    those that are made later. And where a `keras.RematScope` recomputes the
    whole layer, its sublayers need not be recomputed once more.
    """

    @functools.wraps(method)
    def make(self, *args, **kwargs):
        with _scope_within(self):
            made = method(self, *args, **kwargs)
        keep_frozen(self)
        return made

    return make


def keep_frozen(layer):
    """Freezes all sublayers of a frozen layer."""
    if not layer.trainable:
        # Under TensorFlow, setting what is set already reaches no sublayer.
        layer.trainable = True
        layer.trainable = False


def _scope_within(layer):
    own = layer._remat_mode
    # These two modes choose among all layers, sublayers included.
    if own is not None and own.mode in ("activations", "list_of_layers"):
        return keras.RematScope(**own._asdict())
    return keras.RematScope(mode=None)
