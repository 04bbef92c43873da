"""LARA: an importance sampler of softmax attention, without noise at rest."""

import numpy as np
import pytest
from helpers import slow_to_compile
from keras import ops

from keras_linattn.mechanisms.lara import LinearRandomized
from keras_linattn.mechanisms.lara import attend
from keras_linattn.testing import compare_with_reference
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._subject import run
from keras_linattn.testing.references import _common
from keras_linattn.testing.references._common import transpose


def softmax(scores, axis):
    return _common.softmax(scores.astype("float64"), axis)


def estimate(inputs, means, samples, landmarks, coefficient):
    arrays = (inputs.query, inputs.key, inputs.value, means, samples, landmarks)
    tensors = [ops.convert_to_tensor(x.astype("float32")) for x in arrays]
    return ops.convert_to_numpy(attend(*tensors, coefficient, (None, None)))


def log_normal(x, mean, variance):
    """Of a normal density, up to a constant: `[..., points, means]`."""
    difference = x[..., :, None, :] - mean[..., None, :, :]
    return -np.square(difference).sum(axis=-1) / (2 * variance)


def test_every_position_a_landmark_and_no_noise():
    """C = T = S: mu_c = q_c + k_c, and the estimate from normal densities.

    With w' = w / D^(1/4) and so on, p(x, w) = N(w'; x', I) / N(w'; 0, I):
    written here with densities, which the fast form never forms.
    """
    inputs = random_inputs(queries=7, keys=7, value_dim=3)
    query, key, value = (
        x.astype("float64") for x in (inputs.query, inputs.key, inputs.value)
    )
    mu, root = query + key, np.sqrt(query.shape[-1])

    def ratio(w, x):  # p(x, w): [samples, points]
        origin = np.zeros_like(x[..., :1, :])
        return np.exp(log_normal(w, x, root) - log_normal(w, origin, root))

    of_keys = ratio(mu, key)
    f = of_keys / of_keys.sum(axis=-1, keepdims=True) @ value  # [C, V]
    proposals = ratio(mu, mu)
    own = np.diagonal(proposals, axis1=-2, axis2=-1)
    t = softmax(query @ transpose(query) / root, -1)
    alpha = (own / proposals.sum(axis=-1))[..., None, :] + t - 1 / 7
    weights = np.maximum(alpha, 1e-8) * transpose(ratio(mu, query))
    weights = weights * (of_keys.sum(axis=-1) / own)[..., None, :]
    expected = weights / weights.sum(axis=-1, keepdims=True) @ f
    np.testing.assert_allclose(
        estimate(inputs, mu, mu, inputs.query, 1.0), expected, atol=1e-5
    )


def test_one_landmark_weighs_the_keys_for_all_queries():
    """The weight of the only sample is 1, whatever the query."""
    inputs = random_inputs(queries=5, keys=8)
    mu = np.random.default_rng(1).standard_normal((2, 2, 1, 4))
    scores = mu @ transpose(inputs.key)
    scores = scores - np.square(inputs.key).sum(-1)[:, :, None] / 2
    expected = softmax(scores / 2, -1) @ inputs.value
    output = estimate(inputs, mu, mu, mu, 1.0)
    expected = np.broadcast_to(expected, output.shape)
    np.testing.assert_allclose(output, expected, atol=1e-5)


@slow_to_compile
def test_many_samples_tend_to_softmax_attention():
    """With noise of D^(1/4), which follows the proposals' densities."""
    inputs = random_inputs(batch=1, queries=5, keys=5)
    exact = softmax(inputs.query @ transpose(inputs.key) / 2, -1) @ inputs.value
    rng = np.random.default_rng(0)
    errors = []
    for count in (64, 2048):
        pairs = rng.integers(0, 5, (2, count))
        queries = inputs.query[:, :, pairs[0]]
        mu = queries + inputs.key[:, :, pairs[1]]
        samples = mu + 4**0.25 * rng.standard_normal(mu.shape)
        difference = estimate(inputs, mu, samples, queries, 0.0) - exact
        errors.append(np.sqrt(np.square(difference).mean()))
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize(
    ("antithetic", "visible"), [(False, None), (True, 0.6)]
)
def test_noise_is_for_training_and_follows_the_seed(antithetic, visible):
    inputs = random_inputs(queries=9, keys=9, visible=visible)
    config = {"num_landmarks": 4, "antithetic": antithetic, "seed": 5}

    def outputs(training, **more):
        mechanism = LinearRandomized(**{**config, **more})
        return [run(mechanism, inputs, training=training) for _ in range(2)]

    noisy, rest = outputs(True), outputs(False)
    np.testing.assert_array_equal(*rest)
    assert np.isfinite(noisy).all()
    assert np.abs(noisy[0] - noisy[1]).max() > 1e-3
    np.testing.assert_array_equal(noisy, outputs(True))
    assert np.abs(noisy[0] - outputs(True, seed=6)[0]).max() > 1e-3
    # Two equal samples for each proposal change no average.
    np.testing.assert_allclose(
        outputs(True, noise_stddev=0.0)[0], rest[0], atol=1e-5
    )


def test_the_two_maps_start_apart_under_one_seed():
    mechanism = LinearRandomized(seed=1)
    mechanism.build(*random_inputs().shapes)
    query, key = mechanism.query_map[0], mechanism.key_map[0]
    difference = ops.convert_to_numpy(query) - ops.convert_to_numpy(key)
    assert np.abs(difference).max() > 0.1


@pytest.mark.parametrize("visible", [None, 0.6])
@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (1, 7)])
def test_images_equal_the_reference(grid, visible):
    config = {"num_landmarks": 4, "grid": grid}
    length = grid[0] * grid[1]
    inputs = random_inputs(queries=length, keys=length, visible=visible)
    compare_with_reference(subjects("lara", configs=[config])[0], inputs)


def test_a_grid_needs_a_square_number_of_landmarks():
    with pytest.raises(ValueError, match="square"):
        LinearRandomized(num_landmarks=6, grid=(2, 3))
