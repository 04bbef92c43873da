"""`state_dtype`: how states are kept between calls."""

import keras
import numpy as np
import pytest
from helpers import slow_to_compile
from keras import ops

from keras_linattn import LinearSelfAttention
from keras_linattn import mechanisms
from keras_linattn.layers import LinearAttentionCell

X = np.random.default_rng(0).standard_normal((2, 6, 8), dtype="float32")


def attention(**mechanism):
    mechanism = {"state_dtype": "bfloat16", **mechanism}
    return LinearSelfAttention(2, 4, mechanism=mechanism, causal=True)


def dtypes(state):
    leaves = keras.tree.flatten(state)
    return [keras.backend.standardize_dtype(x.dtype) for x in leaves]


@pytest.mark.parametrize("dtype", ["int8", "bool", "half", 7])
def test_refused(dtype):
    with pytest.raises(ValueError, match="`state_dtype` must .* Received"):
        mechanisms.Retention(state_dtype=dtype)


def test_default_is_the_dtype_of_the_sums():
    for policy, dtype in (("mixed_float16", "float32"), ("float64",) * 2):
        mechanism = mechanisms.Retention(dtype=policy)
        assert mechanism.state_dtype == dtype
        assert mechanism.get_config()["state_dtype"] is None


# Of modified_linformer's state the largest key is an exponent.
@slow_to_compile
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("retention", ["bfloat16"]),
        ("modified_linformer", ["float32", "bfloat16"]),
    ],
)
def test_layers_return_and_declare_it(name, kept):
    layer = attention(name=name)
    assert dtypes(layer.get_initial_state(2)) == kept
    symbol = keras.Input((None, 8))
    _, state = layer(symbol, return_state=True)
    assert dtypes(state) == kept
    _, state = layer(X, return_state=True)
    assert dtypes(state) == kept
    # A state of another precision is taken, and comes back in this one.
    state = keras.tree.map_structure(lambda x: ops.cast(x, "float32"), state)
    _, state = layer(X, initial_state=state, return_state=True)
    assert dtypes(state) == kept
    copy = LinearSelfAttention.from_config(layer.get_config())
    assert dtypes(copy.get_initial_state(2)) == kept


@slow_to_compile
def test_large_keys_keep_their_digits():
    """Keys of hundreds: bfloat16 would round them by more than 1."""
    rng = np.random.default_rng(1)
    q, k, v = rng.standard_normal((3, 1, 2, 6, 4), dtype="float32")
    k = 300 * k
    mechanism = mechanisms.get("modified_linformer", state_dtype="float16")
    expected = ops.convert_to_numpy(mechanism(q, k, v, causal=True))
    state, outputs = mechanism.initial_state(1, 2, 4, 4), []
    for now in (slice(0, 4), slice(4, 6)):
        heads = [ops.convert_to_tensor(x[:, :, now]) for x in (q, k, v)]
        output, state = mechanism.step(state, *heads)
        outputs.append(ops.convert_to_numpy(output))
    got = np.concatenate(outputs, axis=2)
    np.testing.assert_allclose(got, expected, atol=4e-3)


def test_in_an_rnn():
    layer = attention(name="retention")
    rnn = keras.layers.RNN(LinearAttentionCell(layer), return_sequences=True)
    expected = ops.convert_to_numpy(layer(X))
    np.testing.assert_allclose(
        ops.convert_to_numpy(rnn(X)), expected, atol=0.05
    )


def test_a_state_of_another_mechanism_is_refused():
    layer = attention(name="modified_linformer")
    with pytest.raises(ValueError, match="have 2 tensors. Received: 1"):
        layer(X, initial_state=ops.ones((2, 2, 4, 6)))
