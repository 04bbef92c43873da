"""Focused linear attention: the map, the convolution, images."""

import numpy as np
import pytest
from keras import ops

from keras_linattn.mechanisms.focused import Focused
from keras_linattn.mechanisms.focused import feature_map
from keras_linattn.testing import compare_with_reference
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._gradient_checks import compare_gradients
from keras_linattn.testing._subject import run


def features(x, power=3):
    return ops.convert_to_numpy(feature_map(ops.convert_to_tensor(x), power))


def test_norm_is_kept_and_order_too():
    x = np.abs(random_inputs(key_dim=6).query)
    focused = features(x)
    np.testing.assert_allclose(
        np.linalg.norm(focused, axis=-1),
        np.linalg.norm(x, axis=-1),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(focused.argmax(-1), x.argmax(-1))


def test_power_one_is_relu():
    x = random_inputs(key_dim=6).query
    np.testing.assert_allclose(features(x, 1), np.maximum(x, 0), rtol=1e-5)


def test_same_direction_gains_other_directions_lose():
    """Proposition 1: nearest the same axis up, nearest others down."""
    x = np.array([[[[1.0, 0.5], [0.9, 0.2], [0.3, 1.0]]]], "float32")
    before = (x @ x.swapaxes(-1, -2))[0, 0, 0]
    after = features(x)
    after = (after @ after.swapaxes(-1, -2))[0, 0, 0]
    assert after[1] > before[1]
    assert after[2] < before[2]


@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1e10, 1e25])
def test_is_of_first_degree_at_every_scale(scale):
    x = random_inputs(key_dim=6).query
    np.testing.assert_allclose(
        features(np.float32(scale) * x) / np.float32(scale),
        features(x),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("visible", [None, 0.6])
@pytest.mark.parametrize("grid", [(4, 3), (1, 7)])
def test_images_equal_the_reference(grid, visible):
    subject = subjects("focused", configs=[{"grid": grid, "kernel_size": 3}])
    length = grid[0] * grid[1]
    inputs = random_inputs(queries=length, keys=length, visible=visible)
    compare_with_reference(subject[0], inputs)


def test_gradients_on_an_image():
    subject = subjects("focused", configs=[{"grid": (2, 3), "kernel_size": 3}])[
        0
    ]
    compare_gradients(subject, random_inputs(key_dim=3, value_dim=2))


def test_a_query_that_meets_no_key_sees_the_convolution_only():
    inputs = random_inputs()
    inputs = inputs.replace(query=-np.abs(inputs.query))
    assert not run(Focused(kernel_size=None), inputs).any()
    assert run(Focused(), inputs).any()


def test_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match="Received: focusing_power=0.5"):
        Focused(focusing_power=0.5)
    with pytest.raises(ValueError, match="no recurrent form"):
        Focused().initial_state(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"2, 6, 4\), grid=\(2, 4\)"):
        run(Focused(grid=(2, 4)), random_inputs())
