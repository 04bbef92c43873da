"""Cross-covariance attention: features, permutations, temperature."""

import numpy as np
import pytest
from keras import ops

from keras_linattn.mechanisms.xca import XCA
from keras_linattn.mechanisms.xca import unit_columns
from keras_linattn.testing import compare_with_reference
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._gradient_checks import compare_gradients
from keras_linattn.testing._subject import run


@pytest.mark.parametrize("visible", [None, 0.6])
@pytest.mark.parametrize("length", [1, 6, 13])
def test_equals_the_reference(length, visible):
    """Where V = D, which the suite's own shapes are not always."""
    inputs = random_inputs(
        queries=length, keys=length, visible=visible, seed=length
    )
    compare_with_reference(subjects("xca")[0], inputs)


def test_gradients():
    for visible in (None, 0.6):
        inputs = random_inputs(
            queries=5, keys=5, key_dim=3, value_dim=3, visible=visible
        )
        compare_gradients(subjects("xca")[0], inputs)


def test_columns_have_length_one():
    x = random_inputs(queries=9).query
    unit = ops.convert_to_numpy(unit_columns(ops.convert_to_tensor(x)))
    np.testing.assert_allclose(np.sum(unit**2, axis=2), 1, atol=1e-5)


def test_permuting_the_tokens_permutes_the_output():
    inputs = random_inputs(queries=9, keys=9, visible=0.7)
    order = np.random.default_rng(1).permutation(9)
    heads = {
        name: getattr(inputs, name)[:, :, order]
        for name in ("query", "key", "value")
    }
    mask = inputs.key_mask[:, order]
    permuted = inputs.replace(**heads, key_mask=mask, query_mask=mask)
    mechanism = XCA()
    np.testing.assert_allclose(
        run(mechanism, permuted),
        run(mechanism, inputs)[:, :, order],
        atol=1e-5,
    )


def test_scaling_queries_and_keys_changes_nothing():
    inputs = random_inputs(queries=9, keys=9)
    scaled = inputs.replace(query=7 * inputs.query, key=inputs.key / 3)
    np.testing.assert_allclose(
        run(XCA(), scaled), run(XCA(), inputs), atol=1e-5
    )


def test_no_temperature_is_the_mean_of_the_features():
    inputs = random_inputs()
    mechanism = XCA()
    run(mechanism, inputs)
    mechanism.temperature.assign(np.zeros(2, "float32"))
    mean = inputs.value.mean(axis=-1, keepdims=True)
    expected = np.broadcast_to(mean, inputs.value.shape)
    np.testing.assert_allclose(run(mechanism, inputs), expected, atol=1e-5)


def test_refuses_values_of_another_size():
    inputs = random_inputs(value_dim=5)
    with pytest.raises(ValueError, match=r"value shape \(2, 2, 6, 5\)"):
        run(XCA(), inputs)
