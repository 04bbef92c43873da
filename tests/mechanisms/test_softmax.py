"""Softmax with a cache: a state of fixed size, and its end."""

import numpy as np
import pytest
from helpers import slow_to_compile
from keras import ops

from keras_linattn import LinearSelfAttention
from keras_linattn import mechanisms
from keras_linattn.layers import LinearAttentionCell
from keras_linattn.mechanisms import Softmax
from keras_linattn.testing import random_inputs
from keras_linattn.testing._gradient_checks import fast_gradients


@slow_to_compile
def test_past_the_cache_all_is_nan():
    """From the first position that would need one key more."""
    inputs = random_inputs(queries=12, keys=12)
    heads = (inputs.query, inputs.key, inputs.value)
    mask = np.arange(12) % 2 == np.array([[0], [1]])
    mask[1] = True
    mechanism = Softmax(cache_length=7)
    state, outputs = mechanism.initial_state(2, 2, 4, 4), []
    for piece in (slice(0, 5), slice(5, 10), slice(10, 11), slice(11, 12)):
        output, state = mechanism.step(
            state,
            *(ops.convert_to_tensor(x[:, :, piece]) for x in heads),
            key_mask=ops.convert_to_tensor(mask[:, piece]),
        )
        outputs.append(ops.convert_to_numpy(output))
    output = np.concatenate(outputs, axis=2)
    assert np.isfinite(output[0]).all()  # six of twelve are visible
    assert np.isfinite(output[1, :, :7]).all()
    assert np.isnan(output[1, :, 7:]).all()


def test_refuses_what_does_not_fit():
    x = np.ones((1, 2, 8, 4), "float32")
    mechanism = Softmax(cache_length=7)
    with pytest.raises(ValueError, match="8 positions, cache_length=7"):
        mechanism.step(mechanism.initial_state(1, 2, 4, 4), x, x, x)
    assert tuple(mechanism(x, x, x, causal=True).shape) == x.shape
    for cache_length in (0, 2.5):
        with pytest.raises(ValueError, match="`cache_length` must be"):
            Softmax(cache_length=cache_length)


def test_without_a_cache_the_error_names_the_way_out():
    layer = LinearSelfAttention(2, 4, mechanism="softmax", causal=True)
    with pytest.raises(ValueError, match='"cache_length": 1024'):
        LinearAttentionCell(layer)
    mechanism = {"name": "softmax", "cache_length": 9}
    layer = LinearSelfAttention(2, 4, mechanism=mechanism, causal=True)
    assert LinearAttentionCell(layer).state_size == [2 * 9 * 8, 1]


@slow_to_compile
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["softmax", "local"])
def test_gradients_of_large_scores_are_those_of_weights(name, causal):
    """torch's kernel, for one, takes weights of e^60 from scores of 1e8."""
    sizes = {"queries": 65, "keys": 65, "key_dim": 32}
    inputs = random_inputs(**sizes, scale=1e4)
    mechanism = mechanisms.get(name)
    ones = np.ones_like(inputs.value)
    found = fast_gradients(mechanism, inputs, ones, causal)
    # The weights of each query have the sum 1.
    np.testing.assert_allclose(found["value"].sum(axis=2), 65, rtol=1e-4)
    assert np.isfinite(found["query"]).all()
    assert np.isfinite(found["key"]).all()


def test_a_key_of_minus_infinity_has_no_weight():
    heads = np.ones((3, 1, 1, 4, 2), "float32")
    heads[1, :, :, 1] = -np.inf
    heads[2] *= np.array([4.0, 5.0, 2.0, 9.0])[:, None]
    output = Softmax()(*map(ops.convert_to_tensor, heads), causal=True)
    output = ops.convert_to_numpy(output)[0, 0, :, 0]
    np.testing.assert_allclose(output, [4, 4, 3, 5])


@slow_to_compile
def test_digits_do_not_depend_on_other_documents():
    """Nor on how many there are, or on those of another example."""
    inputs = random_inputs(queries=600, keys=600)
    heads = (inputs.query, inputs.key, inputs.value)
    ids = np.repeat([[1], [1]], 600, axis=1)
    ids[:, 300:] = 2
    others = ids.copy()
    others[1, 300:] = np.arange(2, 302)
    found = [
        ops.convert_to_numpy(Softmax()(*heads, causal=True, segment_ids=x))
        for x in (ids, others)
    ]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1, :, :300], found[1][1, :, :300])


@slow_to_compile
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_do_not_change_the_digits(causal):
    """Large scores have gradients of their own, not outputs of their own."""
    layer = LinearSelfAttention(2, 8, mechanism="softmax", causal=causal)
    x = random_inputs(heads=1, queries=40, key_dim=8).query[:, 0]
    large = np.concatenate([x[:1], 1e5 * x[1:]])
    found = [ops.convert_to_numpy(layer(y)) for y in (x, large)]
    np.testing.assert_array_equal(found[0][0], found[1][0])
