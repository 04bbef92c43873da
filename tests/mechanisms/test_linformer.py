"""Linformer's own identities."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_linattn import LinearSelfAttention
from keras_linattn import mechanisms
from keras_linattn.testing import random_inputs
from keras_linattn.testing._backends import with_free_sizes


def heads(inputs):
    return inputs.query, inputs.key, inputs.value


def test_identity_projection_is_softmax_attention():
    """k = S and E = F = I."""
    inputs = random_inputs(queries=5, keys=7)
    linformer = mechanisms.Linformer(projection_dim=7)
    linformer.build(*inputs.shapes)
    linformer.set_weights([np.eye(7)[None], np.eye(7)[None]])
    np.testing.assert_allclose(
        ops.convert_to_numpy(linformer(*heads(inputs))),
        ops.convert_to_numpy(mechanisms.Softmax()(*heads(inputs))),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("sharing", "shapes"),
    [
        ("none", [(2, 3, 6)] * 2),
        ("headwise", [(1, 3, 6)] * 2),
        ("key_value", [(1, 3, 6)]),
    ],
)
def test_sharing(sharing, shapes):
    linformer = mechanisms.Linformer(projection_dim=3, sharing=sharing)
    linformer.build(*random_inputs().shapes)
    assert [w.shape for w in linformer.weights] == shapes


def test_layerwise_sharing_is_one_object_in_several_layers(tmp_path):
    shared = mechanisms.Linformer(projection_dim=3)
    x = keras.Input((6, 8))
    y = LinearSelfAttention(2, 4, mechanism=shared)(x)
    model = keras.Model(x, LinearSelfAttention(2, 4, mechanism=shared)(y))
    projections = [w for w in model.weights if "projection" in w.path]
    assert len(projections) == 2  # E and F, once
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    data = np.random.default_rng(0).standard_normal((2, 6, 8))
    np.testing.assert_array_equal(
        model.predict(data, verbose=0), loaded.predict(data, verbose=0)
    )
    assert loaded.count_params() == model.count_params()


def test_too_long_an_input_of_free_length_is_never_plausible():
    """NaN where JAX exports the length; TensorFlow asserts, see conformance."""
    linformer = mechanisms.Linformer(projection_dim=3, sequence_length=6)
    fits, longer = (random_inputs(queries=n, keys=n) for n in (6, 7))
    linformer(*heads(fits))
    if keras.backend.backend() == "jax":
        shape = ("b", 2, "t", 4)
        traced = with_free_sizes(linformer, [shape] * 3, ["float32"] * 3)
        assert np.isfinite(traced(*heads(fits))).all()
        assert np.isnan(traced(*heads(longer))).all()
    with pytest.raises(ValueError, match="was built for, 6"):
        linformer(*heads(longer))


@pytest.mark.parametrize(
    "config",
    [{"projection_dim": 0}, {"sequence_length": -1}, {"sharing": "layerwise"}],
    ids=str,
)
def test_refuses(config):
    (name, value) = next(iter(config.items()))
    with pytest.raises(ValueError, match=f"Received: {name}={value!r}"):
        mechanisms.Linformer(**config)
