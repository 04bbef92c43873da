"""Decoder blocks beside `keras_hub`'s, whole and in pieces."""

import inspect

import keras
import numpy as np
import pytest
from helpers import numpy
from helpers import predict
from helpers import random
from helpers import slow_to_compile
from keras import ops

from keras_linattn import LinearTransformerDecoder
from keras_linattn.layers import CausalConvolution
from keras_linattn.layers import LinearTransformerDecoderGroup
from keras_linattn.testing._backends import quick

LENGTH = 9
PIECES = {"pieces": (4, 1, 4), "tokens": (1,) * LENGTH}


def randomise(layer):
    """Weights that leave nothing at its first value, such as zero biases."""
    weights = layer.get_weights()
    layer.set_weights(
        [0.5 * random(*w.shape, seed=i) for i, w in enumerate(weights)]
    )


@pytest.fixture(scope="module")
def hub_decoder():
    keras_hub = pytest.importorskip("keras_hub")
    return keras_hub.layers.TransformerDecoder


def test_arguments_are_keras_hubs(hub_decoder):
    def names(function):
        return list(inspect.signature(function).parameters)

    ours, theirs = names(LinearTransformerDecoder), names(hub_decoder)
    assert ours[:-5] == [*theirs[:-1], "mechanism", "cross_mechanism"]
    ours, theirs = names(LinearTransformerDecoder.call), names(hub_decoder.call)
    ids = ["decoder_segment_ids", "encoder_segment_ids"]
    masks = ["decoder_sequence_mask", "encoder_sequence_mask", "mask"]
    assert ours == [*theirs, *ids, *masks]


