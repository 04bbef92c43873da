"""Results inside a layer that are computed again in the backward pass."""

import contextlib

import keras
from keras import ops
from keras import tree


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
    if keras.backend.backend() == "jax":
        return _with_states_returned(run, tensors, states, remat)
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

    with _to_the_end():
        return remat(run_twice)(*tensors)


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


def _to_the_end():
    """Under torch: recompute to the end, not until all is there.

    It would stop by an exception, whose traceback Keras' layers keep, and
    with it the very tensors that shall not be kept.
    """
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    from torch.utils import checkpoint

    return checkpoint.set_checkpoint_early_stop(False)


def _with_states_returned(function, tensors, states, remat):
    # JAX traces it once, for both passes; what leaves it must be returned.
    def run(*tensors):
        return function(*tensors), _values(states)

    y, values = remat(run)(*tensors)
    _assign(states, values)
    return y


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
