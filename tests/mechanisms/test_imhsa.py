"""Interactive multi-head attention: plain at the start, heads mixed after."""

import numpy as np
import pytest

from keras_linattn.mechanisms.imhsa import InteractiveMultiHead
from keras_linattn.testing import compare_with_reference
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._subject import run
from keras_linattn.testing.references import _common
from keras_linattn.testing.references._common import transpose


def softmax(scores, axis):
    return _common.softmax(scores.astype("float64"), axis)


def halves(inputs, size):
    """A_Q and A_K of segments of `size` positions, before any mixing."""

    def means(x):
        batch, heads, length, dim = x.shape
        x = x.reshape(batch, heads, length // size, size, dim)
        return x.mean(axis=3)

    root = np.sqrt(inputs.key.shape[-1])
    to = inputs.query @ transpose(means(inputs.key)) / root
    back = means(inputs.query) @ transpose(inputs.key) / root
    return softmax(to, -1), softmax(back, -1)


def built(inputs, mixings=None, **arguments):
    mechanism = InteractiveMultiHead(**arguments)
    mechanism.build(*inputs.shapes)
    if mixings is not None:
        mechanism.set_weights(mixings)
    return mechanism


def test_it_starts_as_the_plain_decomposition():
    inputs = random_inputs(queries=12, keys=12)
    to, back = halves(inputs, 4)
    expected = to @ (back @ inputs.value)
    output = run(built(inputs, num_landmarks=3), inputs)
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_exchanged_heads_exchange_their_maps_and_not_their_values():
    inputs = random_inputs(queries=12, keys=12)
    swap, stay = np.eye(2)[::-1], np.eye(2)
    to, back = halves(inputs, 4)
    mechanism = built(inputs, [swap, stay], num_landmarks=3)
    np.testing.assert_allclose(
        run(mechanism, inputs), to[:, ::-1] @ (back @ inputs.value), atol=1e-5
    )
    mechanism = built(inputs, [swap, swap], num_landmarks=3)
    expected = (to @ back)[:, ::-1] @ inputs.value
    np.testing.assert_allclose(run(mechanism, inputs), expected, atol=1e-5)


def test_maps_mixed_to_their_mean_are_equal():
    inputs = random_inputs(queries=12, keys=12)
    inputs = inputs.replace(value=inputs.value[:, :1].repeat(2, axis=1))
    mean = np.full((2, 2), 0.5)
    output = run(built(inputs, [mean, mean], num_landmarks=3), inputs)
    np.testing.assert_allclose(output[:, 0], output[:, 1], atol=1e-6)


@pytest.mark.parametrize("visible", [None, 0.6])
@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (1, 7)])
def test_images_equal_the_reference(grid, visible):
    config = {"num_landmarks": 4, "grid": grid}
    length = grid[0] * grid[1]
    inputs = random_inputs(queries=length, keys=length, visible=visible)
    compare_with_reference(subjects("imhsa", configs=[config])[0], inputs)


def test_a_grid_needs_a_square_number_of_landmarks():
    with pytest.raises(ValueError, match="square"):
        InteractiveMultiHead(num_landmarks=6, grid=(2, 3))
