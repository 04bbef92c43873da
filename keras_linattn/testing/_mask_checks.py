"""Checks that masked positions never change a result."""

import keras
import numpy as np
from keras import ops

from keras_linattn.testing._backends import step_of
from keras_linattn.testing._backends import tensors
from keras_linattn.testing._subject import always
from keras_linattn.testing._subject import assert_close
from keras_linattn.testing._subject import require
from keras_linattn.testing._subject import run
from keras_linattn.testing._subject import visible_rows

EXTREMES = (np.nan, np.inf, 1e30, -1e30)


def fill_masked(inputs, with_value):
    """Writes `with_value` into every masked key, value and query."""
    key_mask, query_mask = inputs.masks()
    hidden = ~key_mask[:, None, :, None]
    hidden_query = ~query_mask[:, None, :, None]
    return inputs.replace(
        key=np.where(hidden, np.float32(with_value), inputs.key),
        value=np.where(hidden, np.float32(with_value), inputs.value),
        query=np.where(hidden_query, np.float32(with_value), inputs.query),
    )


def check_masked_keys_are_inert(subject):
    """NaN and 1e30 in masked positions do not change one bit."""
    inputs = subject.inputs(queries=9, keys=9, visible=0.6)
    mechanism = subject.shared(inputs)
    expected = visible_rows(run(mechanism, inputs), inputs)
    for extreme in EXTREMES:
        output = visible_rows(
            run(mechanism, fill_masked(inputs, extreme)), inputs
        )
        np.testing.assert_array_equal(output, expected, f"{extreme} leaks")


def check_no_visible_key_gives_zero(subject):
    """A row that sees no key is 0, never NaN."""
    inputs = subject.inputs(queries=9, keys=9)
    mask = np.array([[False] * 9, [True] * 9])
    inputs = inputs.replace(key_mask=mask, query_mask=None)
    if not subject.traits.cross:
        inputs = inputs.replace(query_mask=mask)
    output = run(subject.shared(inputs), fill_masked(inputs, np.nan))
    np.testing.assert_array_equal(output[0], np.zeros_like(output[0]))
    require(np.isfinite(output[1]).all(), "another row is not finite")


def check_padding_is_exact(subject):
    """A padded batch gives what each sequence gives alone."""
    lengths, longest = (4, 9), 9
    inputs = subject.inputs(batch=2, queries=longest, keys=longest)
    mechanism = subject.shared(inputs)
    # Linformer's projection belongs to positions: padding goes to the end.
    sides = (False,) if subject.traits.needs_length else (False, True)
    for left in sides:
        position = np.arange(longest)
        position = position[::-1] if left else position
        mask = position < np.array(lengths)[:, None]
        padded = inputs.replace(key_mask=mask, query_mask=mask)
        together = run(mechanism, fill_masked(padded, 7.0))
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


def check_empty_inputs_give_the_empty_result(subject):
    """No batch, no queries, no keys: 0 where there is anything at all."""
    mechanism = subject.shared(subject.inputs())
    sizes = [(0, 6, 6), (2, 0, 0)]
    if subject.traits.cross and subject.traits.bidirectional:
        sizes += [(2, 6, 0), (2, 0, 6)]
    for batch, queries, keys in sizes:
        inputs = subject.inputs(
            batch=batch, queries=queries, keys=keys, visible=0.5
        )
        bare = inputs.replace(key_mask=None, query_mask=None)
        for given in (inputs, bare):
            output = run(mechanism, given)
            np.testing.assert_array_equal(
                output, np.zeros((batch, 2, queries, 4), "float32")
            )


def check_no_new_position_leaves_the_state(subject):
    """Neither does a batch of none fail."""
    inputs = subject.inputs()
    mechanism = subject.shared(inputs)
    step = step_of(mechanism)
    start = mechanism.initial_state(2, 2, 4, 4)
    _, state = step(start, *_heads(inputs), None)
    nothing = _heads(subject.inputs(queries=0, keys=0))
    output, after = step(state, *nothing, None)
    require(tuple(output.shape) == (2, 2, 0, 4), f"shape {output.shape}")
    for old, new in zip(keras.tree.flatten(state), keras.tree.flatten(after)):
        old, new = ops.convert_to_numpy(old), ops.convert_to_numpy(new)
        np.testing.assert_array_equal(old, new)
    state = mechanism.initial_state(0, 2, 4, 4)
    output, _ = step(state, *_heads(subject.inputs(batch=0)), None)
    require(tuple(output.shape) == (0, 2, 6, 4), f"shape {output.shape}")


def _heads(inputs):
    return tensors([inputs.query, inputs.key, inputs.value])


CHECKS = {
    check_masked_keys_are_inert: always,
    check_no_visible_key_gives_zero: always,
    check_padding_is_exact: always,
    check_empty_inputs_give_the_empty_result: always,
    check_no_new_position_leaves_the_state: lambda t: t.recurrent,
}
