"""The public bases of mechanisms."""

import numpy as np
import pytest
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.mechanisms import RecurrentMechanism
from keras_linattn.testing import random_inputs
from keras_linattn.testing._backends import step_of


class DeltaInALoop(mechanisms.GatedDelta):
    """Another recurrence without a chunked form."""

    chunked = RecurrentMechanism.chunked


class LinearInALoop(mechanisms.GatedLinear):
    """The default recurrence with a gate for each feature."""

    chunked = RecurrentMechanism.chunked


class Pairs(mechanisms.KernelMechanism):
    """Twice as many features as it says."""

    def features(self, x):
        return ops.concatenate([ops.relu(x), ops.relu(-x)], axis=-1)


@pytest.mark.parametrize("slow", [DeltaInALoop, LinearInALoop])
def test_a_recurrence_needs_no_chunked_form(slow):
    inputs = random_inputs(queries=9, keys=9, value_dim=3, visible=0.7)
    found = []
    weights = None
    for cls in (slow, slow.__base__):
        mechanism = cls()
        mechanism.build(*inputs.shapes)
        weights = weights or mechanism.get_weights()
        mechanism.set_weights(weights)
        heads = [
            ops.convert_to_tensor(x)
            for x in (inputs.query, inputs.key, inputs.value, inputs.key_mask)
        ]
        state = mechanism.initial_state_for(heads[0], heads[2])
        output, state = step_of(mechanism)(state + 1, *heads)
        found.append([ops.convert_to_numpy(x) for x in (output, state)])
    for slowly, at_once in zip(*found, strict=True):
        np.testing.assert_allclose(slowly, at_once, rtol=1e-5, atol=1e-5)


def test_number_of_features_must_be_right():
    x = ops.ones((1, 1, 2, 4))
    mechanism = Pairs()
    state = mechanism.initial_state_for(x, x)
    with pytest.raises(ValueError, match="8 features.*num_features_for"):
        mechanism.step(state, x, x, x)


@pytest.mark.parametrize(
    ("base", "missing"),
    [
        (mechanisms.KernelMechanism, "features"),
        (mechanisms.RecurrentMechanism, "gates"),
    ],
)
def test_what_is_missing_is_named(base, missing):
    x = np.ones((1, 1, 2, 4), "float32")
    with pytest.raises(NotImplementedError, match=f"must define `{missing}`"):
        base()(x, x, x, causal=True)


def test_recurrent_without_advance_says_so():
    class Half(mechanisms.Mechanism):
        traits = mechanisms.Traits(causal=True, recurrent=True)

        def state_spec(self, num_heads, key_dim, value_dim):
            return ()

    x = ops.ones((1, 1, 2, 4))
    with pytest.raises(NotImplementedError, match="must define `advance`"):
        Half().step((), x, x, x)


def test_values_must_be_as_wide_as_keys():
    x = np.ones((1, 1, 2, 4), "float32")
    with pytest.raises(ValueError, match=r"value shape \(1, 1, 2, 3\)"):
        mechanisms.get("xca")(x, x, x[..., :3])
