"""Checks of constructor arguments that several layers share."""


def positive(name, value):
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}."
        )
    return value


def rate(value):
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(
            "`dropout` must be a number from 0 up to, not including, 1. "
            f"Received: dropout={value!r}."
        )
    return value


def as_tuple(name, value):
    """An int or a sequence of ints as a tuple; `None` stays."""
    if value is None or value == ():
        return None
    value = (value,) if isinstance(value, int) else value
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(entry, int) for entry in value
    ):
        raise ValueError(
            f"`{name}` must be an integer, or a list or tuple of them. "
            f"Received: {name}={value!r}."
        )
    return tuple(value)
