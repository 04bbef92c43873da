"""Checks of graphs: unknown sizes, compilation, no quadratic array."""

import keras
import numpy as np

from keras_linattn.testing._backends import compiled
from keras_linattn.testing._backends import largest_intermediate
from keras_linattn.testing._backends import quick
from keras_linattn.testing._backends import with_free_sizes
from keras_linattn.testing._subject import always
from keras_linattn.testing._subject import assert_close
from keras_linattn.testing._subject import run
from keras_linattn.testing._subject import visible_rows

HEADS = ("query", "key", "value")


def arrays_of(inputs):
    return [*(getattr(inputs, name) for name in HEADS), inputs.key_mask]


def function_of(mechanism, causal):
    """Of self-attention, where one mask serves queries and keys."""

    def call(query, key, value, mask):
        return mechanism(
            query, key, value, key_mask=mask, query_mask=mask, causal=causal
        )

    return call


def check_compiles(subject):
    """Under XLA (TensorFlow, JAX) the numbers are the reference's."""
    inputs = subject.inputs(queries=9, keys=9, visible=0.7)
    mechanism = subject.shared(inputs)
    for causal in subject.traits.forms:
        output = compiled(function_of(mechanism, causal), arrays_of(inputs))
        expected = subject.expected(mechanism, inputs, causal)
        assert_close(
            visible_rows(output, inputs),
            visible_rows(expected, inputs),
            subject.traits.tolerance,
        )


def check_free_batch_and_length(subject):
    """One trace serves every batch size and length, and is the reference."""
    longest = subject.inputs(queries=70, keys=70)
    mechanism = subject.shared(longest)
    heads = ("b", 2, "t", 4)
    for causal in subject.traits.forms:
        traced = with_free_sizes(
            function_of(mechanism, causal),
            [heads, heads, heads, ("b", "t")],
            ["float32", "float32", "float32", "bool"],
        )
        for batch, length in ((1, 1), (3, 70)):
            inputs = subject.inputs(
                batch=batch, queries=length, keys=length, visible=0.7
            )
            expected = subject.expected(mechanism, inputs, causal)
            assert_close(
                visible_rows(traced(*arrays_of(inputs)), inputs),
                visible_rows(expected, inputs),
                subject.traits.tolerance,
                f"batch {batch}, length {length}",
            )


def check_symbolic_inputs(subject):
    """Keras' own symbolic tensors, batch and length `None`."""
    inputs = subject.inputs(queries=9, keys=9)
    mechanism = subject.build(inputs)
    symbols = [keras.Input((2, None, 4), name=name) for name in HEADS]
    causal = subject.traits.forms[0]
    model = keras.Model(symbols, mechanism(*symbols, causal=causal))
    if model.output_shape != (None, 2, None, 4):
        raise AssertionError(
            "the output shape must be (None, 2, None, 4), but is "
            f"{model.output_shape}"
        )
    output = quick(lambda *heads: model(list(heads)), arrays_of(inputs)[:3])
    assert_close(output, run(mechanism, inputs), subject.traits.tolerance)


def check_refuses_lengths_at_run_time(subject):
    """Unknown lengths that break a rule: an error or NaN, never numbers."""
    traits = subject.traits
    mechanism = subject.shared(subject.inputs())
    bound = getattr(mechanism, "sequence_length", None)
    for causal in traits.forms:
        lengths = [(5, 3)] if causal or not traits.cross else []
        if traits.needs_length and bound <= 64:
            lengths.append((bound + 1, bound + 1))
        for queries, keys in lengths:
            arrays = arrays_of(subject.inputs(queries=queries, keys=keys))
            try:
                output = with_free_sizes(
                    lambda *heads: mechanism(*heads, causal=causal),
                    [("b", 2, "t", 4), ("b", 2, "s", 4), ("b", 2, "s", 4)],
                    ["float32"] * 3,
                )(*arrays[:3])
            except Exception:  # each backend has its own
                continue
            if not np.isnan(output).any():
                raise AssertionError(
                    f"a call accepts {queries} queries and {keys} keys; it "
                    "must fail or return NaN"
                )


def check_no_quadratic_array(subject):
    """Twice the length forms at most twice as large an array."""
    for causal in subject.traits.forms:
        sizes = []
        for length in (1024, 2048):
            inputs = subject.inputs(
                batch=1, heads=1, queries=length, keys=length
            )
            mask = np.ones((1, length), bool)
            arrays = arrays_of(inputs.replace(key_mask=mask))
            function = function_of(subject.build(inputs), causal)
            sizes.append(largest_intermediate(function, arrays))
        if sizes[1] > 2 * sizes[0] or sizes[1] >= 2048**2:
            raise AssertionError(
                f"the largest array has {sizes[0]} entries at length 1,024 "
                f"and {sizes[1]} at 2,048 (causal={causal})"
            )


def _has_a_rule_of_lengths(traits):
    return traits.causal or traits.needs_length or not traits.cross


CHECKS = {
    check_compiles: always,
    check_free_batch_and_length: always,
    check_symbolic_inputs: always,
    check_refuses_lengths_at_run_time: _has_a_rule_of_lengths,
    check_no_quadratic_array: lambda t: t.linear,
}
