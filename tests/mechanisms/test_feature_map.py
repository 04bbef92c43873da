"""linear_transformer with a feature map of one's own."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_linattn import LinearSelfAttention
from keras_linattn import mechanisms
from keras_linattn.mechanisms._feature_map import NAMES

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 7, 8), dtype="float32")
HEADS = RNG.standard_normal((3, 2, 2, 7, 4), dtype="float32")


@keras.saving.register_keras_serializable("tests")
def squares_and_ones(x):
    return ops.concatenate([ops.square(x), ops.ones_like(x[..., :1])], axis=-1)


@keras.saving.register_keras_serializable("tests")
def whole_mean(x):
    return ops.mean(x, axis=2)


class Unknown(keras.layers.Layer):
    """A layer that does not say how many features it makes."""

    def call(self, x):
        return ops.abs(x)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], None)


def dense(units=5):
    return keras.layers.Dense(units, activation="softplus")


def get(feature_map):
    return mechanisms.get(
        {"name": "linear_transformer", "feature_map": feature_map}
    )


def quadratic(features, causal):
    """The formula, with `features` of queries and keys formed here."""
    query, key = (ops.convert_to_numpy(features(x)) for x in HEADS[:2])
    pairs = query @ np.swapaxes(key, -1, -2)
    pairs = np.tril(pairs) if causal else pairs
    return pairs / pairs.sum(-1, keepdims=True) @ HEADS[2]


MAPS = {
    "softplus": lambda: "softplus",
    "registered": lambda: squares_and_ones,
    "dense": dense,
    "per head": lambda: keras.layers.EinsumDense(
        "bhtd,hdr->bhtr", (2, None, 5), activation="softplus"
    ),
    "stack": lambda: keras.Sequential([dense(), keras.layers.ReLU()]),
}


@pytest.mark.parametrize("name", MAPS)
def test_is_the_formula_whole_and_in_pieces(name):
    mechanism = get(MAPS[name]())
    for causal in (False, True):
        output = mechanism(*HEADS, causal=causal)
        expected = quadratic(mechanism.feature_map, causal)
        np.testing.assert_allclose(
            ops.convert_to_numpy(output), expected, atol=1e-5
        )
    state, outputs = mechanism.initial_state(2, 2, 4, 4), []
    for now in (slice(0, 3), slice(3, 7)):
        heads = [ops.convert_to_tensor(x[:, :, now]) for x in HEADS]
        output, state = mechanism.step(state, *heads)
        outputs.append(ops.convert_to_numpy(output))
    np.testing.assert_allclose(np.concatenate(outputs, 2), expected, atol=1e-5)


def test_elu_plus_one_stays_the_default():
    mechanism = get(None)
    assert mechanism.traits.separable
    assert mechanism.get_config()["feature_map"] is None
    assert not get("relu").traits.separable  # its factors are those of elu + 1


@pytest.mark.parametrize("name", NAMES)
def test_names_are_negative_nowhere(name):
    x = np.linspace(-4, 4, 40, dtype="float32").reshape(10, 4)
    features = get(name).feature_map(ops.convert_to_tensor(x))
    assert ops.convert_to_numpy(features).min() >= 0
    assert get(name).get_config()["feature_map"] == name


@pytest.mark.parametrize("name", ["softplus", "registered", "dense", "stack"])
def test_saved_and_loaded_in_safe_mode(name, tmp_path):
    layer = LinearSelfAttention(2, 4, mechanism=get(MAPS[name]()), causal=True)
    model = keras.Sequential([keras.Input((None, 8)), layer])
    expected = model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), expected)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert clone.layers[0].mechanism is not layer.mechanism
    np.testing.assert_array_equal(clone.predict(X, verbose=0), expected)


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize`")
def test_a_layers_weights_are_the_mechanisms(tmp_path):
    layer = LinearSelfAttention(2, 4, mechanism=get(dense()), causal=True)
    model = keras.Sequential([keras.Input((None, 8)), layer])
    assert [w.shape for w in layer.mechanism.trainable_variables] == [
        (4, 5),
        (5,),
    ]
    assert layer.get_initial_state(2).shape == (2, 2, 5, 5)
    before = model.predict(X, verbose=0)
    model.quantize("int8")
    assert layer.mechanism.feature_map.quantization_mode == "int8"
    after = model.predict(X, verbose=0)
    assert 0 < np.abs(after - before).max() < 0.1 * np.abs(before).max()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(X, verbose=0), after, atol=1e-6)


@pytest.mark.parametrize(
    ("feature_map", "error", "message"),
    [
        ("elu", ValueError, "Received: feature_map='elu'. Use one of expon"),
        ("relw", ValueError, "Received: feature_map='relw'. Use one of expon"),
        (lambda x: x, ValueError, "must be registered with Keras"),
        (ops.square, ValueError, "must be registered with Keras"),
        (7, TypeError, "Received: feature_map=7 of type int"),
        (keras.layers.Dense, TypeError, "of type type"),
    ],
)
def test_refused(feature_map, error, message):
    with pytest.raises(error, match=message):
        get(feature_map)


def test_other_axes_stay():
    with pytest.raises(ValueError, match=r"features of shape \(2, 2, 4\)"):
        get(whole_mean)(*HEADS)


def test_states_need_the_number_of_features():
    mechanism = get(Unknown())
    mechanism(*HEADS, causal=True)  # without a state it is not needed
    with pytest.raises(ValueError, match="compute_output_shape"):
        mechanism.initial_state(2, 2, 4, 4)


def test_half_precision_and_free_sizes():
    """float32 inside, in the dtype of the layer that is called."""
    layer = LinearSelfAttention(
        2, 4, mechanism=get("exponential"), causal=True, dtype="mixed_float16"
    )
    x = keras.Input((None, 8))
    output, state = layer(x, return_state=True)
    assert (output.dtype, state.dtype) == ("float16", "float32")
    result = keras.Model(x, output).predict(X, verbose=0)
    assert np.isfinite(result).all()
