"""Grouped heads, short convolutions, norms, rotary positions, gates."""

import keras
import numpy as np
import pytest
from helpers import SEGMENT_IDS
from helpers import alone
from helpers import assert_same_documents
from helpers import documents
from helpers import random
from helpers import slow_to_compile
from keras import ops

from keras_linattn import LinearMultiHeadAttention
from keras_linattn import LinearSelfAttention
from keras_linattn.layers import LinearAttentionCell
from keras_linattn.testing._backends import compile_where_slow
from keras_linattn.testing._backends import gradients
from keras_linattn.testing._backends import quick

LENGTH = 7
X = np.random.default_rng(0).standard_normal((2, LENGTH, 6)).astype("float32")
QUERIES_OF_KEYS = {
    "num_heads": 4,
    "key_dim": 4,
    "num_key_value_heads": 2,
    "kernel_size": 3,
    "qk_norm": True,
    "rope_max_wavelength": 100,
    "partial_rotary_factor": 0.5,
    "use_gate": True,
    "mechanism": "linear_transformer",
}
VALUES_OF_KEYS = {
    "num_heads": 4,
    "key_dim": 4,
    "value_dim": 3,
    "num_query_key_heads": 2,
    "kernel_size": 4,
    "rope_max_wavelength": 100,
    "output_norm": True,
    "use_gate": True,
    "gate_activation": "silu",
    "use_bias": False,
    "mechanism": {"name": "gated_delta", "activation": None},
}
PARTS = ("key_convolution", "mechanism", "position", "query_convolution")


def attention(options, **more):
    layer = LinearSelfAttention(**{**options, "causal": True, **more})
    layer.build((None, None, 6))
    layer.built = True
    return layer


def pieces(layer, sizes, x=X, **options):
    """Outputs of `x` in pieces, and the last state; `options` of all `x`."""

    def function(x):
        state = layer.get_initial_state(x.shape[0])
        outputs, start = [], 0
        for size in sizes:
            now = slice(start, start + size)
            output, state = layer(
                x[:, now],
                initial_state=state,
                return_state=True,
                **{name: v[:, now] for name, v in options.items()},
            )
            outputs.append(output)
            start += size
        return ops.concatenate(outputs, axis=1), state

    return results(function, x)


def results(function, x):
    """A tree of NumPy arrays."""
    function = compile_where_slow(function)
    return keras.tree.map_structure(
        ops.convert_to_numpy, function(ops.convert_to_tensor(x))
    )


def assert_same(found, expected, atol=1e-5):
    keras.tree.map_structure(
        lambda x, y: np.testing.assert_allclose(
            ops.convert_to_numpy(x), ops.convert_to_numpy(y), atol=atol
        ),
        found,
        expected,
    )


@slow_to_compile
@pytest.mark.parametrize("options", [QUERIES_OF_KEYS, VALUES_OF_KEYS])
def test_whole_is_pieces_is_token_by_token(options):
    layer = attention(options)
    output, state = pieces(layer, (LENGTH,))
    assert sorted(state) == sorted((*PARTS, "value_convolution"))
    assert_same(quick(layer, [X]), output)
    for sizes in ((4, 3), (1,) * LENGTH):
        assert_same(pieces(layer, sizes), (output, state))
    spec = layer.state_spec()
    for name, leaf in layer.get_initial_state(2).items():
        assert leaf.shape[1:] == spec[name].shape[1:]
        dtypes = [keras.backend.standardize_dtype(leaf.dtype)]
        dtypes.append(keras.backend.standardize_dtype(state[name].dtype))
        assert dtypes == [spec[name].dtype] * 2


@pytest.mark.parametrize("options", [QUERIES_OF_KEYS, VALUES_OF_KEYS])
@pytest.mark.parametrize("left", [False, True])
def test_padding_at_either_end_is_exact(options, left):
    """Outputs and states, of the whole and of pieces; NaN is not seen."""
    layer = attention(options)
    visible = np.arange(LENGTH) < np.array([[5], [LENGTH]])
    visible = visible[:, ::-1] if left else visible
    x = np.where(visible[..., None], X, np.nan).astype("float32")
    mask = ops.convert_to_tensor(visible)
    whole, _ = results(lambda x: layer(x, mask=mask, return_state=True), x)
    # A first piece that is hidden altogether, and a token that is, too.
    output, state = pieces(layer, (2, 1, 4), x, mask=mask)
    for row, seen in enumerate(visible):
        alone, last = pieces(layer, (seen.sum(),), X[row : row + 1, seen])
        assert_same(ops.convert_to_numpy(whole)[row, seen], alone[0])
        assert_same(ops.convert_to_numpy(output)[row, seen], alone[0])
        for name, leaf in last.items():
            assert_same(state[name][row], leaf[0])


