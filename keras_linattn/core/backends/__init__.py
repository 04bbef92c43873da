"""The one room where backends are named: fast forms and their dispatch.

A function is written in `core` in its portable form, from `keras.ops` only:

    @backends.with_fast_forms
    def product_plus(addend, x, y):
        return addend + ops.matmul(x, y)

`core/backends/torch.py` (or `jax.py`, `tensorflow.py`) may define a function
of the same name and arguments, which runs instead under that backend. A fast
form returns `NotImplemented` for inputs that it does not take; then the
portable form runs. `keras_linattn.config.set_fast_forms(False)`, or the
environment variable `KERAS_LINATTN_FAST_FORMS=0`, turns all of them off.

Both give the same numbers: `tests/core/test_backends.py` compares each pair.

What a backend can do only in its own way, such as an assertion in a graph, is
decorated with `per_backend`; the switch leaves it alone.
"""

import contextlib
import contextvars
import functools
import importlib
import importlib.util
import os

import keras

_GIVEN = contextvars.ContextVar("given_dtype", default=None)
_FAST_FORMS = os.environ.get("KERAS_LINATTN_FAST_FORMS", "1") != "0"
_MODULE = {}
DISPATCHED = {}  # by name: each function that may have fast forms


def fast_forms() -> bool:
    """Returns whether fast forms are in use.

    They are always off under a `keras.distribution`, where they would send
    whole arrays between devices.

    Returns:
        bool.

    Example:

    >>> from keras_linattn import config
    >>> config.fast_forms()
    True
    """
    return _FAST_FORMS and keras.distribution.distribution() is None


def set_fast_forms(enabled: bool) -> None:
    """Turns forms that are faster under one backend on or off.

    Args:
        enabled: bool.

    Example:

    >>> from keras_linattn import config
    >>> config.set_fast_forms(False)
    >>> config.set_fast_forms(True)
    """
    global _FAST_FORMS
    _FAST_FORMS = bool(enabled)


@contextlib.contextmanager
def inputs_given_in(dtype):
    """A scope that tells fast forms the dtype of the layer's inputs.

    The inputs are cast to float32 before. A fast form may multiply in the
    dtype of this scope, which is that of the layer's policy.

    Args:
        dtype: str.
    """
    token = _GIVEN.set(dtype)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def given_dtype():
    """Returns the dtype of the innermost `inputs_given_in`, or `None`."""
    return _GIVEN.get()


def with_fast_forms(portable):
    """Lets the current backend replace a function by its fast form.

    The portable form stays available as the attribute `portable`.
    """
    dispatch = _dispatch(portable, fast_forms)
    DISPATCHED[portable.__name__] = dispatch
    return dispatch


def has_fast_form(dispatch):
    """Returns whether the current backend has a fast form, and uses it."""
    return fast_forms() and hasattr(current(), dispatch.__name__)


def per_backend(portable):
    """Lets the current backend replace a function, whatever the switch says."""
    return _dispatch(portable, lambda: True)


def _dispatch(portable, enabled):
    @functools.wraps(portable)
    def dispatch(*args, **kwargs):
        own = getattr(current(), portable.__name__, None)
        if own is not None and enabled():
            result = own(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return portable(*args, **kwargs)

    dispatch.portable = portable
    return dispatch


def current():
    """Returns the module of this process' backend, or `None` without one."""
    # A dict, not `functools.cache`: `torch.compile` looks through it.
    if "module" not in _MODULE:
        name = f"{__name__}.{keras.backend.backend()}"
        known = importlib.util.find_spec(name) is not None
        # Imported when first needed: it imports `core`, which imports this.
        _MODULE["module"] = importlib.import_module(name) if known else None
    return _MODULE["module"]
