"""Agent attention: its decomposition, its convolution, images."""

import numpy as np
import pytest

from keras_linattn.mechanisms.agent import Agent
from keras_linattn.testing import compare_with_reference
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._subject import run
from keras_linattn.testing.references import _common
from keras_linattn.testing.references._common import transpose


def softmax(scores, axis):
    return _common.softmax(scores.astype("float64"), axis)


def plain(**arguments):
    return Agent(kernel_size=None, **arguments)


def test_one_agent_tells_every_query_the_same():
    """One agent is the mean query; the second softmax is 1."""
    inputs = random_inputs(queries=5, keys=8)
    agent = inputs.query.mean(axis=2, keepdims=True)
    scores = agent @ transpose(inputs.key) / np.sqrt(4)
    expected = softmax(scores, -1) @ inputs.value
    output = run(plain(num_landmarks=1), inputs)
    expected = np.broadcast_to(expected, output.shape)
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_it_is_linear_attention_with_softmax_features():
    """phi_q = softmax(Q P^T), phi_k = softmax(P K^T)^T, agents = queries."""
    inputs = random_inputs(queries=6, keys=9)
    query, key = inputs.query, inputs.key
    features = softmax(query @ transpose(query) / np.sqrt(4), -1)
    of_keys = softmax(query @ transpose(key) / np.sqrt(4), -1)
    expected = features @ (of_keys @ inputs.value)
    output = run(plain(num_landmarks=6), inputs)
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_more_agents_than_queries_are_as_many():
    inputs = random_inputs(queries=6, keys=9)
    many = run(plain(num_landmarks=40), inputs)
    np.testing.assert_allclose(
        many, run(plain(num_landmarks=6), inputs), atol=1e-6
    )


@pytest.mark.parametrize("visible", [None, 0.6])
@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (1, 7)])
@pytest.mark.parametrize("kernel_size", [3, None])
def test_images_equal_the_reference(grid, kernel_size, visible):
    config = {"num_landmarks": 4, "grid": grid, "kernel_size": kernel_size}
    length = grid[0] * grid[1]
    inputs = random_inputs(queries=length, keys=length, visible=visible)
    compare_with_reference(subjects("agent", configs=[config])[0], inputs)


def test_turning_the_image_turns_the_output():
    """Agents and convolution know rows from columns only by the kernel."""
    inputs = random_inputs(queries=24, keys=24)

    def turn(x):
        image = x.reshape(*x.shape[:2], 4, 6, -1)
        return image.swapaxes(2, 3).reshape(x.shape)

    turned = inputs.replace(
        query=turn(inputs.query), key=turn(inputs.key), value=turn(inputs.value)
    )
    upright = Agent(num_landmarks=4, grid=(4, 6))
    upright.build(*inputs.shapes)
    lying = Agent(num_landmarks=4, grid=(6, 4))
    lying.build(*inputs.shapes)
    kernel = upright.get_weights()[0]
    lying.set_weights([kernel.swapaxes(0, 1)])
    np.testing.assert_allclose(
        run(lying, turned), turn(run(upright, inputs)), atol=1e-5
    )


def test_traits_follow_the_convolution():
    traits = plain().traits
    assert traits.cross and traits.normalised and traits.explicit
    traits = Agent().traits
    assert not (traits.cross or traits.normalised or traits.explicit)


def test_config_keeps_the_grid():
    config = Agent(num_landmarks=4, grid=[2, 3], kernel_size=5).get_config()
    assert config["grid"] == (2, 3)
    assert Agent.from_config(config).get_config() == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_landmarks": 0}, "num_landmarks=0"),
        ({"num_landmarks": 5, "grid": (2, 3)}, "square"),
        ({"kernel_size": 2}, "kernel_size=2"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Agent(**arguments)


def test_a_length_that_is_not_the_grids_is_refused():
    with pytest.raises(ValueError, match=r"grid=\(2, 3\)"):
        run(plain(num_landmarks=4, grid=(2, 3)), random_inputs(queries=7))
