"""A table of what `linearize` would change, or has changed."""

import dataclasses
from collections.abc import Callable

import keras

from keras_linattn.convert._heads import heads_for
from keras_linattn.convert._layers import copy_of
from keras_linattn.convert._linearize import check_model
from keras_linattn.convert._linearize import replacement
from keras_linattn.convert._sites import choose
from keras_linattn.convert._sites import heads_of
from keras_linattn.convert._sites import linear_sites_of
from keras_linattn.convert._sites import mechanism_for
from keras_linattn.convert._sites import sites_of
from keras_linattn.convert._sites import unknown_sites_of
from keras_linattn.layers import LinearMultiHeadAttention
from keras_linattn.mechanisms import Mechanism
from keras_linattn.mechanisms import name_of

COLUMNS = (
    "layer",
    "attention",
    "becomes",
    "parameters",
    "cache bytes",
    "state bytes",
    "operations",
    "linear operations",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `report`, which prints as a table.

    Args:
        length: int, positions of the sequence that the numbers hold for.
        rows: list of dicts with the keys of the table's columns.

    Example:

    >>> from keras_linattn import convert
    >>> x = keras.Input((None, 16))
    >>> y = keras.layers.MultiHeadAttention(2, 8, name="attention")(x, x)
    >>> report = convert.report(keras.Model(x, y), length=100)
    >>> report.rows[0]["cache bytes"]
    12800
    """

    length: int
    rows: list[dict]

    def __str__(self):
        cells = [COLUMNS, *([_cell(r[c]) for c in COLUMNS] for r in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = [
            "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |"
            for row in cells
        ]
        lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        note = (
            f"For one sequence of {self.length:,} positions. Operations: "
            "multiply-adds between the projections; `n/a` where the mechanism "
            "has no such number."
        )
        return "\n".join([*lines, "", note])


def report(
    model: keras.Model,
    mechanism: str | dict | type | Mechanism = "hedgehog",
    layers: str | int | list | Callable | None = None,
    window: int | None = None,
    length: int = 4096,
) -> Report:
    """Tabulates what `linearize` would change, layer by layer.

    You can also pass a converted model. Its linear layers are listed with the
    mechanism that they have.

    Args:
        model: built `keras.Model`.
        mechanism: as in `linearize`. Defaults to `"hedgehog"`.
        layers: as in `linearize`. Defaults to `None`: all.
        window: as in `linearize`. Defaults to `None`.
        length: int > 0, positions of a sequence, for the numbers that depend
            on it. Defaults to 4096.

    Returns:
        `Report`. Its `rows` are dicts and its `str` is a Markdown table. The
        columns are the layer, its class, the new mechanism, the parameters
        that it adds, the bytes of a float32 cache of keys and values, the
        bytes of the state that replaces the cache, and the multiply-adds of
        both (of softmax without a causal mask). Layers that look like
        attention, but are of a class that `linearize` does not know, come
        last.

    Raises:
        ValueError: if the model is not built, if `length` is not a positive
            integer, or if `layers` or `window` is wrong, as in `linearize`.

    Example:

    >>> from keras_linattn import convert
    >>> x = keras.Input((None, 16))
    >>> y = keras.layers.MultiHeadAttention(2, 8, name="attention")(x, x)
    >>> report = convert.report(keras.Model(x, y), length=1000)
    >>> report.rows[0]["becomes"]
    'hedgehog'
    """
    check_model(model)
    if not isinstance(length, int) or length <= 0:
        raise ValueError(
            f"`length` must be a positive integer. Received: length={length!r}."
        )
    sites = sites_of(model)
    linear = linear_sites_of(model)
    chosen = {id(s.layer) for s in choose(sites, layers)} if sites else {}
    new = replacement(mechanism, window)
    rows = []
    for site in sites:
        used = None
        if id(site.layer) in chosen:
            used = mechanism_for(site.layer, new)
        rows.append(_row(site, used, length))
        if used is not None and not is_known_class(site.layer):
            rows[-1] |= _without_mechanism("error: unknown class")
    rows += [_row(s, s.layer.mechanism, length) for s in linear]
    rows += [_unknown_row(site) for site in unknown_sites_of(model)]
    return Report(length, rows)


def is_known_class(layer):
    """Can `linearize` convert a softmax layer of this class?"""
    return isinstance(layer, LinearMultiHeadAttention) or heads_for(type(layer))


def _without_mechanism(becomes):
    """The cells of a layer that keeps its attention."""
    return {
        "becomes": becomes,
        "parameters": 0,
        "state bytes": None,
        "linear operations": None,
    }


def _unknown_row(site):
    """The row of a layer about which only the class is known."""
    names = {"layer": site.path, "attention": type(site.layer).__name__}
    cells = _without_mechanism("stays: unknown class")
    return {**dict.fromkeys(COLUMNS), **names, **cells}


def _row(site, mechanism, length):
    heads, key_dim, value_dim, groups = heads_of(site.layer)
    pairs = length * length * heads * (key_dim + value_dim)
    row = {
        "layer": site.path,
        "attention": type(site.layer).__name__,
        "cache bytes": 4 * length * groups * (key_dim + value_dim),
        "operations": pairs,
        **_without_mechanism("softmax (stays)"),
    }
    if mechanism is None:
        return row
    row["becomes"] = name_of(mechanism) or type(mechanism).__name__
    sizes = (heads, key_dim, value_dim)
    fresh, spec = _measured(mechanism, sizes, length)
    row["parameters"] = fresh
    if spec is not None:
        row["state bytes"] = sum(_bytes(x) for x in keras.tree.flatten(spec))
        row["linear operations"] = _operations(spec, length)
    return row


def _measured(mechanism, sizes, length):
    """Returns a mechanism's number of parameters and its state's spec.

    A number is `None` for a gated mechanism, a spec for one without states.
    """
    heads, key_dim, value_dim = sizes
    copy = copy_of(mechanism)
    shapes = [(None, heads, length, size) for size in (key_dim, key_dim)]
    if not copy.traits.gated:
        copy.build(*shapes, (None, heads, length, value_dim))
    try:
        spec = copy.state_spec(*sizes)
    except (NotImplementedError, ValueError):
        spec = None
    return copy.count_params() if copy.built else None, spec


def _bytes(leaf):
    size = keras.backend.standardize_dtype(leaf.dtype)
    width = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "bool": 1}
    return width.get(size, 2) * _elements(leaf)


def _elements(leaf):
    count = 1
    for size in leaf.shape[1:]:
        count *= size
    return count


def _operations(spec, length):
    """Multiply-adds: each position is added to the state, and reads it."""
    return 2 * length * sum(map(_elements, keras.tree.flatten(spec)))


def _cell(value):
    if value is None:
        return "n/a"
    return f"{value:,}" if isinstance(value, int) else str(value)
