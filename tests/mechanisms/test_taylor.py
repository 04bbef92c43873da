"""Taylor: the polynomial, its features, its nearness to softmax."""

import math

import numpy as np
from keras import ops

from keras_linattn.mechanisms.taylor import Taylor
from keras_linattn.mechanisms.taylor import feature_map
from keras_linattn.testing import random_inputs
from keras_linattn.testing._subject import run
from keras_linattn.testing.references._common import softmax
from keras_linattn.testing.references._common import transpose


def features(x):
    return ops.convert_to_numpy(feature_map(ops.convert_to_tensor(x)))


def test_product_of_features_is_the_polynomial():
    inputs = random_inputs(queries=5, keys=7, key_dim=5)
    x = inputs.query @ transpose(inputs.key) / math.sqrt(5)
    product = features(inputs.query) @ transpose(features(inputs.key))
    np.testing.assert_allclose(product, 1 + x + x**2 / 2, atol=1e-5)


def test_number_of_features():
    for dim in (1, 2, 7):
        x = np.ones((1, 1, 1, dim), "float32")
        assert features(x).shape[-1] == Taylor().num_features_for(dim)


def test_kernel_is_at_least_a_half():
    inputs = random_inputs(queries=50, keys=50, key_dim=3)
    product = features(inputs.query) @ transpose(features(inputs.key))
    assert product.min() > 0.49


def test_error_to_softmax_is_of_third_order():
    """Half the queries, an eighth of the error."""
    errors = []
    for scale in (0.2, 0.1):
        inputs = random_inputs(queries=9, keys=9, seed=1)
        inputs = inputs.replace(query=np.float32(scale) * inputs.query)
        scores = inputs.query @ transpose(inputs.key) / 2
        exact = softmax(scores.astype("float64"), -1) @ inputs.value
        errors.append(np.abs(run(Taylor(), inputs) - exact).max())
    assert 6 < errors[0] / errors[1] < 10
