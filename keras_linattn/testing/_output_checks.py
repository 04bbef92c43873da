"""Checks of outputs: the reference, and what the traits promise."""

import copy
import dataclasses

import numpy as np
from keras import ops

from keras_linattn.core.masks import apply_mask
from keras_linattn.core.shapes import heads_last
from keras_linattn.testing._backends import quick
from keras_linattn.testing._subject import always
from keras_linattn.testing._subject import assert_close
from keras_linattn.testing._subject import compare_with_reference
from keras_linattn.testing._subject import require
from keras_linattn.testing._subject import run

# (B, H, T, S, D, V): square, T < S, T > S, and V != D.
SHAPES = ((2, 2, 9, 9, 4, 4), (2, 2, 3, 11, 4, 5), (2, 2, 9, 4, 4, 2))
# One position, odd, and what the first and the last are without masks.
MORE_SHAPES = ((1, 1, 1, 1, 2, 3), (3, 2, 13, 13, 4, 6))


def sized(subject, shape, **options):
    """`Subject.inputs` of a shape, or `None` where the traits forbid it."""
    names = ("batch", "heads", "queries", "keys", "key_dim", "value_dim")
    if not subject.traits.cross and shape[2] != shape[3]:
        return None
    return subject.inputs(**dict(zip(names, shape, strict=True)), **options)


def _compare(subject, shapes, visible):
    for number, shape in enumerate(shapes):
        inputs = sized(subject, shape, visible=visible, seed=number)
        if inputs is not None:
            compare_with_reference(subject, inputs)


def check_matches_reference(subject):
    """With random masks."""
    _compare(subject, SHAPES, visible=0.6)


def check_more_shapes_match_reference(subject):
    """With random masks, and without any."""
    _compare(subject, MORE_SHAPES, visible=0.6)
    _compare(subject, (SHAPES[0], SHAPES[-1]), visible=None)


def check_single_key_gives_its_value(subject):
    """With S = 1 there is one thing to attend to."""
    inputs = subject.inputs(keys=1, queries=3 if subject.traits.cross else 1)
    output = run(subject.shared(inputs), inputs)
    expected = np.broadcast_to(inputs.value, output.shape)
    assert_close(output, expected, subject.traits.tolerance)


def check_constant_value_gives_that_constant(subject):
    """The weights of the visible positions sum to 1."""
    inputs = subject.inputs(keys=9, queries=9, visible=0.7, seed=3)
    row = np.linspace(-1, 1, 4, dtype="float32")
    inputs = inputs.replace(value=np.broadcast_to(row, inputs.value.shape))
    output = run(subject.shared(inputs), inputs)
    sees = inputs.key_mask.any(axis=1)[:, None] & inputs.query_mask
    expected = np.broadcast_to(row, output.shape)
    for batch, rows in enumerate(sees):
        assert_close(
            output[batch][:, rows],
            expected[batch][:, rows],
            subject.traits.tolerance,
        )


def check_key_order_does_not_matter(subject):
    """Permuting keys, values and mask together changes nothing."""
    inputs = subject.inputs(queries=9, keys=9, visible=0.7)
    order = np.random.default_rng(1).permutation(9)
    shuffled = inputs.replace(
        key=inputs.key[:, :, order],
        value=inputs.value[:, :, order],
        key_mask=inputs.key_mask[:, order],
    )
    mechanism = subject.shared(inputs)
    assert_close(
        run(mechanism, shuffled),
        run(mechanism, inputs),
        subject.traits.tolerance,
    )


def check_queries_are_independent(subject):
    """A query's output is the same in company and alone."""
    inputs = subject.inputs(queries=9, keys=9, visible=0.7)
    inputs = inputs.replace(query_mask=None)
    mechanism = subject.shared(inputs)
    alone = inputs.replace(query=inputs.query[:, :, 3:4])
    assert_close(
        run(mechanism, alone),
        run(mechanism, inputs)[:, :, 3:4],
        subject.traits.tolerance,
    )


