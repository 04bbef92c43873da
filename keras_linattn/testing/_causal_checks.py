"""Checks of causal and recurrent forms."""

import dataclasses
import itertools

import keras
import numpy as np
from keras import ops

from keras_linattn.testing._backends import step_of
from keras_linattn.testing._subject import assert_close
from keras_linattn.testing._subject import compare_with_reference
from keras_linattn.testing._subject import require
from keras_linattn.testing._subject import run
from keras_linattn.testing._subject import visible_rows

# The chunk length of 64, and well past it; shorter ones are in other checks.
LENGTHS = (64, 150)
SCALES = (20, 30, 1e3)
HEADS = ("query", "key", "value")
LENGTH = 12
PIECES = ((LENGTH,), (1,) * LENGTH, (4, 1, 7))


def check_causal_matches_reference(subject):
    for length in LENGTHS:
        inputs = subject.inputs(queries=length, keys=length, value_dim=3)
        compare_with_reference(subject, inputs, causal=True)
    inputs = subject.inputs(queries=65, keys=65, visible=0.6)
    compare_with_reference(subject, inputs, causal=True)


def check_future_is_invisible(subject):
    """Whatever comes from position t on leaves all before it, bit for bit.

    Other numbers and huge ones; NaN and infinities in queries, keys and
    values together and in one alone, since 0 times NaN is NaN. All at once, as
    the rows of one batch.
    """
    changes = [(HEADS, scale) for scale in (1, 1e6, -1e30)]
    changes += itertools.product(
        (HEADS, ("key",), ("value",)), (np.nan, np.inf)
    )
    cases = list(itertools.product((1, 40, 69), changes))
    sizes = {"queries": 70, "keys": 70}
    once = subject.inputs(batch=1, **sizes)
    rows = {n: np.repeat(getattr(once, n), len(cases), 0) for n in HEADS}
    inputs = once.replace(**rows)
    other = subject.inputs(batch=len(cases), **sizes, seed=1)
    altered = {name: x.copy() for name, x in rows.items()}
    for row, (first, (names, scale)) in enumerate(cases):
        for name in names:
            future = getattr(other, name)[row, :, first:]
            altered[name][row, :, first:] = np.float32(scale) * future
    mechanism = subject.shared(inputs)
    expected = run(mechanism, inputs, causal=True)
    output = run(mechanism, inputs.replace(**altered), causal=True)
    for row, (first, change) in enumerate(cases):
        np.testing.assert_array_equal(
            output[row, :, :first], expected[row, :, :first], f"{change}"
        )


def check_refuses_causal(subject):
    _expect_refusal(subject, True, "causal")


def check_refuses_to_see_the_future(subject):
    _expect_refusal(subject, False, "causal=True")


def _expect_refusal(subject, causal, said):
    """`causal` is a form that the traits deny: an error must say so."""
    inputs = subject.inputs()
    mechanism = subject.build(inputs)
    try:
        run(mechanism, inputs, causal=causal)
    except ValueError as error:
        require(said in str(error), f"unclear: {error}")
    else:
        raise AssertionError(
            f"the traits exclude causal={causal}, but a call accepts it"
        )


def check_steps_give_the_whole(subject):
    """Whole = pieces of any size = token by token."""
    inputs = _short_inputs(subject, visible=0.8)
    mechanism = subject.shared(inputs)
    expected = visible_rows(run(mechanism, inputs, causal=True), inputs)
    for pieces, output in _in_pieces(mechanism, inputs):
        assert_close(output, expected, subject.traits.tolerance, f"{pieces}")


def _short_inputs(subject, **options):
    return subject.inputs(queries=LENGTH, keys=LENGTH, value_dim=3, **options)


def check_large_inputs_give_the_whole(subject):
    """Whole = pieces where heads rise by tens and thousands.

    The rounding of an exponent grows with the heads, and so does the
    tolerance; it is relative to the largest output.
    """
    for scale in SCALES:
        inputs = _short_inputs(subject, scale=scale)
        mechanism = subject.shared(inputs)
        expected = run(mechanism, inputs, causal=True)
        unit = np.abs(expected).max()
        for pieces, output in _in_pieces(mechanism, inputs):
            assert_close(
                output / unit,
                expected / unit,
                scale * subject.traits.tolerance,
                f"{pieces}, inputs times {scale}",
            )


def check_state_dtype(subject):
    """Half the memory: a state is rounded once a piece, and nothing else is.

    What is no sum of numbers, such as a position, keeps its dtype.
    """
    config = {**subject.config, "state_dtype": "bfloat16"}
    narrow = dataclasses.replace(subject, config=config)
    inputs = _short_inputs(subject)
    mechanism = narrow.build(inputs)
    spec = keras.tree.flatten(mechanism.state_spec(2, 4, 3))
    require("bfloat16" in [x.dtype for x in spec], f"not in the spec: {spec}")
    exact = subject.build(inputs)
    exact.set_weights(mechanism.get_weights())
    expected = run(exact, inputs, causal=True)
    np.testing.assert_array_equal(run(mechanism, inputs, causal=True), expected)
    unit = np.abs(expected).max()
    for _, output in _in_pieces(mechanism, inputs, [PIECES[-1]]):
        assert_close(output / unit, expected / unit, 3e-2)


def check_refuses_states_that_are_no_numbers(subject):
    inputs = subject.inputs()
    mechanism = subject.build(inputs)
    state = keras.tree.map_structure(
        lambda x: ops.cast(x, "bool"), mechanism.initial_state(2, 2, 4, 4)
    )
    heads = [ops.convert_to_tensor(getattr(inputs, x)) for x in HEADS]
    try:
        mechanism.step(state, *heads)
    except TypeError as error:
        require("Received: dtype bool" in str(error), f"unclear: {error}")
    else:
        raise AssertionError("a step accepts a state of dtype bool")


def _in_pieces(mechanism, inputs, divisions=PIECES):
    """Yields sizes of pieces and the visible rows of their outputs."""
    step = step_of(mechanism)
    batch, heads, _, key_dim = inputs.key.shape
    for pieces in divisions:
        state = mechanism.initial_state(
            batch, heads, key_dim, inputs.value.shape[3]
        )
        outputs, start = [], 0
        for size in pieces:
            now = slice(start, start + size)
            before = state
            arrays = [getattr(inputs, x)[:, :, now] for x in HEADS]
            arrays.append(inputs.masks()[0][:, now])
            output, state = step(state, *map(ops.convert_to_tensor, arrays))
            _require_same_structure(before, state)
            outputs.append(ops.convert_to_numpy(output))
            start += size
        yield pieces, visible_rows(np.concatenate(outputs, axis=2), inputs)


def _require_same_structure(before, after):
    """A tree of tensors, batch first, whose sizes and dtypes never change."""

    def facts(state):
        return [
            (tuple(x.shape), keras.backend.standardize_dtype(x.dtype))
            for x in keras.tree.flatten(state)
        ]

    require(facts(before) == facts(after), f"{facts(before)} -> {facts(after)}")
    require(all(shape[0] == 2 for shape, _ in facts(after)), "batch not first")


CHECKS = {
    check_refuses_to_see_the_future: lambda t: not t.bidirectional,
    check_causal_matches_reference: lambda t: t.causal,
    check_future_is_invisible: lambda t: t.causal,
    check_refuses_causal: lambda t: not t.causal,
    check_steps_give_the_whole: lambda t: t.recurrent,
    check_large_inputs_give_the_whole: lambda t: t.recurrent,
    check_state_dtype: lambda t: t.recurrent,
    check_refuses_states_that_are_no_numbers: lambda t: t.recurrent,
}
