"""`LinearSelfAttention`: one tensor in, one out."""

import keras
import numpy as np
import pytest
from helpers import cases_of
from helpers import numpy
from helpers import random
from helpers import slow_under_jax
from keras import ops

from keras_linattn import LinearMultiHeadAttention
from keras_linattn import LinearSelfAttention
from keras_linattn import mechanisms


@pytest.mark.parametrize("causal", [False, True])
def test_is_multi_head_attention_to_itself(causal):
    x = random(2, 5, 6)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    options = {"mechanism": "linear_transformer", "use_gate": True}
    one = LinearSelfAttention(2, 4, value_dim=3, causal=causal, **options)
    other = LinearMultiHeadAttention(2, 4, value_dim=3, **options)
    one(x)
    other(x, x)
    other.set_weights(one.get_weights())
    expected = other(
        x, x, query_mask=mask, value_mask=mask, use_causal_mask=causal
    )
    np.testing.assert_array_equal(numpy(one(x, mask=mask)), numpy(expected))


def test_sequential_model_learns_and_masks():
    """The model of the README: any length, padding changes nothing."""
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(256, 16, mask_zero=True),
            LinearSelfAttention(num_heads=4, key_dim=4),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 256, (64, 12))
    labels = rng.integers(0, 2, 64)
    tokens[np.arange(64), rng.integers(0, 12, 64)] = labels  # 1 or padding
    model.compile(
        keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy"
    )
    losses = model.fit(tokens, labels, epochs=15, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    short = rng.integers(1, 256, (3, 7))
    padded = np.pad(short, [(0, 0), (0, 9)])
    np.testing.assert_allclose(
        numpy(model(padded)), numpy(model(short)), atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_trains(dtype):
    model = keras.Sequential(
        [
            keras.Input((None, 8), dtype="float32"),
            LinearSelfAttention(2, 4, dtype=dtype),
            keras.layers.Dense(1, dtype="float32"),
        ]
    )
    x = random(8, 20, 8)
    model.compile("sgd", "mse")
    history = model.fit(x, x[..., :1], epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    output = model.layers[0](x)
    assert keras.backend.standardize_dtype(output.dtype) == dtype[6:]


@slow_under_jax
@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras does not compile torch"
)
@pytest.mark.parametrize("mechanism", cases_of(mechanisms.available()))
def test_training_compiles(mechanism):
    model = keras.Sequential(
        [
            keras.Input((9, 8)),
            LinearSelfAttention(
                2,
                4,
                mechanism=mechanism,
                causal=mechanisms.get(mechanism).traits.forms[0],
            ),
            keras.layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse", jit_compile=True)
    x = random(4, 9, 8)
    history = model.fit(x, x[..., :1], epochs=1, batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="torch's own export"
)
@pytest.mark.parametrize("mechanism", ["modified_linformer", "softmax"])
def test_torch_exports_any_length(mechanism):
    import torch

    layer = LinearSelfAttention(2, 8, mechanism=mechanism)
    model = keras.Sequential([keras.Input((None, 16)), layer])
    length = torch.export.Dim("length", min=2, max=10_000)
    exported = torch.export.export(
        model,
        (torch.zeros(2, 30, 16),),
        dynamic_shapes=(({1: length},),),
        strict=False,
    ).module()
    x = keras.random.normal((2, 3000, 16), seed=0)
    expected = ops.convert_to_numpy(model(x))
    found = ops.convert_to_numpy(exported(x))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_causal_is_refused_when_the_model_is_made():
    layer = LinearSelfAttention(2, 4, mechanism="agent", causal=True)
    with pytest.raises(ValueError, match="no exact causal form"):
        keras.Sequential([keras.Input((5, 6)), layer])


def test_rank_is_refused():
    with pytest.raises(ValueError, match="at least 3: .batch, length, feat"):
        LinearSelfAttention(2, 4)(random(2, 6))


def test_scores_are_the_matrix_that_is_applied():
    x = random(2, 5, 6)
    layer = LinearSelfAttention(2, 4)
    output, scores = layer(x, return_attention_scores=True)
    np.testing.assert_array_equal(numpy(output), numpy(layer(x)))
    np.testing.assert_allclose(numpy(scores).sum(-1), 1, atol=1e-5)
    symbolic = layer(keras.Input((5, 6)), return_attention_scores=True)
    assert [s.shape for s in symbolic] == [(None, 5, 6), (None, 2, 5, 5)]
