"""NumPy numbers and arrays as arguments of constructors."""

import functools
import inspect


def takes_numpy(cls):
    """Lets a class' own constructor take NumPy values for Python's.

    Checks and configs then see numbers, and tuples for arrays.
    """
    if "__init__" not in vars(cls):
        return
    init = cls.__init__

    @functools.wraps(init)
    def with_plain_values(self, *args, **kwargs):
        kwargs = {name: plain(value) for name, value in kwargs.items()}
        init(self, *map(plain, args), **kwargs)

    # Keras reads the names of the arguments, and follows no wrapper.
    with_plain_values.__signature__ = inspect.signature(init)
    cls.__init__ = with_plain_values


def plain(value):
    """A NumPy number as Python's, an array as a tuple, all else as it is."""
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    if type(value).__module__ != "numpy" or not hasattr(value, "tolist"):
        return value
    value = value.tolist()
    return tuple(value) if isinstance(value, list) else value
