"""Checks of masks: exact, and nothing behind them is ever seen."""

import numpy as np

from keras_linattn.testing._subject import assert_close
from keras_linattn.testing._subject import require
from keras_linattn.testing._subject import run
from keras_linattn.testing._subject import visible_rows

EXTREMES = (np.nan, np.inf, 1e30, -1e30)


def spoil(inputs, with_value):
    """The inputs with `with_value` at every hidden key and value.

    Hidden queries are spoilt too where they are the keys' own positions.
    """
    key_mask, query_mask = inputs.masks()
    hidden = ~key_mask[:, None, :, None]
    hidden_query = ~query_mask[:, None, :, None]
    return inputs.replace(
        key=np.where(hidden, np.float32(with_value), inputs.key),
        value=np.where(hidden, np.float32(with_value), inputs.value),
        query=np.where(hidden_query, np.float32(with_value), inputs.query),
    )


def check_masked_keys_are_inert(subject):
    """NaN and 1e30 behind the mask change not one bit."""
    inputs = subject.inputs(queries=8, keys=8, visible=0.6)
    mechanism = subject.build(inputs)
    expected = visible_rows(run(mechanism, inputs), inputs)
    for extreme in EXTREMES:
        output = visible_rows(run(mechanism, spoil(inputs, extreme)), inputs)
        np.testing.assert_array_equal(output, expected, f"{extreme} leaks")


def check_no_visible_key_gives_zero(subject):
    """A row that sees no key is 0, never NaN."""
    inputs = subject.inputs(queries=5, keys=5, visible=1.0)
    mask = np.array([[False] * 5, [True] * 5])
    inputs = inputs.replace(key_mask=mask, query_mask=None)
    if not subject.traits.cross:
        inputs = inputs.replace(query_mask=mask)
    output = run(subject.build(inputs), spoil(inputs, np.nan))
    np.testing.assert_array_equal(output[0], np.zeros_like(output[0]))
    require(np.isfinite(output[1]).all(), "another row is not finite")


def check_padding_is_exact(subject):
    """A padded batch gives what each sequence gives alone."""
    lengths, longest = (4, 9), 9
    inputs = subject.inputs(batch=2, queries=longest, keys=longest)
    mechanism = subject.build(inputs)
    # Linformer's projection belongs to positions: padding goes to the end.
    sides = (False,) if subject.traits.needs_length else (False, True)
    for left in sides:
        position = np.arange(longest)
        position = position[::-1] if left else position
        mask = position < np.array(lengths)[:, None]
        padded = inputs.replace(key_mask=mask, query_mask=mask)
        together = run(mechanism, spoil(padded, 7.0))
        for row, visible in enumerate(mask):
            one = slice(row, row + 1)
            alone = inputs.replace(
                query=inputs.query[one][:, :, visible],
                key=inputs.key[one][:, :, visible],
                value=inputs.value[one][:, :, visible],
            )
            assert_close(
                together[one][:, :, visible],
                run(mechanism, alone),
                subject.traits.tolerance,
                f"length {lengths[row]}, padded on the "
                f"{'left' if left else 'right'}",
            )


def _always(traits):
    return True


CHECKS = {
    check_masked_keys_are_inert: _always,
    check_no_visible_key_gives_zero: _always,
    check_padding_is_exact: _always,
}
