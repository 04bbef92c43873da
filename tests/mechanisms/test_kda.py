"""The delta rule with a decay for each feature."""

import numpy as np
import pytest
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.core.vector_delta import vector_delta_step
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._backends import quick
from keras_linattn.testing._subject import run


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
