"""Nystromformer: the pseudo-inverse, and softmax attention as its limit."""

import numpy as np
import pytest
from keras import ops

from keras_linattn.mechanisms.nystromformer import Nystromformer
from keras_linattn.mechanisms.nystromformer import pseudo_inverse
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._subject import run
from keras_linattn.testing.references import softmax


def stochastic(rows, columns, seed=0):
    """Rows that sum to 1, far from singular."""
    rng = np.random.default_rng(seed)
    matrix = rng.random((2, rows, columns)) + 2 * np.eye(rows, columns)
    matrix = matrix / matrix.sum(axis=-1, keepdims=True)
    return matrix.astype("float32")


def inverse(matrix, steps):
    return ops.convert_to_numpy(
        pseudo_inverse(ops.convert_to_tensor(matrix), steps)
    )


def reference(inputs, **config):
    subject = subjects("nystromformer", configs=[config])[0]
    return subject.expected(subject.build(inputs), inputs)


def exact_attention(inputs):
    heads = (inputs.query, inputs.key, inputs.value)
    heads = [x.astype("float64") for x in heads]
    return softmax.attend(None, {}, *heads, *inputs.masks(), False)


def test_iterations_reach_the_inverse():
    matrix = stochastic(6, 6)
    np.testing.assert_allclose(
        inverse(matrix, 12), np.linalg.inv(matrix), atol=1e-4
    )


def test_iterations_have_third_order():
    """The residual I - A Z is cubed, and more, by each step."""
    matrix = stochastic(5, 5)
    norms = []
    for steps in (3, 4, 5):
        residual = np.eye(5) - matrix @ inverse(matrix, steps)
        norms.append(np.linalg.norm(residual, ord=2, axis=(-2, -1)).max())
    before = [norm for norm in norms if norm < 0.7]
    assert len(before) > 1
    for norm, following in zip(before, before[1:], strict=False):
        assert following <= norm**3 + 1e-5


def test_empty_landmarks_leave_the_inverse_of_the_rest():
    matrix = np.zeros((2, 6, 6), "float32")
    places = np.ix_([0, 1], [0, 2, 5], [1, 2, 3])
    matrix[places] = stochastic(3, 3)
    result = inverse(matrix, 6)
    rest = result[np.ix_([0, 1], [1, 2, 3], [0, 2, 5])]
    np.testing.assert_allclose(rest, inverse(stochastic(3, 3), 6), rtol=1e-5)
    assert np.abs(result).sum() == pytest.approx(np.abs(rest).sum())


def test_batch_rows_have_a_start_of_their_own():
    matrix = np.concatenate([stochastic(4, 4), stochastic(4, 4, 1)])
    together = inverse(matrix, 3)
    for row in range(4):
        alone = inverse(matrix[row : row + 1], 3)
        np.testing.assert_allclose(together[row : row + 1], alone, rtol=1e-5)


@pytest.mark.parametrize("visible", [None, 0.6])
def test_single_positions_as_landmarks_give_softmax_attention(visible):
    """Exactly so in the limit; 6 steps stop short of it."""
    shape = {"queries": 16, "keys": 16, "key_dim": 16}
    inputs = random_inputs(**shape, visible=visible)
    seen = inputs.masks()[1][:, None, :, None]

    def gap(steps):
        output = reference(inputs, num_landmarks=16, num_iterations=steps)
        return np.abs(np.where(seen, output - exact_attention(inputs), 0)).max()

    assert gap(24) < 1e-10
    assert 1e-4 < gap(6) < 0.1  # 3e-2 without a mask
    output = run(Nystromformer(num_landmarks=16, num_iterations=12), inputs)
    difference = np.where(seen, output - exact_attention(inputs), 0)
    assert np.abs(difference).max() < 5e-3


def test_more_landmarks_than_positions_are_as_many():
    inputs = random_inputs(queries=7, keys=7)
    many = run(Nystromformer(num_landmarks=40), inputs)
    seven = run(Nystromformer(num_landmarks=7), inputs)
    np.testing.assert_allclose(many, seven, atol=1e-5)


def test_the_convolution_is_added_to_the_output():
    inputs = random_inputs(queries=9, keys=9)
    with_it = Nystromformer(num_landmarks=3, kernel_size=5)
    with_it.build(*inputs.shapes)
    kernel = np.zeros((5, 2, 1), "float32")
    kernel[3, 0], kernel[2, 1] = 2, -1  # the next value; the value itself
    with_it.set_weights([kernel])
    added = run(with_it, inputs) - run(Nystromformer(num_landmarks=3), inputs)
    value = inputs.value
    np.testing.assert_allclose(added[:, 1], -value[:, 1], atol=1e-5)
    np.testing.assert_allclose(added[:, 0, :-1], 2 * value[:, 0, 1:], atol=1e-5)
    np.testing.assert_allclose(added[:, 0, -1], 0, atol=1e-5)


def test_the_convolution_is_for_self_attention_only():
    assert Nystromformer().traits.cross
    assert not Nystromformer(kernel_size=3).traits.cross


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_landmarks": 0}, "num_landmarks=0"),
        ({"num_iterations": 0}, "num_iterations=0"),
        ({"kernel_size": 4}, "kernel_size=4"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Nystromformer(**arguments)
