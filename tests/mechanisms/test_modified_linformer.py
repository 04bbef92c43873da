"""The two readings of the origin."""

import numpy as np
import pytest
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.mechanisms import modified_linformer
from keras_linattn.testing import compare_with_reference
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._subject import run


def numpy(x):
    return ops.convert_to_numpy(x)


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


@pytest.mark.parametrize("drift", [-2, 0, 1])
def test_causal_keys_may_stand_anywhere(drift):
    """Far from 0, rising or falling by hundreds, hidden at the start."""
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


def test_a_feature_that_rises_too_far_is_nan_not_wrong():
    inputs = random_inputs(batch=1, queries=4, keys=4)
    key = inputs.key.copy()
    key[:, :, 2, 1] = 200
    output = run(
        mechanisms.get("modified_linformer"), inputs.replace(key=key), True
    )
    assert np.isfinite(output[:, :, :2]).all()
    assert np.isnan(output[:, :, 2:]).all()


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
