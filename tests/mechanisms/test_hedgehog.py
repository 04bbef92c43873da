"""Hedgehog: features, one map for each head, distillation."""

import numpy as np
from keras import ops

from keras_linattn.mechanisms.hedgehog import Hedgehog
from keras_linattn.mechanisms.hedgehog import feature_map
from keras_linattn.testing import random_inputs
from keras_linattn.testing._backends import gradients
from keras_linattn.testing._subject import run
from keras_linattn.testing.references._common import softmax
from keras_linattn.testing.references._common import transpose


def test_features_are_a_distribution():
    x = ops.convert_to_tensor(random_inputs(key_dim=5).query)
    features = ops.convert_to_numpy(feature_map(x, ops.eye(5)))
    assert features.shape[-1] == 10
    assert features.min() > 0
    np.testing.assert_allclose(features.sum(axis=-1), 1, atol=1e-6)


def test_negation_swaps_the_halves():
    x = ops.convert_to_tensor(random_inputs(key_dim=5).query)
    weight = ops.convert_to_tensor(np.random.default_rng(0).random((5, 5)))
    weight = ops.cast(weight, "float32")
    plus, minus = (
        ops.convert_to_numpy(feature_map(y, weight)) for y in (x, -x)
    )
    np.testing.assert_allclose(plus, np.roll(minus, 5, axis=-1), atol=1e-6)


def test_starts_as_the_identity_in_every_head():
    mechanism = Hedgehog()
    run(mechanism, random_inputs(heads=3))
    for weight in mechanism.get_weights():
        np.testing.assert_array_equal(weight, np.stack([np.eye(4)] * 3))


def test_tied_maps_are_one_weight():
    mechanism = Hedgehog(tied=True)
    run(mechanism, random_inputs())
    assert len(mechanism.weights) == 1


def test_each_head_has_its_own_map():
    inputs = random_inputs()
    mechanism = Hedgehog()
    before = run(mechanism, inputs)
    weights = mechanism.get_weights()
    weights[0][1] *= 3
    mechanism.set_weights(weights)
    after = run(mechanism, inputs)
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert np.abs(after[:, 1] - before[:, 1]).max() > 1e-3


def test_huge_heads_stay_a_mean():
    """Bounded features: even opposite one-hot features see the keys."""
    inputs = random_inputs(scale=1e4)
    inputs = inputs.replace(value=np.ones_like(inputs.value))
    np.testing.assert_allclose(run(Hedgehog(), inputs), 1, atol=1e-5)


def test_training_brings_it_nearer_to_softmax_maps():
    """Cross-entropy of the maps falls, as in the paper's distillation."""
    inputs = random_inputs(queries=12, keys=12, seed=4)
    scores = inputs.query @ transpose(inputs.key) / 2
    teacher = softmax(scores.astype("float64"), -1)
    teacher = ops.convert_to_tensor(teacher.astype("float32"))
    query, key = map(ops.convert_to_tensor, (inputs.query, inputs.key))
    mechanism = Hedgehog()
    run(mechanism, inputs)

    def loss():
        scores = mechanism.attention_scores(query, key)
        return -ops.mean(ops.sum(teacher * ops.log(scores), axis=-1))

    losses = []
    for _ in range(15):
        losses.append(float(ops.convert_to_numpy(loss())))
        variables = mechanism.trainable_variables
        _, found = gradients(loss, [], variables)
        for variable, gradient in zip(variables, found):
            variable.assign(variable - gradient)
    assert losses[-1] < losses[0] - 0.02, losses
