"""The delta rule with a decay for each feature."""

import numpy as np
import pytest
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.core.fading import fading_product
from keras_linattn.core.vector_delta import vector_delta_product
from keras_linattn.core.vector_delta import vector_delta_step
from keras_linattn.mechanisms._chunk_carry import carry_chunks
from keras_linattn.mechanisms._chunk_carry import loop_over_chunks
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._backends import quick
from keras_linattn.testing._subject import run
from keras_linattn.testing.references import _state

LENGTH, FEATURES = 150, 8


def decays():
    """Logarithms `[B, T, D]`: one row for each way to fade."""
    rng = np.random.default_rng(0)
    shape = (LENGTH, FEATURES)
    sizes = rng.uniform(np.log(1e-7), np.log(1e3), shape)
    return {
        "50 at each step": np.full(shape, -50.0),
        "hardly": -1e-6 * rng.random(shape),
        "all sizes": -np.exp(sizes),
        "each feature its own": np.broadcast_to(
            -np.geomspace(1e-7, 50, FEATURES), shape
        ),
        # A difference of sums has lost the digits of 0.01 after the first.
        "now and then": np.where(rng.random(shape) < 0.1, -1e3, -1e-2),
        "more than float32 adds up": np.where(
            rng.random(shape) < 0.3, -1e37, -0.1
        ),
    }


def test_decays_of_any_strength_match_float64():
    names, log_decay = zip(*decays().items(), strict=True)
    sizes = (len(names), 2, LENGTH, LENGTH, FEATURES, 5)
    inputs = random_inputs(*sizes, seed=1)
    query, key = (
        x / np.linalg.norm(x, axis=-1, keepdims=True)
        for x in (inputs.query, inputs.key)
    )
    log_decay = np.repeat(np.stack(log_decay)[:, None], 2, axis=1)
    log_decay = log_decay.astype("float32")
    beta = np.random.default_rng(2).random((*log_decay.shape[:-1], 1))
    beta = beta.astype("float32")
    heads = [query, key, inputs.value, beta, log_decay]

    def whole(*heads):
        state = ops.zeros((*sizes[:2], FEATURES, 5))
        return vector_delta_product(*heads, state, loop_over_chunks, 64)[0]

    query, key, value, beta, log_decay = (x.astype("float64") for x in heads)
    expected = _state.loop(
        query,
        key,
        value,
        np.exp(log_decay),
        _state.delta(beta[..., 0]),
        np.ones((sizes[0], LENGTH), bool),
    )
    for name, found, row in zip(
        names, quick(whole, heads), expected, strict=True
    ):
        np.testing.assert_allclose(found, row, atol=5e-6, err_msg=name)


@pytest.mark.parametrize("features", [1, 4])
def test_sums_that_fade_match_float64(features):
    """The same without corrections, for one decay of all features too."""
    inputs = random_inputs(1, 2, 70, 70, 4, 3)
    rng = np.random.default_rng(0)
    shape = (1, 2, 70, features)
    log_decay = np.where(rng.random(shape) < 0.1, -1e3, -1e-2)
    heads = [inputs.query, inputs.key, inputs.value]
    heads.append(log_decay.astype("float32"))

    def whole(*heads):
        state = ops.zeros((1, 2, 4, 3))
        return fading_product(*heads, state, carry_chunks, 64)[0]

    query, key, value, log_decay = (x.astype("float64") for x in heads)
    expected = _state.loop(
        query,
        key,
        value,
        np.exp(log_decay),
        _state.add,
        np.ones((1, 70), bool),
    )
    np.testing.assert_allclose(quick(whole, heads), expected, atol=1e-5)


def test_one_step_fades_the_rows_of_the_state():
    ones = np.ones((1, 1, 1, 3), "float32")
    log_decay = np.log([[[[0.5, 1, 0.25]]]]).astype("float32")

    def step(query, log_decay):
        state = ops.ones((1, 1, 3, 2))
        nothing = ops.zeros((1, 1, 1, 1))
        value = ops.zeros((1, 1, 1, 2))
        return vector_delta_step(
            query, query, value, nothing, log_decay, state
        )[0]

    np.testing.assert_allclose(
        quick(step, [ones, log_decay]), np.full((1, 1, 1, 2), 1.75), rtol=1e-6
    )


def test_one_decay_for_all_features_is_gated_delta():
    inputs = random_inputs(queries=70, keys=70, key_dim=4)
    subject = subjects("gated_delta")[1]
    gated, gated_config = subject.build(inputs), subject.config
    assert not gated.output_norm  # which magnifies differences
    mechanism = mechanisms.get("kda", gate_rank=2, **gated_config)
    mechanism.build(*inputs.shapes)
    for name in ("beta_kernel", "beta_bias", "log_rate"):
        getattr(mechanism, name).assign(getattr(gated, name))
    mechanism.down.assign(gated.decay_kernel)
    mechanism.up.assign(np.repeat(np.eye(2)[:, :, None], 4, axis=2))
    bias = ops.convert_to_numpy(gated.decay_bias)
    mechanism.decay_bias.assign(np.repeat(bias[:, None], 4, axis=1))
    np.testing.assert_allclose(
        run(mechanism, inputs), run(gated, inputs), atol=2e-5
    )


def test_refuses_a_rank_out_of_range():
    with pytest.raises(ValueError, match="`gate_rank` must be"):
        mechanisms.get("kda", gate_rank=0)
