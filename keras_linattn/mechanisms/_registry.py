"""Mechanisms by name."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any
from typing import TypeVar

import keras

from keras_linattn.mechanisms._base import Mechanism

Class = TypeVar("Class", bound=type)
_CLASSES = {}
_VARIADIC = (
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)


def register(name: str, package: str | None = None) -> Callable[[Class], Class]:
    """Class decorator: makes a mechanism available under `name`.

    The class is registered with Keras too, so that models with it load.

    Args:
        name: str, the key. For the mechanisms of this package it is also the
            name of the file and of the tests.
        package: str or `None`, the prefix of Keras' registration, written
            into saved files. Defaults to that of Keras, `"Custom"`, whatever
            module or script defines the class.

    Returns:
        The decorator, which returns the class.

    Raises:
        ValueError: if a class of another name or module has taken the name.
            The same class defined again, as by a notebook's cell that is run
            again, replaces the older one.
        TypeError: if what is decorated is not a `Mechanism` class.

    Example:

    >>> from keras_linattn import mechanisms
    >>> @mechanisms.register("mean_of_values", package="docs")
    ... class MeanOfValues(mechanisms.Mechanism):
    ...     def attend(self, query, key, value, **unused):
    ...         mean = keras.ops.mean(value, axis=2, keepdims=True)
    ...         return mean + keras.ops.zeros_like(query[..., :1])
    >>> "mean_of_values" in mechanisms.available()
    True
    """

    def decorate(cls):
        if not (isinstance(cls, type) and issubclass(cls, Mechanism)):
            raise TypeError(
                "`register` decorates subclasses of `Mechanism`. "
                f"Received: {cls!r}."
            )
        taken = _CLASSES.get(name, cls)
        if _qualified_name(taken) != _qualified_name(cls):
            raise ValueError(
                f"The mechanism name {name!r} is taken by "
                f"`{taken.__name__}`. Received: {cls!r}. Choose another name."
            )
        _CLASSES[name] = cls
        prefix = package or _default_package(cls)
        return keras.saving.register_keras_serializable(prefix)(cls)

    return decorate


def available() -> list[str]:
    """The names of all registered mechanisms, sorted.

    Example:

    >>> from keras_linattn import mechanisms
    >>> "modified_linformer" in mechanisms.available()
    True
    """
    return sorted(_CLASSES)


def get(
    identifier: str | dict | type | Mechanism, **defaults: Any
) -> Mechanism:
    """Returns a mechanism, as `keras.optimizers.get` does an optimizer.

    Args:
        identifier: a name; a `Mechanism` object (returned as it is); a
            subclass of `Mechanism`; a dict of the name and constructor
            arguments, `{"name": "linformer", "sequence_length": 512}`; or the
            dict of `keras.saving.serialize_keras_object`.
        **defaults: constructor arguments (such as `dtype`) for when an object
            is made here and the dict does not hold them.

    Returns:
        A `Mechanism`.

    Raises:
        ValueError: if the name is unknown, with the nearest one; if a dict has
            a key that the mechanism does not take.
        TypeError: if the identifier is of another type.

    Example:

    >>> from keras_linattn import mechanisms
    >>> mechanisms.get("modified_linformer").reading
    'factorised'
    >>> config = {"name": "modified_linformer", "reading": "projected"}
    >>> mechanisms.get(config).reading
    'projected'
    """
    if isinstance(identifier, Mechanism):
        return identifier
    if isinstance(identifier, type) and issubclass(identifier, Mechanism):
        return identifier(**defaults)
    if isinstance(identifier, str):
        return _lookup(identifier)(**defaults)
    if isinstance(identifier, dict) and "class_name" in identifier:
        return _deserialize(identifier)
    if isinstance(identifier, dict) and isinstance(identifier.get("name"), str):
        arguments = {k: v for k, v in identifier.items() if k != "name"}
        cls = _lookup(identifier["name"])
        _check_arguments(identifier["name"], cls, arguments)
        return cls(**{**defaults, **arguments})
    raise TypeError(
        "A mechanism is given by name, by a dict with 'name' and constructor "
        "arguments, as a `Mechanism` class or as an object. "
        f"Received: {identifier!r} of type {type(identifier).__name__}."
    )


def with_input_sizes(
    identifier: str | dict | type | Mechanism,
    sequence_length: int | None = None,
    grid: tuple[int, int] | None = None,
) -> str | dict | type | Mechanism:
    """Adds the sizes of the inputs that a mechanism asks for by its traits.

    The trait `needs_length` asks for `sequence_length`, the trait `grid` for
    `grid`. A value that a dict holds for either of them stays.

    Args:
        identifier: as in `get`. An object, its Keras config and a class that
            is not registered are returned as they are.
        sequence_length: int > 0 or `None`, the longest input. Defaults to
            `None`: unknown.
        grid: tuple `(rows, columns)` or `None`, where the sequences are
            images row by row. Defaults to `None`: they are not.

    Returns:
        `identifier`, or a dict of the name and all arguments.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if the identifier is of another type.

    Example:

    >>> from keras_linattn import mechanisms
    >>> mechanisms.with_input_sizes("linformer", sequence_length=512)
    {'name': 'linformer', 'sequence_length': 512}
    >>> mechanisms.with_input_sizes("xca", sequence_length=512)
    'xca'
    """
    sizes = {"sequence_length": sequence_length, "grid": grid}
    traits = get(identifier).traits
    wanted = {"sequence_length": traits.needs_length, "grid": traits.grid}
    config = _as_dict(identifier)
    added = {
        size: value
        for size, value in sizes.items()
        if wanted[size] and value is not None and size not in config
    }
    return {**config, **added} if config and added else identifier


def name_of(mechanism: type | Mechanism) -> str | None:
    """Returns the name under which a mechanism is registered.

    Args:
        mechanism: a `Mechanism` object, or a subclass.

    Returns:
        str, or `None` if the class is not registered.

    Example:

    >>> from keras_linattn import mechanisms
    >>> mechanisms.name_of(mechanisms.Softmax)
    'softmax'
    """
    wanted = mechanism if isinstance(mechanism, type) else type(mechanism)
    for name, cls in _CLASSES.items():
        if cls is wanted:
            return name
    return None


def _as_dict(identifier):
    """A dict of the name and constructor arguments; empty if there is none."""
    if isinstance(identifier, dict):
        return {} if "class_name" in identifier else identifier
    name = identifier
    if isinstance(identifier, type):
        name = name_of(identifier)
    return {"name": name} if isinstance(name, str) else {}


def _qualified_name(cls):
    return cls.__module__, cls.__qualname__


def _default_package(cls):
    own = __name__.partition(".")[0]
    return own if cls.__module__.partition(".")[0] == own else "Custom"


def _lookup(name):
    if name not in _CLASSES:
        raise ValueError(_unknown(name))
    return _CLASSES[name]


def _deserialize(config):
    registered = config.get("registered_name") or config["class_name"]
    known = keras.saving.get_registered_object(registered)
    named = {cls.__name__ for cls in _CLASSES.values()}
    if known is None and config["class_name"] not in named:
        raise ValueError(_unknown(registered))
    mechanism = keras.saving.deserialize_keras_object(config)
    if not isinstance(mechanism, Mechanism):
        raise TypeError(
            "The config of a mechanism must name a subclass of `Mechanism`. "
            f"Received: {registered!r}, a {type(mechanism).__name__}."
        )
    return mechanism


def _check_arguments(name, cls, arguments):
    parameters = _parameters(cls)
    for key in arguments:
        if key not in parameters:
            raise ValueError(
                f"The mechanism {name!r} has no argument {key!r}."
                f"{_did_you_mean(key, parameters)} Received: {arguments!r}. "
                f"It takes {', '.join(parameters)}."
            )


def _parameters(cls):
    """Names of constructor arguments; `**kwargs` means those of the base."""
    names = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        kinds = inspect.signature(base.__init__).parameters.values()
        names |= {p.name: None for p in kinds if p.kind not in _VARIADIC}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in kinds):
            break
        if base is keras.layers.Layer:
            break
    return [name for name in names if name not in ("self", "name")]


def _unknown(name):
    names = available()
    return (
        f"Unknown mechanism {name!r}.{_did_you_mean(name, names)} Received: "
        f"{name!r}. Available: {', '.join(names)}. A mechanism of your own "
        "must be registered with `keras_linattn.mechanisms.register` (import "
        "its module) before it is named or a model with it is loaded."
    )


def _did_you_mean(name, names):
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
