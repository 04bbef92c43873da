"""Checks of sizes: very small and very large heads, and float64."""

import keras
import numpy as np
from keras import ops

from keras_linattn.testing._gradient_checks import fast_gradients
from keras_linattn.testing._subject import assert_close
from keras_linattn.testing._subject import require
from keras_linattn.testing._subject import run
from keras_linattn.testing._subject import visible_rows

# The exponent of a kernel may be the square of a head: at 100 its rounding is
# a thousandth of a weight, and where keys are alike that is seen.
EXACT_SCALES = (1e-6, 1e-3, 3.0)
LENGTH = 9


def sized_inputs(subject):
    """Inputs of many sizes by name, one shape for all: nothing is compiled."""
    inputs = subject.inputs(queries=LENGTH, keys=LENGTH, visible=0.8, seed=3)
    query, key, value = inputs.query, inputs.key, inputs.value
    axes = np.eye(query.shape[-1], dtype="float32")
    hot = np.broadcast_to(axes[np.arange(LENGTH) % len(axes)], query.shape)
    duplicated = np.repeat(key[:, :, :1], LENGTH, axis=2)
    changes = {
        f"times {scale:g}": {"query": scale * query, "key": scale * key}
        for scale in (*EXACT_SCALES, 100.0, 1e3, 1e6)
    }
    changes |= {
        "constant": {"query": 0 * query + 3, "key": 0 * key + 3},
        "negative": {"query": 0 * query - 50, "key": 0 * key - 50},
        "one-hot": {"query": 100 * hot, "key": 100 * np.roll(hot, 1, 2)},
        "duplicated": {"key": 20 * duplicated},
        "opposite": {"query": -100 * key},
        "large values": {"value": 1e30 * value},
    }
    for name, heads in changes.items():
        heads = {k: x.astype("float32") for k, x in heads.items()}
        yield name, inputs.replace(**heads)


def check_small_and_large_heads_match_reference(subject):
    """Heads of 1e-6 to 3, and values of 1e30."""
    exact = [f"times {scale:g}" for scale in EXACT_SCALES]
    for name, inputs in sized_inputs(subject):
        if name not in [*exact, "constant", "large values"]:
            continue
        mechanism = subject.build(inputs)
        for causal in subject.traits.forms:
            expected = subject.expected(mechanism, inputs, causal)
            scale = max(1, np.abs(expected).max())
            output = run(mechanism, inputs, causal)
            assert_close(
                visible_rows(output, inputs) / scale,
                visible_rows(expected, inputs) / scale,
                10 * subject.traits.tolerance,
                f"{name}, causal={causal}",
            )


def check_outputs_are_finite_at_every_size(subject):
    """And of a mechanism whose weights sum to 1, within the visible values."""
    for name, inputs in sized_inputs(subject):
        mechanism = subject.build(inputs)
        for causal in subject.traits.forms:
            output = visible_rows(run(mechanism, inputs, causal), inputs)
            label = f"{name}, causal={causal}"
            require(np.isfinite(output).all(), f"{label}: not finite")
            if subject.traits.normalised:
                _require_within_values(output, inputs, label)
            size = np.abs(inputs.value).max()
            cotangent = np.full(output.shape, 1 / max(1, size), "float32")
            found = fast_gradients(mechanism, inputs, cotangent, causal)
            bad = [k for k, g in found.items() if not np.isfinite(g).all()]
            require(not bad, f"{label}: gradients of {bad} are not finite")


def _require_within_values(output, inputs, label):
    """Entries between the least and the largest visible value, or 0."""
    shown = inputs.masks()[0][:, None, :, None]
    value = np.where(shown, inputs.value, 0)  # 0: a row that sees nothing
    slack = 1e-5 * np.abs(value).max()
    low = value.min(axis=2, keepdims=True) - slack
    high = value.max(axis=2, keepdims=True) + slack
    within = (low <= output) & (output <= high)
    require(within.all(), f"{label}: {output[~within][:3]} is out of range")


def check_visible_rows_do_not_count_as_empty(subject):
    """A constant value gives that constant at every size."""
    for name, inputs in sized_inputs(subject):
        inputs = inputs.replace(value=np.ones_like(inputs.value))
        mechanism = subject.build(inputs)
        for causal in subject.traits.forms:
            # Features may be 0 by the formula: the reference says where.
            expected = subject.expected(mechanism, inputs, causal)
            assert_close(
                visible_rows(run(mechanism, inputs, causal), inputs),
                visible_rows(expected, inputs),
                10 * subject.traits.tolerance,
                f"{name}, causal={causal}",
            )


def check_float64(subject):
    """float64 in, float64 computed and out; JAX computes it as float32."""
    inputs = subject.inputs(queries=LENGTH, keys=LENGTH, visible=0.8)
    mechanism = subject.build(inputs, dtype="float64")
    exact = keras.backend.backend() != "jax"
    heads = [
        ops.convert_to_tensor(x, dtype="float64")
        for x in (inputs.query, inputs.key, inputs.value)
    ]
    for causal in subject.traits.forms:
        expected = visible_rows(
            subject.expected(mechanism, inputs, causal), inputs
        )
        masks = {"key_mask": inputs.key_mask, "query_mask": inputs.query_mask}
        outputs = [mechanism(*heads, causal=causal, **masks)]
        if causal and subject.traits.recurrent:
            sizes = (*inputs.query.shape[:2], *inputs.query.shape[3:])
            state = mechanism.initial_state(*sizes, inputs.value.shape[3])
            mask = ops.convert_to_tensor(inputs.key_mask)
            outputs.append(mechanism.step(state, *heads, key_mask=mask)[0])
        for output in outputs:
            output = ops.convert_to_numpy(output)
            dtype = "float64" if exact else "float32"
            require(output.dtype == dtype, f"dtype {output.dtype}")
            tolerance = 1e-10 if exact else subject.traits.tolerance
            assert_close(visible_rows(output, inputs), expected, tolerance)


def _always(traits):
    return True


CHECKS = {
    check_small_and_large_heads_match_reference: _always,
    check_outputs_are_finite_at_every_size: _always,
    check_visible_rows_do_not_count_as_empty: lambda t: t.normalised,
    check_float64: _always,
}
