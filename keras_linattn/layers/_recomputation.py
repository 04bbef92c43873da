"""Results inside a block that are computed again in the backward pass."""

import contextlib

import keras
from keras import ops


def recompute(function, x, generators):
    """`function(x)`, of which nothing is kept for the gradients but `x`.

    `keras.remat` alone would draw other random numbers the second time, and
    under JAX leave a traced state in the generators.

    Args:
        function: callable of a tensor, returns a tensor.
        x: tensor.
        generators: list of `keras.random.SeedGenerator`, all that `function`
            draws from.
    """
    if keras.backend.backend() == "jax":
        return _with_states_returned(function, x, generators)
    starts, again = _states(generators), False

    def run(x):
        nonlocal again
        if not again:
            again = True
            return function(x)
        now = _states(generators)
        _set_states(generators, starts)
        y = function(x)
        _set_states(generators, now)
        return y

    with _to_the_end():
        return keras.remat(run)(x)


def _to_the_end():
    """Under torch: recompute to the end, not until all is there.

    It would stop by an exception, whose traceback Keras' layers keep, and
    with it the very tensors that shall not be kept.
    """
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    from torch.utils import checkpoint

    return checkpoint.set_checkpoint_early_stop(False)


def _with_states_returned(function, x, generators):
    # JAX traces it once, for both passes; what leaves it must be returned.
    def run(x):
        return function(x), _states(generators)

    y, states = keras.remat(run)(x)
    _set_states(generators, states)
    return y


def _states(generators):
    # Copies, since torch assigns in place.
    return [ops.copy(generator.state) for generator in generators]


def _set_states(generators, states):
    for generator, state in zip(generators, states):
        generator.state.assign(state)
