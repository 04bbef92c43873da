"""Inputs that are no floating point are refused, eager and symbolic."""

import keras
import numpy as np
import pytest

import keras_linattn
from keras_linattn import mechanisms

IDS = np.ones((1, 3, 4), "int32")
IMAGES = np.ones((1, 4, 4, 3), "uint8")
FLOATS = np.ones((1, 3, 4), "float32")


def attend(*inputs):
    return keras_linattn.LinearMultiHeadAttention(2, 2)(*inputs)


CALLS = {
    "self": (keras_linattn.LinearSelfAttention(2, 2), (IDS,)),
    "query": (attend, (IDS, FLOATS)),
    "value": (attend, (FLOATS, IDS)),
    "key": (attend, (FLOATS, FLOATS, IDS > 0)),
    "encoder": (keras_linattn.LinearTransformerEncoder(8, 2), (IDS,)),
    "decoder": (keras_linattn.LinearTransformerDecoder(8, 2), (IDS,)),
    "cross": (keras_linattn.LinearTransformerDecoder(8, 2), (FLOATS, IDS)),
    "group": (
        keras_linattn.layers.LinearTransformerDecoderGroup(
            2, 8, 2, mechanism="linear_transformer"
        ),
        (IDS,),
    ),
    "convolution": (keras_linattn.layers.CausalConvolution(3), (IDS,)),
    "merging": (keras_linattn.layers.TokenMerging(2, 4), (IDS,)),
    "pooling": (keras_linattn.layers.MaskedAveragePooling(), (IDS,)),
    "waveform": (keras_linattn.layers.WaveformMasking(), (IDS[..., 0],)),
    "strided": (keras_linattn.layers.StridedConvolution(4, 2, 1), (IDS,)),
    "patches": (keras_linattn.layers.PatchEmbedding(2, 4), (IMAGES,)),
}


@pytest.mark.parametrize("name", CALLS)
def test_layers_refuse(name):
    layer, inputs = CALLS[name]
    message = "floating-point tensors. Received: .* of dtype (u?int|bool)"
    with pytest.raises(TypeError, match=message):
        layer(*inputs)
    symbols = [keras.Input(x.shape[1:], dtype=str(x.dtype)) for x in inputs]
    with pytest.raises(TypeError, match="keras.layers.Embedding"):
        layer(*symbols)


@pytest.mark.parametrize("name", ["modified_linformer", "gated_delta"])
@pytest.mark.parametrize("wrong", ["query", "key", "value"])
def test_mechanisms_refuse(name, wrong):
    mechanism, x = mechanisms.get(name), np.ones((1, 2, 3, 4), "float32")
    heads = dict.fromkeys(("query", "key", "value"), x)
    heads[wrong] = x.astype("int32")
    symbols = {
        role: keras.Input(x.shape[1:], dtype=str(x.dtype))
        for role, x in heads.items()
    }
    for given in (heads, symbols):
        with pytest.raises(TypeError, match="floating-point tensors"):
            mechanism(**given, causal=name == "gated_delta")


def test_cells_refuse():
    attention = keras_linattn.LinearSelfAttention(
        2, 2, causal=True, mechanism="retention"
    )
    rnn = keras.layers.RNN(keras_linattn.layers.LinearAttentionCell(attention))
    with pytest.raises(TypeError, match="floating-point tensors"):
        rnn(IDS)


STATEFUL = {
    "attention": (
        lambda: keras_linattn.LinearSelfAttention(
            2, 2, causal=True, mechanism="retention"
        ),
        "initial_state",
    ),
    "block": (
        lambda: keras_linattn.LinearTransformerDecoder(8, 2),
        "self_attention_cache",
    ),
    "convolution": (
        lambda: keras_linattn.layers.CausalConvolution(3),
        "initial_state",
    ),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_states_of_integers_are_refused(name):
    make, argument = STATEFUL[name]
    layer = make()
    layer(FLOATS)
    state = keras.ops.cast(layer.get_initial_state(1), "int32")
    with pytest.raises(TypeError, match="Received: .*dtype int32"):
        layer(FLOATS, **{argument: state})
