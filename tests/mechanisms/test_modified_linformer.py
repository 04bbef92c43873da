"""The two readings of the origin."""

import numpy as np
import pytest
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.mechanisms import modified_linformer
from keras_linattn.testing import random_inputs


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


def test_has_no_weights():
    mechanism = mechanisms.ModifiedLinformer()
    mechanism(*heads(random_inputs()))
    assert not mechanism.weights


def test_refuses_reading():
    with pytest.raises(ValueError, match="reading='verbatim'"):
        mechanisms.ModifiedLinformer(reading="verbatim")


def heads(inputs):
    return inputs.query, inputs.key, inputs.value
