"""Inputs that are no floating point are refused, eager and symbolic."""

import keras
import numpy as np
import pytest

import keras_linattn
from keras_linattn import mechanisms

IDS = np.ones((1, 3, 4), "int32")
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
        keras_linattn.LinearTransformerDecoderGroup(
            2, 8, 2, mechanism="linear_transformer"
        ),
        (IDS,),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_layers_refuse(name):
    layer, inputs = CALLS[name]
    message = "inputs of floating point. Received: .* of dtype (int32|bool)"
    with pytest.raises(TypeError, match=message):
        layer(*inputs)
    symbols = [keras.Input(x.shape[1:], dtype=str(x.dtype)) for x in inputs]
    with pytest.raises(TypeError, match="keras.layers.Embedding"):
        layer(*symbols)


@pytest.mark.parametrize("name", ["modified_linformer", "gated_delta"])
def test_mechanisms_refuse(name):
    mechanism, x = mechanisms.get(name), np.ones((1, 2, 3, 4), "int32")
    with pytest.raises(TypeError, match="inputs of floating point"):
        mechanism(x, x, x, causal=name == "gated_delta")