@pytest.mark.parametrize(
    "mechanism", [None, {"name": "softmax", "cache_length": 11}]
)
@pytest.mark.parametrize("options", [VALUES_OF_KEYS, QUERIES_OF_KEYS])
def test_packed_documents_are_those_of_each_alone(options, mechanism):
    """Outputs, last states, and gradients of the input and the weights."""
    mechanism = mechanism or options["mechanism"]
    layer = attention(options, mechanism=mechanism)
    x = random(*SEGMENT_IDS.shape, 6)
    rows, visible = alone(x), alone(SEGMENT_IDS) > 0
    cotangent = random(*SEGMENT_IDS.shape, 6, seed=1)

    def packed(x):
        ids = ops.convert_to_tensor(SEGMENT_IDS)
        return layer(x, segment_ids=ids, return_state=True)

    def separate(x):
        mask = ops.convert_to_tensor(visible)
        return layer(x, mask=mask, return_state=True)

    together, state = results(packed, x)
    apart, states = results(separate, rows)
    assert_same_documents(together, apart, atol=1e-5)
    # By row, the number of its last document.
    last = {row: number for number, (row, _) in enumerate(documents())}
    for row, document in last.items():
        found = keras.tree.map_structure(lambda leaf: leaf[row], state)
        own = keras.tree.map_structure(lambda leaf: leaf[document], states)
        assert_same(found, own)

    def gradients_of(function, x, cotangent, seen):
        weight = np.where(seen[..., None], cotangent, 0)
        return gradients(
            lambda x: ops.sum(function(x)[0] * ops.array(weight)),
            [x],
            layer.trainable_variables,
        )

    by_x, by_weights = gradients_of(packed, x, cotangent, SEGMENT_IDS > 0)
    of_rows, expected = gradients_of(separate, rows, alone(cotangent), visible)
    assert_same_documents(by_x[0], of_rows[0], atol=1e-5)
    for one, other in zip(by_weights, expected, strict=True):
        assert_same(one, other, atol=2e-5)


def test_grouped_heads_are_repeated_heads():
    """As in Keras' layer for grouped queries, by its weights."""
    theirs = keras.layers.GroupQueryAttention(
        head_dim=4, num_query_heads=4, num_key_value_heads=2
    )
    ours = LinearMultiHeadAttention(
        4, 4, num_key_value_heads=2, mechanism="softmax"
    )
    x = ops.convert_to_tensor(X)
    expected = theirs(x, x)
    ours(x, x)
    ours.set_weights(theirs.get_weights())
    assert_same(ours(x, x), expected)
    assert_same(
        ours(x, x, use_causal_mask=True), theirs(x, x, use_causal_mask=True)
    )


@slow_to_compile
def test_bidirectional_and_cross_attention_have_the_options():
    """Padding of queries and of keys changes nothing."""
    layer = LinearMultiHeadAttention(**QUERIES_OF_KEYS)
    x, y = X[:1, :3], X[1:, :5]
    expected = layer(ops.convert_to_tensor(x), ops.convert_to_tensor(y))
    padded = np.pad(x, [(0, 0), (2, 0), (0, 0)])
    longer = np.pad(y, [(0, 0), (0, 1), (0, 0)])
    found = layer(
        ops.convert_to_tensor(padded),
        ops.convert_to_tensor(longer),
        query_mask=ops.convert_to_tensor(np.arange(5)[None] > 1),
        value_mask=ops.convert_to_tensor(np.arange(6)[None] < 5),
    )
    assert_same(found[:, 2:], expected)


def test_states_are_exact_in_half_precision():
    layer = attention(VALUES_OF_KEYS, dtype="mixed_bfloat16")
    output, state = pieces(layer, (4, 3))
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16"
    dtypes = {
        k: keras.backend.standardize_dtype(v.dtype) for k, v in state.items()
    }
    assert dtypes.pop("position") == "int32"
    assert set(dtypes.values()) == {"float32"}
    exact = attention(VALUES_OF_KEYS)
    exact.set_weights(layer.get_weights())
    output = ops.convert_to_numpy(ops.cast(output, "float32"))
    assert_same(output, quick(exact, [X]), atol=0.1)


def test_is_a_cell_of_keras_rnn():
    layer = attention(QUERIES_OF_KEYS)
    rnn = keras.layers.RNN(LinearAttentionCell(layer), return_sequences=True)
    assert_same(quick(rnn, [X]), quick(layer, [X]))


@slow_to_compile
def test_saves(tmp_path):
    symbol = keras.Input((None, 6))
    layer = LinearSelfAttention(**VALUES_OF_KEYS, causal=True)
    model = keras.Model(symbol, layer(symbol))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same(loaded(X), model(X), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"num_key_value_heads": 3}, "must divide `num_heads`"),
        ({"num_query_key_heads": 8}, "must divide `num_heads`"),
        ({"num_key_value_heads": 0}, "must be a positive integer"),
        (
            {"num_key_value_heads": 2, "num_query_key_heads": 2},
            "Received: both",
        ),
        ({"kernel_size": 1}, "`kernel_size` must be an integer above 1"),
        ({"rope_max_wavelength": 1}, "must be a number above 1"),
        ({"rope_scaling_factor": 0}, "must be a number above 0"),
        (
            {"rope_max_wavelength": 9, "partial_rotary_factor": 0.75},
            "an even number of features",
        ),
    ],
)
def test_refuses(options, rule):
    with pytest.raises(ValueError, match=rule):
        LinearMultiHeadAttention(4, 4, **options)


def test_refuses_what_has_no_order():
    layer = LinearMultiHeadAttention(2, 4, kernel_size=3)
    with pytest.raises(ValueError, match="inputs \\(batch, length, features"):
        layer(X[None], X[None])
    layer(X, X)
    with pytest.raises(ValueError, match="do not know positions"):
        layer.summarize(X)
