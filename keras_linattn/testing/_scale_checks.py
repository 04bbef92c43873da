"""Checks of sizes: very small and very large heads, and float64."""

import dataclasses
import warnings

import keras
import numpy as np
from keras import ops

from keras_linattn.testing._backends import call_mechanism
from keras_linattn.testing._backends import step_of
from keras_linattn.testing._backends import tensors
from keras_linattn.testing._gradient_checks import fast_gradients
from keras_linattn.testing._subject import always
from keras_linattn.testing._subject import assert_close
from keras_linattn.testing._subject import require
from keras_linattn.testing._subject import run
from keras_linattn.testing._subject import visible_rows

# The exponent of a kernel may be the square of a head. At a scale of 100 its
# rounding error changes a weight by a thousandth, which shows if keys are
# nearly equal.
EXACT_SCALES = (1e-6, 1e-3, 3.0)
LENGTH = 9


def sized_inputs(subject):
    """Inputs of many sizes as one batch, and a name for each row of it."""
    inputs = subject.inputs(queries=LENGTH, keys=LENGTH, visible=0.8, seed=3)
    query, key, value = inputs.query, inputs.key, inputs.value
    axes = np.eye(query.shape[-1], dtype="float32")
    hot = np.broadcast_to(axes[np.arange(LENGTH) % len(axes)], query.shape)
    changes = {
        f"times {scale:g}": {"query": scale * query, "key": scale * key}
        for scale in (*EXACT_SCALES, 100.0, 1e3, 1e6)
    }
    changes |= {
        "constant": {"query": 0 * query + 3, "key": 0 * key + 3},
        "negative": {"query": 0 * query - 50, "key": 0 * key - 50},
        "one-hot": {"query": 100 * hot, "key": 100 * np.roll(hot, 1, 2)},
        "duplicated": {"key": 20 * np.repeat(key[:, :, :1], LENGTH, axis=2)},
        "opposite": {"query": -100 * key},
        "large values": {"value": 1e30 * value},
    }
    every = [inputs.replace(**heads) for heads in changes.values()]
    names = [field.name for field in dataclasses.fields(inputs)]
    joined = {n: np.concatenate([getattr(x, n) for x in every]) for n in names}
    for name in ("query", "key", "value"):
        joined[name] = joined[name].astype("float32")
    return np.repeat(list(changes), len(query)), inputs.replace(**joined)


def check_sizes_match_reference(subject):
    """Where float32 has an answer: heads of 1e-6 to 3, values of 1e30."""
    names, inputs = sized_inputs(subject)
    exact = [f"times {scale:g}" for scale in EXACT_SCALES]
    chosen = np.isin(names, [*exact, "constant", "large values"])
    mechanism = subject.shared(inputs)
    for causal in subject.traits.forms:
        expected = visible_rows(
            subject.expected(mechanism, inputs, causal), inputs
        )
        output = visible_rows(run(mechanism, inputs, causal), inputs)
        for row in np.flatnonzero(chosen):
            scale = max(1, np.abs(expected[row]).max())
            assert_close(
                output[row] / scale,
                expected[row] / scale,
                10 * subject.traits.tolerance,
                f"{names[row]}, causal={causal}",
            )


def check_every_size_is_finite(subject):
    """Outputs and gradients; weights >= 0 of sum 1 leave no value's range."""
    names, inputs = sized_inputs(subject)
    mechanism = subject.shared(inputs)
    scale = np.abs(inputs.value).max(axis=(1, 2, 3), keepdims=True)
    for causal in subject.traits.forms:
        output = visible_rows(run(mechanism, inputs, causal), inputs)
        finite = np.isfinite(output).all(axis=(1, 2, 3))
        require(finite.all(), f"not finite: {names[~finite]}, {causal=}")
        if subject.traits.normalised and not subject.traits.signed:
            _require_within_values(names, output / scale, inputs, causal)
        cotangent = np.broadcast_to(1 / np.maximum(scale, 1), output.shape)
        cotangent = cotangent.astype("float32")
        found = fast_gradients(mechanism, inputs, cotangent, causal)
        bad = [k for k, g in found.items() if not np.isfinite(g).all()]
        require(not bad, f"gradients of {bad} are not finite, {causal=}")


def _require_within_values(names, output, inputs, causal):
    """Entries from the least to the largest visible value, or 0."""
    shown = inputs.masks()[0][:, None, :, None]
    value = np.where(shown, inputs.value, 0)  # 0: a row that sees nothing
    value = value / np.abs(inputs.value).max(axis=(1, 2, 3), keepdims=True)
    low = value.min(axis=2, keepdims=True) - 1e-5
    high = value.max(axis=2, keepdims=True) + 1e-5
    within = ((low <= output) & (output <= high)).all(axis=(1, 2, 3))
    require(within.all(), f"out of range: {names[~within]}, {causal=}")


def check_visible_rows_do_not_count_as_empty(subject):
    """A constant value gives that constant at every size."""
    names, inputs = sized_inputs(subject)
    inputs = inputs.replace(value=np.ones_like(inputs.value))
    mechanism = subject.shared(inputs)
    for causal in subject.traits.forms:
        # Features may be 0 by the formula: the reference says where.
        expected = subject.expected(mechanism, inputs, causal)
        output = run(mechanism, inputs, causal)
        error = np.abs(visible_rows(output - expected, inputs))
        fits = (error <= 10 * subject.traits.tolerance).all(axis=(1, 2, 3))
        require(fits.all(), f"not 1: {names[~fits]}, {causal=}")


def check_float64(subject):
    """float64 in and out, and the reference's output; under JAX float32."""
    # Not closer: under torch Keras' own products round to float32.
    compare_in_float64(subject, subject.traits.tolerance)


def compare_in_float64(subject, tolerance):
    """Raises an `AssertionError` unless output and reference agree."""
    with warnings.catch_warnings():
        # JAX says at each tensor that it has no float64.
        warnings.filterwarnings("ignore", message="Explicitly requested dtype")
        _compare_in_float64(subject, tolerance)


def _compare_in_float64(subject, tolerance):
    inputs = subject.inputs(queries=LENGTH, keys=LENGTH, visible=0.8)
    mechanism = subject.build(inputs, dtype="float64")
    heads = [
        ops.convert_to_tensor(x, dtype="float64")
        for x in (inputs.query, inputs.key, inputs.value)
    ]
    key_mask, query_mask = tensors([inputs.key_mask, inputs.query_mask])
    # JAX makes float32 of them.
    exact = keras.backend.standardize_dtype(heads[0].dtype) == "float64"
    for causal in subject.traits.forms:
        expected = visible_rows(
            subject.expected(mechanism, inputs, causal), inputs
        )
        masks = {"key_mask": key_mask, "query_mask": query_mask}
        outputs = [call_mechanism(mechanism, heads, causal, masks)]
        if causal and subject.traits.recurrent:
            sizes = (*inputs.query.shape[:2], *inputs.query.shape[3:])
            state = mechanism.initial_state(*sizes, inputs.value.shape[3])
            step = step_of(mechanism)
            outputs.append(step(state, *heads, key_mask)[0])
        for output in outputs:
            output = ops.convert_to_numpy(output)
            dtype = "float64" if exact else "float32"
            require(output.dtype == dtype, f"dtype {output.dtype}")
            assert_close(visible_rows(output, inputs), expected, tolerance)


CHECKS = {
    check_sizes_match_reference: always,
    check_every_size_is_finite: always,
    check_visible_rows_do_not_count_as_empty: lambda t: t.normalised,
    check_float64: always,
}
