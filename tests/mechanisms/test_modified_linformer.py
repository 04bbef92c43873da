"""The two readings of the origin."""

import numpy as np
import pytest
from helpers import numpy

from keras_linattn import mechanisms
from keras_linattn.mechanisms import modified_linformer
from keras_linattn.testing import compare_with_reference
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._gradient_checks import compare_gradients


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def test_factorised_is_efficient_attention():
    """rho_q(Q) (rho_k(K)^T V) of Shen et al., section 3.2."""
    inputs = random_inputs(queries=5, keys=7, value_dim=3)
    context = softmax(inputs.key, 2).swapaxes(2, 3) @ inputs.value
    np.testing.assert_allclose(
        numpy(mechanisms.get("modified_linformer")(*heads(inputs))),
        softmax(inputs.query, 3) @ context,
        atol=1e-5,
    )


def test_projected_is_linformer_with_the_keys_own_projection():
    """Linformer's function, with E = F = softmax_S(K)^T."""
    inputs = random_inputs(batch=1, heads=1, queries=5, keys=7)
    linformer = mechanisms.Linformer(projection_dim=4)
    linformer.build(*inputs.shapes)
    projection = softmax(inputs.key, 2).swapaxes(2, 3)[0]
    linformer.set_weights([projection, projection])
    ours = mechanisms.ModifiedLinformer(reading="projected")
    np.testing.assert_allclose(
        numpy(ours(*heads(inputs))),
        numpy(linformer(*heads(inputs))),
        atol=1e-5,
    )


@pytest.mark.parametrize("reading", modified_linformer.READINGS)
def test_permuting_queries_permutes_outputs(reading):
    inputs = random_inputs(queries=5, keys=7)
    mechanism = mechanisms.ModifiedLinformer(reading=reading)
    order = [3, 0, 4, 1, 2]
    permuted = inputs.replace(query=inputs.query[:, :, order])
    np.testing.assert_allclose(
        numpy(mechanism(*heads(permuted))),
        numpy(mechanism(*heads(inputs)))[:, :, order],
        atol=1e-6,
    )


@pytest.mark.parametrize("reading", modified_linformer.READINGS)
def test_large_keys_do_not_overflow(reading):
    inputs = random_inputs(queries=5, keys=7, scale=1e3)
    mechanism = mechanisms.ModifiedLinformer(reading=reading)
    assert np.isfinite(numpy(mechanism(*heads(inputs)))).all()


@pytest.mark.parametrize("drift", [-2, 0, 1, 10, 1e5])
def test_causal_keys_may_stand_anywhere(drift):
    """Far from 0, rising or falling by any number, hidden at the start."""
    inputs = random_inputs(queries=150, keys=150, visible=0.8)
    key = inputs.key + np.float32([500, -500])[:, None, None, None]
    key = key + np.float32(drift) * np.arange(150, dtype="float32")[:, None]
    mask = inputs.key_mask.copy()
    mask[:, :3] = False
    compare_with_reference(
        subjects("modified_linformer")[0],
        inputs.replace(key=key, key_mask=mask, query_mask=mask),
        causal=True,
    )


@pytest.mark.parametrize("scale", [1e-6, 20, 30, 1e6, 1e30])
def test_causal_inputs_may_be_of_any_size(scale):
    inputs = random_inputs(queries=150, keys=150, visible=0.8, scale=scale)
    compare_with_reference(
        subjects("modified_linformer")[0],
        inputs.replace(value=inputs.value / np.float32(scale)),
        causal=True,
    )


def test_a_large_value_is_gone_once_a_key_has_risen_past_it():
    inputs = random_inputs(batch=1, queries=40, keys=40)
    key, value = inputs.key.copy(), inputs.value.copy()
    key[:, :, 20:] += 300
    value[:, :, :20] *= 1e30
    compare_with_reference(
        subjects("modified_linformer")[0],
        inputs.replace(key=key, value=value),
        causal=True,
    )


@pytest.mark.parametrize("rise", [3, 100])
def test_causal_gradients_of_keys_that_rise(rise):
    inputs = random_inputs(batch=1, heads=1, queries=20, keys=20, key_dim=2)
    steps = np.arange(20, dtype="float32")[:, None]
    inputs = inputs.replace(key=inputs.key + rise * (steps // 5))
    compare_gradients(subjects("modified_linformer")[0], inputs, True)


def test_the_projected_reading_has_no_states():
    mechanism = mechanisms.ModifiedLinformer(reading="projected")
    with pytest.raises(ValueError, match="no recurrent form"):
        mechanism.initial_state(1, 1, 4, 4)


def test_has_no_weights():
    mechanism = mechanisms.ModifiedLinformer()
    mechanism(*heads(random_inputs()))
    assert not mechanism.weights


def test_refuses_reading():
    with pytest.raises(ValueError, match="reading='verbatim'"):
        mechanisms.ModifiedLinformer(reading="verbatim")


def heads(inputs):
    return inputs.query, inputs.key, inputs.value
