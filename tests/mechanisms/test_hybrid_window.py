"""Hybrid window: its two limits, and scores of any size."""

import numpy as np
import pytest
from keras import ops

from keras_linattn.mechanisms import Hedgehog
from keras_linattn.mechanisms import HybridWindow
from keras_linattn.testing import random_inputs
from keras_linattn.testing._subject import run
from keras_linattn.testing.references import hybrid_window
from keras_linattn.testing.references import softmax


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_of_the_length_is_softmax_attention(causal):
    inputs = random_inputs(queries=9, keys=9)
    heads = (inputs.query, inputs.key, inputs.value)
    expected = softmax.attend(None, {}, *heads, *inputs.masks(), causal)
    for least_score in (None, 3.0):
        mechanism = HybridWindow(9, least_score=least_score)
        output = run(mechanism, inputs, causal)
        np.testing.assert_allclose(output, expected, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_without_the_exact_part_only_hedgehog_is_left(causal):
    """A factor of 0: the window itself is left out of the sums."""
    inputs = random_inputs(queries=40, keys=40)
    mechanism = HybridWindow(1)
    mechanism.build(*inputs.shapes)
    mechanism.window_factor.assign(np.full(2, -100.0))
    plain = Hedgehog()
    plain.build(*inputs.shapes)
    plain.set_weights(mechanism.get_weights()[:2])
    scores = plain.attention_scores(inputs.query, inputs.key, causal=causal)
    scores = ops.convert_to_numpy(scores) * (1 - np.eye(40))
    total = scores.sum(axis=-1, keepdims=True)
    expected = scores @ inputs.value / np.where(total == 0, 1, total)
    output = run(mechanism, inputs, causal)[:, :, 1:]
    np.testing.assert_allclose(output, expected[:, :, 1:], atol=1e-4)


def test_large_scores_in_the_window_do_not_drown_the_rest():
    """The largest score is taken out: the window's sum is between g and W g."""
    inputs = random_inputs(queries=30, keys=30, scale=50)
    value = np.zeros_like(inputs.value)
    value[:, :, :20] = 1  # outside the last rows' windows
    mechanism = HybridWindow(3)
    mechanism.build(*inputs.shapes)
    output = run(mechanism, inputs.replace(value=value), causal=True)
    assert np.isfinite(output).all()
    assert (output[:, :, 25:] > 0).all()


@pytest.mark.parametrize("scale", [1, 50])
def test_windows_of_low_scores_get_a_small_share(scale):
    """The reference's rows, whole and in two pieces, at any size of scores."""
    inputs = random_inputs(queries=30, keys=30, scale=scale)
    mechanism = HybridWindow(3, least_score=5.0)
    mechanism.build(*inputs.shapes)
    mechanism.window_factor.assign([1.0, -2.0])
    weights = {w.name: ops.convert_to_numpy(w) for w in mechanism.weights}
    heads = inputs.query, inputs.key, inputs.value
    exact = [np.asarray(x, "float64") for x in heads]
    for causal in (False, True):
        expected = hybrid_window.attend(
            mechanism, weights, *exact, *inputs.masks(), causal
        )
        output = run(mechanism, inputs, causal)
        np.testing.assert_allclose(output, expected, atol=1e-5)
    heads = [ops.convert_to_tensor(x) for x in heads]
    state, outputs = mechanism.initial_state_for(heads[0], heads[2]), []
    for start, end in ((0, 13), (13, 30)):
        piece = (x[:, :, start:end] for x in heads)
        output, state = mechanism.step(state, *piece)
        outputs.append(output)
    output = ops.convert_to_numpy(ops.concatenate(outputs, axis=2))
    np.testing.assert_allclose(output, expected, atol=1e-5)
