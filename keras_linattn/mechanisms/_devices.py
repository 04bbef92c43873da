"""Calls a mechanism on several devices, each with its part of the heads.

The compiler alone would often gather whole sequences, because it cannot see how
to split chunks, running sums and loops.
"""

import inspect

import keras
from keras import ops

from keras_linattn.core.devices import on_each_device

# The axes of call arguments: batch, heads and length by these letters.
HEADS = "bht"
POSITIONS = "bt"
# Methods that define attention, and those that define it for pieces.
WHOLE = {"attend", "attend_both_ways", "advance", "chunked", "one_step"}
IN_PIECES = {"attend_pieces", "state_fades"}
OPTIONS = {
    "key_mask": POSITIONS,
    "query_mask": POSITIONS,
    "inputs": POSITIONS,
    "segment_ids": POSITIONS,
}


def attend_on_devices(mechanism, heads, split, **options):
    """Returns `mechanism(*heads, **options)`, split over devices by `split`.

    Args:
        mechanism: built `Mechanism`.
        heads: tuple of query, key and value, `[B, H, T, .]`.
        split: `core.devices.Split`, or `None` without a distribution.
        **options: further arguments of a call.

    Raises:
        ValueError: if the length is split, and the mechanism, these options or
            these lengths cannot be.
    """
    if split is None or not all(map(ops.is_tensor, heads)):
        return mechanism(*heads, **options)
    split = _fitting(split, mechanism, heads)
    if split.pieces is not None:
        _check_pieces(split.pieces, mechanism, heads, options)
    elif not declares_weights(mechanism):
        return mechanism(*heads, **options)
    return _spread(mechanism, heads, split, options)


def declares_weights(mechanism):
    """Does `head_axes` name every variable of the mechanism?"""
    axes = mechanism.head_axes
    return axes is not None and all(
        v.path.rpartition("/")[2] in axes for v in mechanism.variables
    )


def _fitting(split, mechanism, heads):
    """`split` without the axes that cannot be split here."""
    batch, count = heads[0].shape[:2]
    if not isinstance(batch, int) or batch % split.devices(split.batch):
        split = split._replace(batch=None)
    if not declares_weights(mechanism) or count % split.devices(split.heads):
        split = split._replace(heads=None)
    return split


def _check_pieces(pieces, mechanism, heads, options):
    """Raises a `ValueError` if the length cannot be split."""
    name = type(mechanism).__name__
    if not offers_pieces(mechanism):
        raise ValueError(
            f"`{name}` cannot attend to a sequence whose length is split over "
            f"devices. Received: {pieces.count} pieces. Use a mechanism with "
            "the trait `splits`, such as 'linear_transformer', or split the "
            "batch or the heads only."
        )
    lengths = [x.shape[2] for x in heads]
    if any(length % pieces.count for length in lengths):
        raise ValueError(
            "The number of devices that split the length must divide the "
            f"length. Received: lengths {lengths}, {pieces.count} devices. "
            "Pad the sequences."
        )
    if options.get("segment_ids") is not None:
        _check_packed(mechanism, options["segment_ids"])


def _check_packed(mechanism, segment_ids):
    """Raises a `ValueError` if packed rows cannot be split by their length."""
    mechanism.check_packs()
    way_out = (
        "Give each document a row of its own, or split the batch or the heads "
        "only."
    )
    if isinstance(segment_ids, (tuple, list)):
        raise ValueError(
            "Packed documents that attend to those of another sequence cannot "
            "be split over devices by their length. Received: a pair of "
            f"`segment_ids`. {way_out}"
        )
    parameters = inspect.signature(mechanism.attend_pieces).parameters
    if "documents" not in parameters:
        raise ValueError(
            f"`{type(mechanism).__name__}` cannot attend to packed documents "
            "that are split over devices by their length: its method "
            "`attend_pieces` has no argument `documents`. Received: "
            f"`segment_ids`. {way_out}"
        )


def offers_pieces(mechanism):
    """Does `attend_pieces` belong to the mechanism's definition of attention?

    A subclass with its own `attend` inherits an `attend_pieces` whose result
    would differ.
    """
    if not mechanism.traits.splits:
        return False
    for cls in type(mechanism).__mro__:
        if vars(cls).keys() & IN_PIECES:
            return True
        if vars(cls).keys() & WHOLE:
            return False
    return False


def _spread(mechanism, heads, split, options):
    given = {name: options.pop(name, None) for name in OPTIONS}
    given = {name: x for name, x in given.items() if x is not None}
    variables = mechanism.variables
    weights = [v.value for v in variables]
    letters = {"b": split.batch, "h": split.heads, "t": split.length}

    def names(axes):
        return tuple(letters[axis] for axis in axes)

    axes = [_weight_axes(mechanism, v, split) for v in variables]
    axes += [names(HEADS)] * 3 + [names(OPTIONS[name]) for name in given]

    def attend(*arrays):
        values, arrays = arrays[: len(weights)], arrays[len(weights) :]
        further = dict(zip(given, arrays[3:], strict=True), **options)
        with keras.StatelessScope() as scope:
            # Not by the scope's constructor, which requires whole weights.
            for variable, value in zip(variables, values, strict=True):
                scope.add_update((variable, value))
            if split.pieces is None:
                return mechanism(*arrays[:3], **further)
            return mechanism.call_pieces(split.pieces, *arrays[:3], **further)

    arrays = [*weights, *heads, *given.values()]
    return on_each_device(attend, arrays, axes, names(HEADS), split.mesh)


def _weight_axes(mechanism, variable, split):
    if split.heads is None:
        return ()
    axis = mechanism.head_axes[variable.path.rpartition("/")[2]]
    return () if axis is None else (None,) * axis + (split.heads,)