@pytest.mark.parametrize("normalize_first", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_softmax_block_is_keras_hubs(hub_decoder, normalize_first, cross):
    options = {"normalize_first": normalize_first, "activation": "gelu"}
    softmax = {"mechanism": "softmax", "cross_mechanism": "softmax"}
    ours = LinearTransformerDecoder(12, 2, **softmax, **options)
    theirs = hub_decoder(12, 2, **options)
    inputs = [random(2, 5, 8)] + [random(2, 4, 8, seed=1)] * cross
    ours.build(*(x.shape for x in inputs))
    theirs.build(*(x.shape for x in inputs))
    weights = [0.3 * random(*w.shape) for w in theirs.get_weights()]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    masks = {"decoder_padding_mask": mask}
    if cross:
        masks["encoder_padding_mask"] = np.array([[1, 1, 0, 0], [1] * 4], bool)
    output = quick(lambda *x: ours(*x, **masks), inputs)
    expected = quick(lambda *x: theirs(*x, **masks), inputs)
    np.testing.assert_allclose(output[mask], expected[mask], atol=1e-5)


def in_pieces(layer, sizes, encoded=None):
    """A function of the sequence and its mask, fed by the sizes."""

    def function(x, mask):
        state = layer.get_initial_state(x.shape[0])
        options = {}
        if encoded is not None:
            cross = layer.get_initial_cross_state(x.shape[0])
            options = {
                "encoder_sequence": ops.convert_to_tensor(encoded),
                "cross_attention_cache": cross,
                "cross_attention_cache_update_index": 0,
            }
        outputs, start = [], 0
        for size in sizes:
            now = slice(start, start + size)
            output, state, *cross = layer(
                x[:, now],
                decoder_padding_mask=mask[:, now],
                self_attention_cache=state,
                **options,
            )
            if cross:  # made once, then read
                options["cross_attention_cache"] = cross[0]
                options["cross_attention_cache_update_index"] = None
            outputs.append(output)
            start += size
        return ops.concatenate(outputs, axis=1)

    return function


def blocks():
    options = {"normalize_first": True}
    yield "plain", LinearTransformerDecoder(12, 2, **options)
    yield "cross", LinearTransformerDecoder(12, 2, **options)
    options["mechanism"] = "linear_transformer"
    yield "group", LinearTransformerDecoderGroup(3, 12, 2, **options)
    yield "gated group", LinearTransformerDecoderGroup(2, 12, 2)


@pytest.mark.parametrize("kind", ["plain", "cross", "group", "gated group"])
def test_whole_is_pieces_is_token_by_token(kind):
    layer = dict(blocks())[kind]
    x, mask = random(2, LENGTH, 8), np.ones((2, LENGTH), bool)
    mask[0, 6:] = False
    encoded = [random(2, 5, 8, seed=1)] if kind == "cross" else []
    layer.build(*(x.shape for x in (x, *encoded)))
    layer.built = True
    randomise(layer)
    whole = quick(
        lambda x, m: layer(x, *encoded, decoder_padding_mask=m), (x, mask)
    )
    future = np.concatenate([x[:, :5], 3 * x[:, 5:]], axis=1)
    future = quick(
        lambda x, m: layer(x, *encoded, decoder_padding_mask=m), (future, mask)
    )
    np.testing.assert_array_equal(future[:, :5], whole[:, :5])
    assert np.abs(future[1, 5:] - whole[1, 5:]).max() > 1e-2
    for sizes in PIECES.values():
        output = quick(in_pieces(layer, sizes, *encoded), (x, mask))
        np.testing.assert_allclose(output[mask], whole[mask], atol=1e-5)


def test_group_reads_the_first_blocks_keys_with_queries_of_its_own():
    options = {"mechanism": "softmax", "normalize_first": True}
    group = LinearTransformerDecoderGroup(2, 12, 2, **options)
    x = random(2, 5, 8)
    group.build(x.shape)
    group.built = True
    randomise(group)
    first, second = group.blocks
    theirs = keras.layers.MultiHeadAttention(2, 4)
    theirs.build(x.shape, x.shape)
    own = second._self_attention_layer.get_weights()
    shared = first._self_attention_layer.get_weights()
    theirs.set_weights([*own[:2], *shared[2:6], *own[2:]])

    def expected(x):
        keys = first._self_attention_layer_norm(x)
        x = first(x)
        queries = second._self_attention_layer_norm(x)
        x = x + theirs(queries, keys, use_causal_mask=True)
        return second._feed_forward(x, training=False)

    np.testing.assert_allclose(
        quick(group, [x]), quick(expected, [x]), atol=1e-5
    )


def test_group_saves_states_and_projections():
    group = LinearTransformerDecoderGroup(3, 12, 2, mechanism="performer")
    alone = LinearTransformerDecoder(12, 2, mechanism="performer")
    for layer in (group, alone):
        layer.build((None, 5, 8))
        layer.built = True
    sizes = [
        sum(ops.size(x) for x in keras.tree.flatten(x.get_initial_state(4)))
        for x in (group, alone)
    ]
    assert sizes[0] == sizes[1] > 0
    own = sum(w.size for w in alone.mechanism.get_weights())
    projections = 2 * (8 * 8 + 8)  # keys and values, with biases
    expected = 3 * (alone.count_params() - own) - 2 * projections + own
    assert group.count_params() == expected


@pytest.mark.parametrize("kind", ["padding", "attention", "implicit"])
def test_masks(kind):
    layer = LinearTransformerDecoder(12, 2)
    sequences = random(2, 7, 8), random(2, 7, 6, seed=1)
    layer.build(*(x.shape for x in sequences))
    layer.built = True
    mask = np.arange(7) < np.array([[4], [4]])
    for x in sequences:
        x[:, 4:] = 7.0

    def masked(x, encoded):
        if kind == "implicit":
            hide = keras.layers.Masking(7.0)
            return layer(hide(x), hide(encoded))
        keys = mask if kind == "padding" else mask[:, None]
        options = {
            f"{name}_{kind}_mask": keys for name in ("decoder", "encoder")
        }
        return layer(x, encoded, **options)

    short = quick(layer, [x[:, :4] for x in sequences])
    output = quick(masked, sequences)
    np.testing.assert_allclose(output[:, :4], short, atol=1e-5)


def test_saves_with_two_sequences_and_with_states(tmp_path):
    x, encoded = keras.Input((None, 8)), keras.Input((None, 6))
    block = LinearTransformerDecoder(
        12, 2, cross_mechanism="performer", dtype="mixed_bfloat16"
    )
    block.build(x.shape, encoded.shape)
    block.built = True
    state = keras.tree.map_structure(
        lambda leaf: keras.Input(leaf.shape[1:], dtype=leaf.dtype),
        (block.get_initial_state(1), block.get_initial_cross_state(1)),
    )
    outputs = block(
        x,
        encoded,
        self_attention_cache=state[0],
        cross_attention_cache=state[1],
        cross_attention_cache_update_index=0,
    )
    inputs = [x, encoded, *keras.tree.flatten(state)]
    model = keras.Model(inputs, keras.tree.flatten(outputs))
    assert {leaf.dtype for leaf in model.outputs[1:]} == {"float32"}
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    arrays = [random(2, 3, *leaf.shape[2:]) for leaf in inputs[:2]]
    arrays += [np.zeros((2, *leaf.shape[1:]), "float32") for leaf in inputs[2:]]
    output = model.predict_on_batch(arrays)
    for one, other in zip(output, loaded.predict_on_batch(arrays), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cls", ["decoder", "group", "convolution"])
def test_half_precision_leaves_states_exact(cls):
    """Sums that are no bfloat16 pass a step that has nothing to add."""
    options = {"dtype": "mixed_bfloat16"}
    kernel = {"mechanism": "linear_transformer", **options}
    layer = {
        "decoder": lambda: LinearTransformerDecoder(12, 2, **kernel),
        "group": lambda: LinearTransformerDecoderGroup(2, 12, 2, **kernel),
        "convolution": lambda: CausalConvolution(**options),
    }[cls]()
    x, hidden = random(2, 3, 8), np.zeros((2, 3), bool)
    layer.build(x.shape)
    layer.built = True
    state = layer.get_initial_state(2)
    given = (1 + 2**-12) * np.ones(state.shape, "float32")
    if cls == "convolution":  # its state is inputs, which are bfloat16
        given = np.full(state.shape, 1.5, "float32")
        options = {"initial_state": given, "return_state": True}
        output, state = layer(x, mask=hidden, **options)
    else:
        options = {"self_attention_cache": given}
        output, state = layer(x, decoder_padding_mask=hidden, **options)
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(state.dtype) == "float32"
    np.testing.assert_array_equal(numpy(state), given)


@slow_to_compile
def test_dropout_is_active_in_training_alone():
    for layer in (
        LinearTransformerDecoder(12, 2, dropout=0.5),
        LinearTransformerDecoderGroup(2, 12, 2, dropout=0.5),
    ):
        x = random(2, 5, 8)
        still = numpy(layer(x))
        np.testing.assert_array_equal(numpy(layer(x, training=False)), still)
        assert np.abs(numpy(layer(x, training=True)) - still).max() > 1e-2


def test_refuses_other_calls_than_it_was_built_for():
    x = random(2, 5, 8)
    options = {"cross_mechanism": "nystromformer"}
    alone, pair = (LinearTransformerDecoder(12, 2, **options) for _ in range(2))
    alone.build(x.shape)
    alone.built = True
    with pytest.raises(ValueError, match=r"for, 1. Received: .* \(2, 5, 8\)"):
        alone(x, x)
    pair.build(x.shape, x.shape)
    pair.built = True
    with pytest.raises(ValueError, match="for, 2. Received: .* of None"):
        pair(x)
    state = pair.get_initial_state(2)
    with pytest.raises(ValueError, match="pass both caches or none"):
        pair(x, x, self_attention_cache=state)
    caches = {"self_attention_cache": state, "cross_attention_cache": x}
    with pytest.raises(ValueError, match="`Nystromformer`. Leave both"):
        pair(x, x, **caches)


@pytest.mark.parametrize("symbolic", [False, True])
def test_refuses_caches_that_would_be_ignored(symbolic):
    layer = LinearTransformerDecoder(12, 2, mechanism="linear_transformer")
    layer.build((2, 5, 8))
    x, cache = random(2, 5, 8), layer.get_initial_state(2)
    if symbolic:
        x, cache = keras.tree.map_structure(
            lambda a: keras.KerasTensor(tuple(a.shape)), (x, cache)
        )
    caches = {"self_attention_cache": cache}
    with pytest.raises(ValueError, match="use_causal_mask=False. Leave the"):
        layer(x, use_causal_mask=False, **caches)
    with pytest.raises(ValueError, match="needs an `encoder_sequence`"):
        layer(x, cross_attention_cache=cache, **caches)


@pytest.mark.parametrize("symbolic", [False, True])
def test_refuses_what_attention_refuses(symbolic):
    x = keras.Input((5, 8)) if symbolic else random(2, 5, 8)
    pairs = (
        keras.Input((5, 5), dtype="bool") if symbolic else np.ones((2, 5, 5))
    )
    layer = LinearTransformerDecoder(12, 2, mechanism="linear_transformer")
    with pytest.raises(ValueError, match="must not depend on the query"):
        layer(x, decoder_attention_mask=pairs)
    for cls in (
        LinearTransformerDecoder,
        lambda *args, **kwargs: LinearTransformerDecoderGroup(
            2, *args, **kwargs
        ),
    ):
        with pytest.raises(ValueError, match="no exact causal form"):
            cls(12, 2, mechanism="linformer")(x)
    with pytest.raises(ValueError, match="`num_heads` must be a positive"):
        LinearTransformerDecoder(12, 9)(x)


# --- The short convolution before the blocks


def test_convolution_is_its_formula_whole_and_in_pieces():
    layer = CausalConvolution(kernel_size=3, activation="tanh")
    x = random(2, 6, 4)
    layer.build(x.shape)
    layer.built = True
    randomise(layer)
    kernel, bias = layer.get_weights()
    padded = np.pad(x, [(0, 0), (2, 0), (0, 0)])
    expected = bias
    for shift in range(3):
        expected = expected + padded[:, 2 - shift : 8 - shift] * kernel[shift]
    expected = x + np.tanh(expected)

    def pieces(x):
        first, state = layer(x[:, :1], return_state=True)
        second, _ = layer(x[:, 1:], initial_state=state, return_state=True)
        return ops.concatenate([first, second], axis=1)

    np.testing.assert_allclose(quick(layer, [x]), expected, atol=1e-6)
    np.testing.assert_allclose(quick(pieces, [x]), expected, atol=1e-6)


def test_convolution_goes_on_from_the_last_visible_position():
    layer = CausalConvolution(kernel_size=3)
    x = random(1, 6, 4)
    layer.build(x.shape)
    layer.built = True
    randomise(layer)
    padded = np.concatenate([x[:, :3], np.full((1, 2, 4), np.nan)], axis=1)
    padded = padded.astype("float32")
    mask = np.array([[True] * 3 + [False] * 2])

    def after_padding(padded, rest):
        _, state = layer(padded, mask=mask, return_state=True)
        return layer(rest, initial_state=state)

    np.testing.assert_allclose(
        quick(after_padding, [padded, x[:, 3:]]),
        quick(layer, [x])[:, 3:],
        atol=1e-6,
    )


def test_convolution_takes_keras_masks():
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
    x = CausalConvolution()(x)
    assert x._keras_mask is not None
    tokens = np.array([[3, 5, 2]])
    model = keras.Model(inputs, x)
    np.testing.assert_allclose(
        predict(model, np.pad(tokens, [(0, 0), (0, 2)]))[:, :3],
        predict(model, tokens),
        atol=1e-6,
    )


@pytest.mark.parametrize("kernel_size", [1, 2.0])
def test_convolution_refuses(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size={kernel_size}"):
        CausalConvolution(kernel_size)
