"""PolaFormer: signs, powers, halves, images."""

import numpy as np
import pytest
from keras import ops

from keras_linattn.mechanisms.polaformer import PolaFormer
from keras_linattn.mechanisms.polaformer import paired_features
from keras_linattn.mechanisms.polaformer import polarities
from keras_linattn.testing import compare_with_reference
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._backends import gradients
from keras_linattn.testing._gradient_checks import compare_gradients
from keras_linattn.testing._subject import run
from keras_linattn.testing.references._common import transpose


def similarities(query, key, exponent):
    heads = map(ops.convert_to_tensor, (query, key))
    same, opposite, key = (
        np.exp(ops.convert_to_numpy(x))
        for x in paired_features(*heads, exponent)
    )
    return same @ transpose(key), opposite @ transpose(key)


def test_power_one_gives_back_the_signed_product():
    inputs = random_inputs(queries=5, keys=7)
    same, opposite = similarities(inputs.query, inputs.key, 1.0)
    np.testing.assert_allclose(
        same - opposite, inputs.query @ transpose(inputs.key), atol=1e-5
    )
    assert min(same.min(), opposite.min()) >= 0


def test_negating_the_queries_swaps_the_polarities():
    inputs = random_inputs(queries=5, keys=7)
    same, opposite = similarities(inputs.query, inputs.key, 3.0)
    swapped = similarities(-inputs.query, inputs.key, 3.0)
    np.testing.assert_allclose(swapped[0], opposite, atol=1e-5)
    np.testing.assert_allclose(swapped[1], same, atol=1e-5)


def test_powers_start_in_the_middle():
    """1 + alpha sigmoid(0) = 3, and scale softplus(0) = log 2."""
    inputs = random_inputs(queries=5, keys=5)
    same, _ = similarities(
        inputs.query / np.float32(np.log(2)),
        inputs.key / np.float32(np.log(2)),
        3.0,
    )
    expected = same / same.sum(-1, keepdims=True) @ inputs.value
    output = run(PolaFormer(kernel_size=None), inputs)
    np.testing.assert_allclose(output[..., :2], expected[..., :2], atol=1e-5)


def test_odd_values_leave_the_larger_half_to_the_opposite():
    for size, first in ((1, 0), (3, 1), (4, 2)):
        inputs = random_inputs(value_dim=size)
        negated = inputs.replace(query=-inputs.query)
        mechanism = PolaFormer(kernel_size=None)
        mirrored = inputs.replace(value=inputs.value[..., ::-1])
        output = run(mechanism, inputs)
        assert output.shape[-1] == size
        # The first half of one is the last of the other, signs swapped.
        turned = run(mechanism, mirrored.replace(query=negated.query))
        turned = turned[..., ::-1]
        np.testing.assert_allclose(
            turned[..., :first], output[..., :first], atol=1e-5
        )


def test_derivatives_of_the_power_are_finite():
    x = np.array([0.0, 1e-30, 1e-6, 0.5, 2.0, -1e-30, -3.0], "float32")
    exponent = np.full_like(x, 1.5)
    (by_x, by_exponent), _ = gradients(
        lambda x, p: ops.sum(ops.exp(polarities(x, p)[0])), [x, exponent], []
    )
    absent = x <= 0
    assert (by_x[absent] == 0).all() and (by_exponent[absent] == 0).all()
    np.testing.assert_allclose(by_x[2:5], 1.5 * x[2:5] ** 0.5, rtol=1e-5)
    assert np.isfinite(by_x).all() and np.isfinite(by_exponent).all()


@pytest.mark.parametrize("visible", [None, 0.6])
@pytest.mark.parametrize("grid", [(4, 3), (1, 7)])
def test_images_equal_the_reference(grid, visible):
    subject = subjects(
        "polaformer", configs=[{"grid": grid, "kernel_size": 3}]
    )[0]
    length = grid[0] * grid[1]
    inputs = random_inputs(queries=length, keys=length, visible=visible)
    compare_with_reference(subject, inputs)


def test_gradients_on_an_image():
    subject = subjects(
        "polaformer", configs=[{"grid": (2, 3), "kernel_size": 3}]
    )[0]
    compare_gradients(subject, random_inputs(key_dim=3, value_dim=3))


def test_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match="Received: alpha=-1"):
        PolaFormer(alpha=-1)
    with pytest.raises(ValueError, match="no recurrent form"):
        PolaFormer().initial_state(1, 1, 4, 4)