def check_batch_rows_are_independent(subject):
    """A sequence's output is the same in a batch and alone."""
    inputs = subject.inputs(queries=9, keys=9, visible=0.7, seed=5)
    mechanism = subject.shared(inputs)
    together = run(mechanism, inputs)
    for row in range(2):
        alone = inputs.replace(
            query=inputs.query[row : row + 1],
            key=inputs.key[row : row + 1],
            value=inputs.value[row : row + 1],
            key_mask=inputs.key_mask[row : row + 1],
            query_mask=inputs.query_mask[row : row + 1],
        )
        assert_close(
            run(mechanism, alone),
            together[row : row + 1],
            subject.traits.tolerance,
        )


def check_attention_scores_give_the_output(subject):
    """The explicit matrix times the values is the output."""
    shape = SHAPES[1 if subject.traits.cross else 0]
    inputs = sized(subject, shape, visible=0.7)
    mechanism = subject.shared(inputs)

    def scores_of(query, key, key_mask, query_mask):
        return mechanism.attention_scores(
            query,
            key,
            key_mask=key_mask,
            query_mask=query_mask,
            causal=subject.traits.forms[0],
        )

    names = ("query", "key", "key_mask", "query_mask")
    scores = quick(scores_of, [getattr(inputs, name) for name in names])
    shape = (*inputs.query.shape[:3], inputs.key.shape[2])
    require(scores.shape == shape, f"scores of shape {scores.shape}")
    assert_close(
        scores @ inputs.value,
        run(mechanism, inputs),
        10 * subject.traits.tolerance,
    )


def check_factors_give_the_output(subject):
    """The factors of `Mechanism.factors`, multiplied out, are the output."""
    inputs = subject.inputs(queries=5, keys=7, visible=0.7)
    inputs = inputs.replace(query_mask=None)
    mechanism = subject.build(inputs)

    def factors_of(query, key, key_mask):
        key = apply_mask(key, key_mask)
        factors = mechanism.factors(
            heads_last(query), heads_last(key), key_mask
        )
        scale = ops.ones_like(factors.total)
        return factors, scale if factors.scale is None else factors.scale

    def multiplied(query, key, value, key_mask):
        factors, scale = factors_of(query, key, key_mask)
        value = apply_mask(value, key_mask)
        sums = ops.einsum("bshd,bhsv->bhdv", factors.key, value)
        sums = sums * ops.expand_dims(scale, -1)
        return ops.einsum("bthd,bhdv->bhtv", factors.query, sums)

    def missing(query, key, value, key_mask):
        factors, scale = factors_of(query, key, key_mask)
        return factors.total - scale * ops.sum(factors.key, axis=1)

    names = ("query", "key", "value", "key_mask")
    arrays = [getattr(inputs, name) for name in names]
    tolerance = subject.traits.tolerance
    assert_close(quick(multiplied, arrays), run(mechanism, inputs), tolerance)
    difference = quick(missing, arrays)
    assert_close(difference, np.zeros_like(difference), 10 * tolerance)


def check_inputs_are_unchanged(subject):
    """Nothing is written into the caller's arrays."""
    inputs = subject.inputs(queries=9, keys=9, visible=0.5)
    before = copy.deepcopy(inputs)  # torch's tensors share NumPy's memory
    run(subject.shared(inputs), inputs)
    for field in dataclasses.fields(inputs):
        np.testing.assert_array_equal(
            getattr(inputs, field.name), getattr(before, field.name)
        )


def _queries_stand_alone(traits):
    return traits.cross and not (traits.pools_queries or traits.positional)


def _is_separable(traits):
    return traits.separable and traits.bidirectional


CHECKS = {
    check_matches_reference: always,
    check_more_shapes_match_reference: always,
    check_single_key_gives_its_value: lambda t: t.normalised,
    check_constant_value_gives_that_constant: lambda t: t.normalised,
    check_key_order_does_not_matter: lambda t: t.key_order_free,
    check_queries_are_independent: _queries_stand_alone,
    check_batch_rows_are_independent: always,
    check_attention_scores_give_the_output: lambda t: t.explicit,
    check_factors_give_the_output: _is_separable,
    check_inputs_are_unchanged: always,
}
