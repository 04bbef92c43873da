"""Performer: the estimate, its error, its projection, its range."""

import keras
import numpy as np
import pytest
from helpers import slow_to_compile
from keras import ops

from keras_linattn.mechanisms.performer import Performer
from keras_linattn.mechanisms.performer import key_exponents
from keras_linattn.mechanisms.performer import orthogonal_gaussian
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._gradient_checks import fast_gradients
from keras_linattn.testing._subject import run
from keras_linattn.testing.references._common import softmax
from keras_linattn.testing.references._common import transpose


def drawn(rows, dim, seed):
    seed = keras.random.SeedGenerator(seed)
    return ops.convert_to_numpy(orthogonal_gaussian(rows, dim, seed))


def test_rows_are_orthogonal_in_blocks():
    rows = drawn(10, 4, seed=0)
    assert rows.shape == (10, 4)
    for start in (0, 4, 8):
        block = rows[start : start + 4]
        products = block @ block.T
        off = products - np.diag(np.diag(products))
        np.testing.assert_allclose(off, 0, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 5])
def test_a_number_as_seed_fixes_both_draws_and_they_differ(seed):
    rows, again = (
        ops.convert_to_numpy(orthogonal_gaussian(4, 4, seed)) for _ in range(2)
    )
    np.testing.assert_array_equal(rows, again)
    np.testing.assert_array_equal(rows, drawn(4, 4, seed))
    square = keras.random.normal((1, 4, 4), seed=seed)
    lengths = np.linalg.norm(ops.convert_to_numpy(square)[0], axis=-1)
    assert np.abs(np.linalg.norm(rows, axis=-1) - lengths).min() > 1e-3


def test_rows_are_gaussian():
    """Mean 0 in every entry, covariance 1: no row has a preferred side."""
    rows = drawn(6000, 3, seed=1)
    for place in range(3):
        part = rows[place::3]
        np.testing.assert_allclose(part.mean(axis=0), 0, atol=0.1)
        np.testing.assert_allclose(np.cov(part.T), np.eye(3), atol=0.15)


def kernel_estimate(query, key, projection):
    """The mean over features of exp(w.q' + w.k' - (|q'|^2 + |k'|^2) / 2)."""
    exponents = [
        ops.convert_to_numpy(
            key_exponents(
                ops.convert_to_tensor(x), ops.convert_to_tensor(projection)
            )
        )
        for x in (query, key)
    ]
    return np.mean(np.exp(exponents[0] + exponents[1]), axis=-1)


def test_estimate_of_the_kernel_is_unbiased():
    """Over 40,000 rows, within four standard errors."""
    inputs = random_inputs(batch=1, heads=1, queries=5, keys=5, scale=0.7)
    exact = np.exp(np.sum(inputs.query * inputs.key, axis=-1) / 2)
    means = [
        kernel_estimate(inputs.query, inputs.key, drawn(4000, 4, seed))
        for seed in range(10)
    ]
    spread = np.std(means, axis=0, ddof=1) / np.sqrt(len(means))
    error = np.abs(np.mean(means, axis=0) - exact)
    assert (error < 5 * spread).all(), error / spread


@slow_to_compile
def test_error_falls_with_the_root_of_the_features():
    """Slope of log error on log R, over 8 draws each, is -1/2.

    With heads of size 1 it is -0.2 here, for independent rows too: R must
    exceed exp(|q' + k'|^2), lemma 2, of the largest pair.
    """
    inputs = random_inputs(queries=16, keys=16, scale=0.35)
    scores = inputs.query @ transpose(inputs.key) / 2
    exact = softmax(scores.astype("float64"), -1) @ inputs.value
    counts = (64, 512, 4096)
    errors = []
    for count in counts:
        outputs = [run(Performer(count, seed=s), inputs) for s in range(8)]
        errors.append(np.sqrt(np.mean((np.stack(outputs) - exact) ** 2)))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 0.15, (slope, errors)


def test_seed_fixes_the_projection_and_redraw_changes_it():
    inputs = random_inputs()
    mechanisms = [Performer(16, seed=s) for s in (5, 5, 6)]
    outputs = [run(m, inputs) for m in mechanisms]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0] - outputs[2]).max() > 1e-4
    for mechanism in mechanisms:
        mechanism.redraw()
    again = [run(m, inputs) for m in mechanisms]
    np.testing.assert_array_equal(again[0], again[1])
    assert np.abs(again[0] - outputs[0]).max() > 1e-4


def test_projection_is_a_weight_that_is_not_trained():
    mechanism = Performer(16)
    run(mechanism, random_inputs())
    assert [w.name for w in mechanism.non_trainable_weights] == ["projection"]
    assert not mechanism.trainable_weights


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 100.0])
def test_normaliser_never_vanishes(scale):
    """Weights sum to 1 however large the heads are."""
    inputs = random_inputs(queries=20, keys=20, scale=scale)
    inputs = inputs.replace(value=np.ones_like(inputs.value))
    np.testing.assert_allclose(run(Performer(32), inputs), 1, atol=1e-5)


def test_causal_form_equals_the_other_at_the_last_position():
    inputs = random_inputs(queries=80, keys=80, key_dim=64, scale=2.0)
    mechanism = Performer(seed=0)
    np.testing.assert_allclose(
        run(mechanism, inputs, causal=True)[:, :, -1],
        run(mechanism, inputs)[:, :, -1],
        atol=2e-5,
    )


@pytest.mark.parametrize("scale", [1.0, 4.0, 20.0])
def test_causal_gradients_are_finite_at_every_size(scale):
    """Beyond |u| = 16 the keys vanish, and nothing becomes NaN."""
    inputs = random_inputs(queries=20, keys=20, key_dim=64, scale=scale)
    subject = subjects("performer", configs=[{"seed": 0}])[0]
    ones = np.ones((2, 2, 20, 4), "float32")
    found = fast_gradients(subject.build(inputs), inputs, ones, causal=True)
    assert all(np.isfinite(gradient).all() for gradient in found.values())


def test_refuses_a_number_of_features_that_is_none():
    with pytest.raises(ValueError, match="Received: num_features=0"):
        Performer(0)
