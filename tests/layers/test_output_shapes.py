"""What a symbolic call promises is what a call gives."""

import keras
import numpy as np
import pytest
from helpers import public_layers

from keras_linattn import layers

TOKENS, SHORT = ("float32", (2, 6, 8)), ("float32", (2, 3, 4))
BLOCK = {"intermediate_dim": 12, "num_heads": 2}
ATTENTION = {"num_heads": 2, "key_dim": 4, "output_shape": (9,)}
CASES = {
    "LinearSelfAttention": (ATTENTION, [TOKENS]),
    "LinearMultiHeadAttention": (ATTENTION, [TOKENS, SHORT]),
    "LinearTransformerEncoder": (BLOCK, [TOKENS]),
    "LinearTransformerDecoder": (BLOCK, [TOKENS, SHORT]),
    "LinearTransformerDecoderGroup": ({**BLOCK, "num_layers": 2}, [TOKENS]),
    "CausalConvolution": ({}, [TOKENS]),
    "PatchEmbedding": (
        {"patch_size": 2, "embed_dim": 5},
        [("float32", (2, 4, 4, 3))],
    ),
    "NGramEmbedding": (
        {"vocabulary_size": 9, "embed_dim": 5},
        [("int32", (2, 6))],
    ),
    "TokenExtension": ({"factor": 2}, [TOKENS, SHORT]),
    "TokenMerging": ({"factor": 4, "units": 5}, [TOKENS]),
    "MaskedAveragePooling": ({}, [TOKENS]),
    "StridedConvolution": (
        {"units": 5, "kernel_size": 8, "strides": 4},
        [TOKENS],
    ),
    "WaveformMasking": ({}, [("float32", (2, 6))]),
}
CALLS = {
    "LinearSelfAttention": [{"return_attention_scores": True}],
    "LinearMultiHeadAttention": [{"return_attention_scores": True}],
    "LinearTransformerEncoder": [{"return_attention_scores": True}],
    "CausalConvolution": [{"return_state": True}],
}


def test_every_public_layer_is_here():
    assert public_layers() == {*CASES, "LinearAttentionCell"}


def described(outputs):
    return keras.tree.map_structure(
        lambda x: (tuple(x.shape), keras.backend.standardize_dtype(x.dtype)),
        outputs,
    )


@pytest.mark.every_case
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_spec_is_the_output(name, policy):
    options, inputs = CASES[name]
    layer = getattr(layers, name)(**options, dtype=policy)
    symbols = [keras.KerasTensor(shape, dtype) for dtype, shape in inputs]
    arrays = [np.ones(shape, dtype) for dtype, shape in inputs]
    for call in ({}, *CALLS.get(name, [])):
        promised = described(layer(*symbols, **call))
        assert promised == described(layer(*arrays, **call)), call
    shape = layer.compute_output_shape(*(shape for _, shape in inputs))
    assert tuple(shape) == described(layer(*arrays))[0]


@pytest.mark.parametrize("name", [n for n in CASES if len(CASES[n][1]) == 1])
def test_time_distributed(name):
    options, [(dtype, shape)] = CASES[name]
    layer = getattr(layers, name)(**options)
    wrapped = keras.layers.TimeDistributed(layer)
    symbolic = wrapped(keras.Input((3, *shape[1:]), dtype=dtype))
    assert symbolic.shape[1:] == (
        3,
        *layer.compute_output_shape(shape)[1:],
    )
    x = np.ones((2, 3, *shape[1:]), dtype)
    assert wrapped(x).shape == (2, *symbolic.shape[1:])


def test_time_distributed_decoder_and_cell():
    """A decoder of one sequence, and the cell in its `RNN`."""
    block = layers.LinearTransformerDecoder(**BLOCK)
    wrapped = keras.layers.TimeDistributed(block)
    assert wrapped(keras.Input((3, 6, 8))).shape == (None, 3, 6, 8)
    attention = layers.LinearSelfAttention(
        2, 4, mechanism="linear_transformer", causal=True
    )
    cell = layers.LinearAttentionCell(attention)
    rnn = keras.layers.RNN(cell, return_sequences=True)
    promised = described(rnn(keras.KerasTensor((2, 6, 8))))
    assert promised == described(rnn(np.ones((2, 6, 8), "float32")))
