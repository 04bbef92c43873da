"""Results inside a layer that are computed again in the backward pass."""

import contextlib

import keras
from keras import ops
from keras import tree

from keras_linattn.core import backends


def recompute(function, layer, args, kwargs=None, remat=keras.remat):
    """`function(*args, **kwargs)`; only these are kept for the gradients.

    `keras.remat` alone would draw other random numbers the second time, and
    under JAX leave a traced state in the generators.

    Args:
        function: callable, returns a tree of tensors.
        layer: `keras.layers.Layer` that owns all generators, in sublayers of
            any depth, from which `function` draws.
        args: tuple of anything. Gradients pass through its floating-point
            tensors, which may be nested.
        kwargs: dict of anything, likewise. Defaults to `None`: `{}`.
        remat: callable that wraps a function of tensors. Defaults to
            `keras.remat`.
    """
    run, tensors = _on_tensors(function, (args, kwargs or {}))
    states = _random_states(layer)
    return run_again(run, tensors, states, remat)


@backends.per_backend
def run_again(run, tensors, states, remat):
    """`remat(run)(*tensors)`, both times from the same random states.

    Args:
        run: callable of tensors, returns a tree of tensors.
        tensors: list of tensors.
        states: list of variables, the states of random generators.
        remat: callable that wraps a function of tensors.
    """
    starts, again = _values(states), False

    def run_twice(*tensors):
        nonlocal again
        if not again:
            again = True
            return run(*tensors)
        now = _values(states)
        _assign(states, starts)
        y = run(*tensors)
        _assign(states, now)
        return y

    with until_the_end():
        return remat(run_twice)(*tensors)


@backends.per_backend
def until_the_end():
    """A context in which a recomputation does not stop halfway."""
    return contextlib.nullcontext()


def _on_tensors(function, arguments):
    """`function` of the floating-point tensors in its arguments, and these."""
    leaves = tree.flatten(arguments)
    places = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]

    def run(*tensors):
        given = dict(zip(places, tensors))
        args, kwargs = tree.pack_sequence_as(
            arguments, [given.get(i, leaf) for i, leaf in enumerate(leaves)]
        )
        return function(*args, **kwargs)

    return run, [leaves[i] for i in places]


def _is_float(x):
    return ops.is_tensor(x) and keras.backend.is_float_dtype(
        keras.backend.standardize_dtype(x.dtype)
    )


def _random_states(layer):
    """The states of all generators that a layer owns.

    They are its variables that are no weights.
    """
    weights = {id(weight) for weight in layer.weights}
    return [v for v in layer.variables if id(v) not in weights]


def _values(states):
    # Copies, since torch assigns in place.
    return [ops.copy(state) for state in states]


def _assign(states, values):
    for state, value in zip(states, values):
        state.assign(value)
