"""Whole = pieces = token by token, through the layers."""

import keras
import numpy as np
import pytest
from helpers import predict
from keras import ops

from keras_linattn import LinearMultiHeadAttention
from keras_linattn import LinearSelfAttention
from keras_linattn.layers import LinearAttentionCell

BATCH, LENGTH = 2, 12
# The step forms of all mechanisms are in the conformance suite; here one of
# each kind: a sum, a state of two leaves, a gate, a gate and a delta.
MECHANISMS = (
    "linear_transformer",
    {"name": "cosformer", "sequence_length": 64},
    "gated_linear",
    "gated_delta",
)


def tokens(seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((BATCH, LENGTH, 6)).astype("float32")


def attention(mechanism, **options):
    return LinearSelfAttention(
        2, 4, value_dim=3, causal=True, mechanism=mechanism, **options
    )


def stepping(layer, length=None):
    """A functional model: inputs and state in, outputs and state out."""
    x = keras.Input((length, 6))
    mask = keras.Input((length,), dtype="bool")
    if not layer.built:
        layer.build((None, length, 6))
        layer.built = True
    state = keras.tree.map_structure(
        lambda leaf: keras.Input(leaf.shape[1:], dtype=leaf.dtype),
        layer.state_spec(),
    )
    outputs = layer(x, mask=mask, initial_state=state, return_state=True)
    return keras.Model([x, mask, state], outputs)


def feed(model, x, mask, state, sizes):
    """Outputs and last state of `x` fed in pieces of the given sizes."""
    outputs, start = [], 0
    for size in sizes:
        now = slice(start, start + size)
        output, state = model.predict_on_batch([x[:, now], mask[:, now], state])
        outputs.append(output)
        start += size
    return np.concatenate(outputs, axis=1), state


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_whole_is_pieces_is_token_by_token(mechanism):
    layer = attention(mechanism)
    x, mask = tokens(), np.ones((BATCH, LENGTH), bool)
    mask[0, 4:6] = False
    one = stepping(layer, 1)
    start = keras.tree.map_structure(
        ops.convert_to_numpy, layer.get_initial_state(BATCH)
    )
    shapes = [leaf.shape for leaf in keras.tree.flatten(start)]
    symbol, visible = keras.Input((None, 6)), keras.Input((None,), dtype="bool")
    whole = keras.Model([symbol, visible], layer(symbol, mask=visible))
    expected = whole.predict_on_batch([x, mask])
    for model, sizes in ((stepping(layer), (7, 5)), (one, (1,) * LENGTH)):
        got, state = feed(model, x, mask, start, sizes)
        # Hidden queries give the output projection's bias, in both.
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert [x.shape for x in keras.tree.flatten(state)] == shapes


def test_prompts_of_different_lengths():
    """After padded prompts each state is that of the prompt alone."""
    layer = attention("gated_delta")
    model = stepping(layer)
    x = tokens()
    start = ops.convert_to_numpy(layer.get_initial_state(BATCH))
    lengths = (5, LENGTH)
    for left in (False, True):
        mask = np.arange(LENGTH) < np.array(lengths)[:, None]
        mask = mask[:, ::-1] if left else mask
        _, together = feed(model, x, mask, start, (LENGTH,))
        for row, visible in enumerate(mask):
            alone = x[row : row + 1, visible]
            seen = np.ones(alone.shape[:2], bool)
            _, state = feed(model, alone, seen, start[:1], (alone.shape[1],))
            np.testing.assert_allclose(
                together[row], state[0], atol=1e-5, err_msg=f"left={left}"
            )


def test_state_is_float32_in_half_precision():
    layer = attention("retention", dtype="mixed_bfloat16")
    layer.build((None, None, 6))
    state = layer.get_initial_state(3)
    output, state = layer(ops.convert_to_tensor(tokens()), return_state=True)
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(state.dtype) == "float32"


def test_state_is_not_rounded_in_half_precision():
    """Hidden positions leave it as it is, to the last bit."""
    layer = attention("gated_delta", dtype="mixed_bfloat16")
    start = np.random.default_rng(1).standard_normal((BATCH, 2, 4, 3))
    start = start.astype("float32")
    hidden = np.zeros((BATCH, LENGTH), bool)
    _, state = feed(stepping(layer), tokens(), hidden, start, (7, 5))
    np.testing.assert_array_equal(ops.convert_to_numpy(state), start)


def test_implicit_mask_is_used_beside_a_state():
    layer = attention("retention")
    embedding = keras.layers.Embedding(9, 6, mask_zero=True)
    ids = keras.Input((None,), dtype="int32")
    state = keras.Input((2, 4, 3))
    outputs = layer(embedding(ids), initial_state=state, return_state=True)
    model = keras.Model([ids, state], outputs)
    start = np.zeros((1, 2, 4, 3), "float32")
    states = [
        model.predict_on_batch([np.array([row]), start])[1]
        for row in ([3, 4, 0, 0, 0], [3, 0, 0, 4, 0])
    ]
    np.testing.assert_allclose(states[0], states[1], atol=1e-6)
    assert np.abs(states[0]).max() > 1e-3


def test_multi_head_attention_streams():
    layer = LinearMultiHeadAttention(2, 4, mechanism="linear_transformer")
    x = ops.convert_to_tensor(tokens())
    expected = layer(x, x, use_causal_mask=True)
    options = {"use_causal_mask": True, "return_state": True}
    first, state = layer(x[:, :5], x[:, :5], **options)
    second, _ = layer(x[:, 5:], x[:, 5:], initial_state=state, **options)
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.concatenate([first, second], axis=1)),
        ops.convert_to_numpy(expected),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("options", "call", "rule"),
    [
        ({"causal": False}, {}, "causal=False"),
        ({"mechanism": "softmax"}, {}, "has no recurrent form"),
        ({}, {"return_attention_scores": True}, "without `return_att"),
        ({"attention_axes": 1}, {"rank": 4}, "rank above 3"),
    ],
)
def test_refuses_what_has_no_state(options, call, rule):
    options = {"mechanism": "linear_transformer", "causal": True, **options}
    layer = LinearSelfAttention(2, 4, **options)
    shape = (2, 3, 5, 6)[-call.pop("rank", 3) :]
    with pytest.raises(ValueError, match=rule):
        layer(np.ones(shape, "float32"), return_state=True, **call)


def test_is_a_cell_of_keras_rnn(tmp_path):
    layer = attention({"name": "cosformer", "sequence_length": 64})
    x = tokens()
    symbol = keras.Input((None, 6))
    expected = predict(keras.Model(symbol, layer(symbol)), x)
    rnn = keras.layers.RNN(LinearAttentionCell(layer), return_sequences=True)
    model = keras.Model(symbol, rnn(symbol))
    np.testing.assert_allclose(predict(model, x), expected, atol=1e-5)
    model.save(tmp_path / "rnn.keras")
    loaded = keras.saving.load_model(tmp_path / "rnn.keras")
    np.testing.assert_allclose(predict(loaded, x), expected, atol=1e-5)


def test_a_cell_refuses_what_cannot_step():
    with pytest.raises(TypeError, match="must be a `LinearSelfAttention`"):
        LinearAttentionCell(keras.layers.Dense(3))
    with pytest.raises(ValueError, match="causal=False"):
        LinearAttentionCell(LinearSelfAttention(2, 4))
    with pytest.raises(ValueError, match="no recurrent form"):
        LinearAttentionCell(attention("softmax"))
