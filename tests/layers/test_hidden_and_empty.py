"""NaN behind masks, and inputs of nothing, through every layer."""

import functools

import keras
import numpy as np
import pytest
from helpers import cases_of
from helpers import random
from helpers import slow_to_compile
from keras import ops

import keras_linattn as kl
from keras_linattn import mechanisms
from keras_linattn.testing._backends import gradients

MASK = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]], bool)


def attention(name):
    causal = mechanisms.get(name).traits.forms[0]
    return kl.LinearSelfAttention(2, 4, mechanism=name, causal=causal)


LAYERS = {
    **{n: functools.partial(attention, n) for n in mechanisms.available()},
    "encoder": lambda: kl.LinearTransformerEncoder(8, 2),
    "pre-norm encoder": lambda: kl.LinearTransformerEncoder(
        8, 2, normalize_first=True
    ),
    "decoder": lambda: kl.LinearTransformerDecoder(8, 2),
    "group": lambda: kl.layers.LinearTransformerDecoderGroup(2, 8, 2),
    "convolution": lambda: kl.layers.CausalConvolution(3),
    "cell": lambda: keras.layers.RNN(
        kl.layers.LinearAttentionCell(
            kl.LinearSelfAttention(
                2, 4, causal=True, mechanism="linear_transformer"
            )
        ),
        return_sequences=True,
        unroll=True,
    ),
    "pooling": kl.layers.MaskedAveragePooling,
}


@pytest.mark.parametrize(
    "name",
    cases_of(
        LAYERS, {*LAYERS} - {*mechanisms.available()} | {"modified_linformer"}
    ),
)
def test_nan_behind_the_mask_reaches_no_gradient(name):
    layer = LAYERS[name]()
    x = random(2, 6, 8)
    mask = ops.convert_to_tensor(MASK)
    layer(ops.convert_to_tensor(x), mask=mask)

    def total(x):
        y = layer(x, mask=mask)
        if len(y.shape) == 3:
            y = ops.where(ops.expand_dims(mask, -1), y, ops.zeros_like(y))
        return ops.sum(y * ops.convert_to_tensor(random(*y.shape, seed=1)))

    def found(fill):
        filled = np.where(MASK[..., None], x, np.float32(fill))
        by_input, by_weight = gradients(
            total, [filled], layer.trainable_variables
        )
        return [*by_input, *by_weight]

    for altered, clean in zip(found(np.nan), found(0)):
        np.testing.assert_allclose(altered, clean, rtol=1e-6, atol=1e-6)


def test_nan_behind_the_masks_of_cross_attention():
    layer = kl.LinearMultiHeadAttention(2, 4)
    mask = ops.convert_to_tensor(MASK)
    layer.build((2, 6, 8), (2, 6, 8))

    def total(query, value):
        y = layer(query, value, query_mask=mask, value_mask=mask)
        return ops.sum(ops.where(ops.expand_dims(mask, -1), y, 0.0))

    nan = np.where(MASK[..., None], random(2, 6, 8), np.float32("nan"))
    found = gradients(total, [nan, nan], layer.trainable_variables)
    assert all(np.isfinite(g).all() for part in found for g in part)


def test_hidden_merged_tokens_add_nothing():
    layer = kl.layers.TokenExtension(2)
    x, merged = random(1, 4, 3), random(1, 2, 5)
    mask = ops.convert_to_tensor([[True, False]])
    layer.build(x.shape, merged.shape)
    merged[:, 1] = np.nan

    def total(x, merged):
        return ops.sum(layer(x, merged, merged_mask=mask)[:, :2])

    by_input, by_weight = gradients(
        total, [x, merged], layer.trainable_variables
    )
    assert all(np.isfinite(g).all() for g in [*by_input, *by_weight])


@pytest.mark.parametrize(("batch", "length"), [(0, 6), (2, 0)])
@pytest.mark.parametrize(
    "name",
    [
        *("encoder", "decoder", "group", "convolution", "pooling"),
        *("modified_linformer", "agent", "merging", "strided", "waveform"),
    ],
)
def test_empty_inputs_give_the_empty_result(name, batch, length):
    makers = {
        **LAYERS,
        "merging": lambda: kl.layers.TokenMerging(2, 8),
        "strided": lambda: kl.layers.StridedConvolution(8, 4, 2),
        "waveform": kl.layers.WaveformMasking,
    }
    layer = makers[name]()
    features = () if name == "waveform" else (8,)
    if name != "waveform":
        layer.build((2, 6, 8))
    x = ops.convert_to_tensor(random(batch, length, *features))
    halved = (batch, length // 2, 8)
    others = {
        "pooling": (batch, 8),
        "merging": halved,
        "strided": halved,
        "waveform": (batch, length, 1),
    }
    expected = others.get(name, (batch, length, 8))
    for mask in (None, ops.ones((batch, length), dtype="bool")):
        y = layer(x, mask=mask)
        assert tuple(y.shape) == tuple(expected)
        assert not ops.convert_to_numpy(y).any()
    if name == "waveform":
        assert tuple(layer.compute_mask(x).shape) == (batch, length)


def test_patches_refuse_images_of_another_size():
    layer = kl.layers.PatchEmbedding(2, 4)
    layer(random(1, 2, 2, 1))
    for images in (random(1, 4, 4, 1), keras.Input((4, 4, 1))):
        with pytest.raises(ValueError, match="1 patches. Received"):
            layer(images)


@pytest.mark.parametrize("name", ["linformer", "cosformer"])
def test_too_long_an_input_is_refused_while_the_model_is_made(name):
    mechanism = {"name": name, "sequence_length": 16}
    layer = kl.LinearSelfAttention(2, 4, mechanism=mechanism)
    layer(keras.Input((16, 8)))
    with pytest.raises(ValueError, match="built for, 16. Received"):
        layer(keras.Input((32, 8)))


# --- CausalConvolution


@slow_to_compile
@pytest.mark.parametrize("streams", [False, True])
def test_convolution_of_padding_at_either_end_is_that_of_none(streams):
    layer = kl.layers.CausalConvolution(4)
    x = random(4, 9, 3)
    layer.build(x.shape)
    before = random(4, 3, 3, seed=2) if streams else np.zeros((4, 3, 3))
    before = before.astype("float32")
    mask = np.zeros((4, 9), bool)
    mask[0, 3:8] = mask[1, :5] = mask[2, 7:] = True  # and none in the last
    y, state = layer(
        ops.convert_to_tensor(np.where(mask[..., None], x, np.float32("nan"))),
        mask=ops.convert_to_tensor(mask),
        initial_state=ops.convert_to_tensor(before) if streams else None,
        return_state=True,
    )
    y, state = ops.convert_to_numpy(y), ops.convert_to_numpy(state)
    for row in range(4):
        alone, after = layer(
            ops.convert_to_tensor(x[row : row + 1, mask[row]]),
            initial_state=ops.convert_to_tensor(before[row : row + 1]),
            return_state=True,
        )
        np.testing.assert_allclose(
            y[row, mask[row]], ops.convert_to_numpy(alone)[0], atol=1e-6
        )
        np.testing.assert_array_equal(
            state[row], ops.convert_to_numpy(after)[0]
        )


def test_convolution_that_looks_into_a_gap_is_nan():
    layer = kl.layers.CausalConvolution(2)
    mask = ops.convert_to_tensor([[True, False, True, True]])
    y = ops.convert_to_numpy(layer(ops.ones((1, 4, 3)), mask=mask))
    nan = np.isnan(y[0]).all(axis=-1)
    np.testing.assert_array_equal(nan[[0, 2, 3]], [False, True, False])
