"""`get_initial_state` before `build`: where the sizes are known, or given."""

import keras
import numpy as np
import pytest
from helpers import slow_to_compile
from keras import ops

import keras_linattn
from keras_linattn import mechanisms

LAYERS = {
    "attention": lambda mechanism: keras_linattn.LinearSelfAttention(
        2, 4, value_dim=3, causal=True, mechanism=mechanism
    ),
    "cell": lambda mechanism: keras_linattn.layers.LinearAttentionCell(
        LAYERS["attention"](mechanism)
    ),
}
OF_FEATURES = {
    "block": lambda: keras_linattn.LinearTransformerDecoder(8, 2),
    "group": lambda: keras_linattn.layers.LinearTransformerDecoderGroup(
        2, 8, 2
    ),
    "options": lambda: keras_linattn.layers.LinearTransformerDecoderGroup(
        2, 8, 2, attention_options={"kernel_size": 3}
    ),
    "convolution": lambda: keras_linattn.layers.CausalConvolution(3),
}
RECURRENT = [
    name
    for name in mechanisms.available()
    if mechanisms.get(name).traits.recurrent
]


def facts(state):
    return [
        (tuple(x.shape), keras.backend.standardize_dtype(x.dtype))
        for x in keras.tree.flatten(state)
    ]


def built(layer, *shapes):
    layer.build(*shapes or [(None, 5, 8)])
    return layer


@pytest.mark.parametrize("mechanism", RECURRENT)
def test_attention_knows_its_sizes(mechanism):
    mechanism = {"name": mechanism}
    if mechanisms.get(mechanism).traits.needs_length:
        mechanism["sequence_length"] = 8
    states = []
    for make in (lambda layer: layer, built):
        layer = make(LAYERS["attention"](mechanism))
        states.append(facts(layer.get_initial_state(3)))
    assert states[0] == states[1]


def test_a_cell_and_its_rnn():
    cell = LAYERS["cell"]("cosformer")
    assert facts(cell.get_initial_state(3)) == [
        ((3, 1), "float32"),
        ((3, 2 * 8 * 4), "float32"),
    ]
    rnn = keras.layers.RNN(cell)
    assert facts(rnn.get_initial_state(3)) == facts(cell.get_initial_state(3))


@slow_to_compile
@pytest.mark.parametrize("name", OF_FEATURES)
def test_blocks_are_told_the_features(name):
    layer = OF_FEATURES[name]()
    with pytest.raises(ValueError, match="Pass `features`, or build"):
        layer.get_initial_state(3)
    before = facts(layer.get_initial_state(3, features=8))
    assert not layer.built
    assert before == facts(built(layer).get_initial_state(3))
    x = np.ones((3, 5, 8), "float32")
    assert layer(x).shape == (3, 5, 8)


def test_a_block_may_know_the_size_of_its_heads():
    block = keras_linattn.LinearTransformerDecoder(
        8, 2, attention_options={"key_dim": 6}
    )
    before = facts(block.get_initial_state(3))
    assert before == facts(built(block).get_initial_state(3))


def test_cross_attention():
    block = keras_linattn.LinearTransformerDecoder(
        8, 2, cross_mechanism="linear_transformer"
    )
    with pytest.raises(ValueError, match="Pass `features`, or build"):
        block.get_initial_cross_state(3)
    before = facts(block.get_initial_cross_state(3, 8))
    pair = built(block, (None, 5, 8), (None, 4, 8))
    assert before == facts(pair.get_initial_cross_state(3))
    with pytest.raises(ValueError, match="must have cross-attention"):
        built(OF_FEATURES["block"]()).get_initial_cross_state(3)


@pytest.mark.parametrize("features", [0, True, 2.0, ops.ones(())])
def test_features_must_be_a_number_of_them(features):
    with pytest.raises(ValueError, match="must be a positive integer"):
        OF_FEATURES["block"]().get_initial_state(3, features)
