"""`LinearMultiHeadAttention` beside `keras.layers.MultiHeadAttention`.

With mechanism="softmax" the two must agree to the last option.
"""

import inspect

import keras
import numpy as np
import pytest
from helpers import numpy

from keras_linattn import LinearMultiHeadAttention

KERAS = keras.layers.MultiHeadAttention
RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.standard_normal(shape).astype("float32")


def pair(query, value, key=None, mechanism="softmax", **options):
    """Our layer and Keras', built and with the same random weights."""
    layers = [
        LinearMultiHeadAttention(2, 4, mechanism=mechanism, **options),
        KERAS(2, 4, **options),
    ]
    for layer in layers:
        layer(query, value, key, return_attention_scores=True)
    weights = [0.5 * random(*w.shape) for w in layers[1].get_weights()]
    for layer in layers:
        layer.set_weights(weights)
    return layers


def assert_close(ours, theirs):
    np.testing.assert_allclose(numpy(ours), numpy(theirs), atol=2e-5, rtol=0)


# --- The same face


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_constructor_arguments_are_keras_own_and_mechanism():
    ours, theirs = parameters(LinearMultiHeadAttention), parameters(KERAS)
    place = len(theirs) - 1
    assert ours[: place + 1] == [*theirs[:-1], "mechanism"]


def test_call_arguments_are_keras_own():
    """In the same order, and after them our own."""
    ours = inspect.signature(LinearMultiHeadAttention.call).parameters
    theirs = inspect.signature(KERAS.call).parameters
    assert list(ours) == [
        *theirs,
        "initial_state",
        "return_state",
        "segment_ids",
    ]
    assert [p.default for p in ours.values()][: len(theirs)] == [
        p.default for p in theirs.values()
    ]


OPTIONS = (
    {},
    {"value_dim": 3},
    {"use_bias": False},
    {"use_gate": True},
    {"output_shape": 7},
    {"output_shape": (2, 3)},
    {"value_dim": 3, "use_gate": True, "output_shape": (5,)},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_variables_and_outputs_are_keras_own(options):
    x, y = random(2, 5, 6), random(2, 7, 8)
    ours, theirs = pair(x, y, **options)
    assert [v.path.split("/")[-2:] for v in ours.variables] == [
        v.path.split("/")[-2:] for v in theirs.variables
    ]
    assert [v.shape for v in ours.variables] == [
        v.shape for v in theirs.variables
    ]
    # With scores: without, Keras under JAX fails where V != D.
    expected, _ = theirs(x, y, return_attention_scores=True)
    assert_close(ours(x, y), expected)
    shape = ours.compute_output_shape(x.shape, y.shape)
    assert tuple(shape) == expected.shape
    symbolic = ours(keras.Input((5, 6)), keras.Input((7, 8)))
    assert symbolic.shape[1:] == expected.shape[1:]


def test_key_of_its_own():
    x, y, z = random(2, 5, 6), random(2, 7, 8), random(2, 7, 3)
    ours, theirs = pair(x, y, z)
    assert_close(ours(x, y, z), theirs(x, y, z))
    assert_close(ours(x, y, key=z), theirs(x, value=y, key=z))


def test_weights_go_back_to_keras():
    x = random(2, 5, 6)
    ours = LinearMultiHeadAttention(2, 4)
    theirs = KERAS(2, 4)
    ours(x, x)
    theirs(x, x)
    theirs.set_weights(ours.get_weights())
    for ours_, theirs_ in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(numpy(ours_), numpy(theirs_))


class Holder(keras.layers.Layer):
    """Weight files name sublayers by attribute."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def call(self, x):
        return self.attention(x, x)


def test_weight_file_of_keras_layer_loads(tmp_path):
    x = random(2, 5, 6)
    theirs = keras.Sequential([keras.Input((5, 6)), Holder(KERAS(2, 4))])
    ours = keras.Sequential(
        [
            keras.Input((5, 6)),
            Holder(LinearMultiHeadAttention(2, 4, mechanism="softmax")),
        ]
    )
    theirs.save_weights(tmp_path / "softmax.weights.h5")
    ours.load_weights(tmp_path / "softmax.weights.h5")
    assert_close(ours(x), theirs(x))


# --- Masks


def key_mask(batch, length):
    mask = RNG.random((batch, length)) < 0.6
    mask[:, 0] = True  # Keras averages where nothing is visible; we give 0
    return mask


@pytest.mark.parametrize("name", ["value_mask", "key_mask"])
def test_masks_of_keys(name):
    x, y = random(2, 5, 6), random(2, 7, 8)
    ours, theirs = pair(x, y)
    masks = {name: key_mask(2, 7)}
    key = y if name == "key_mask" else None
    assert_close(ours(x, y, key, **masks), theirs(x, y, key, **masks))


def test_masks_combine():
    x, y = random(2, 5, 6), random(2, 7, 8)
    ours, theirs = pair(x, y)
    visible = key_mask(2, 7)
    masks = {
        "value_mask": key_mask(2, 7),
        "key_mask": key_mask(2, 7),
        "use_causal_mask": False,
    }
    output = ours(x, y, y, attention_mask=visible[:, None], **masks)
    broadcast = np.broadcast_to(visible[:, None], (2, 5, 7))
    expected = theirs(x, y, y, attention_mask=broadcast, **masks)
    assert_close(output, expected)


@pytest.mark.parametrize("shape", [(2, 7), (2, 1, 7), (2, 1, 1, 7)], ids=str)
@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_attention_mask_on_keys_alone(shape, dtype):
    x, y = random(2, 5, 6), random(2, 7, 8)
    ours, theirs = pair(x, y)
    mask = key_mask(2, 7)
    expected = theirs(x, y, attention_mask=np.repeat(mask[:, None], 5, 1))
    output = ours(x, y, attention_mask=mask.reshape(shape).astype(dtype))
    assert_close(output, expected)


def test_query_mask_hides_rows_and_nothing_else():
    x = random(2, 5, 6)
    ours, _ = pair(x, x)
    mask = np.array([[1, 1, 0, 1, 0]] * 2, bool)
    masked = numpy(ours(x, x, query_mask=mask))
    np.testing.assert_allclose(masked[mask], numpy(ours(x, x))[mask], atol=1e-6)
    bias = numpy(ours.output_dense.bias)
    np.testing.assert_allclose(
        masked[~mask], np.broadcast_to(bias, masked[~mask].shape), atol=1e-6
    )


def test_causal_mask():
    x = random(2, 5, 6)
    ours, theirs = pair(x, x)
    assert_close(
        ours(x, x, use_causal_mask=True), theirs(x, x, use_causal_mask=True)
    )
    assert_close(
        ours(x, x, value_mask=[[1, 1, 1, 0, 0]] * 2, use_causal_mask=True),
        theirs(
            x,
            x,
            value_mask=np.array([[1, 1, 1, 0, 0]] * 2, bool),
            use_causal_mask=True,
        ),
    )


def test_implicit_masks_are_used_and_passed_on():
    tokens = np.array([[3, 4, 5, 0, 0], [3, 0, 0, 0, 0]])
    embedding = keras.layers.Embedding(9, 6, mask_zero=True)
    ours = LinearMultiHeadAttention(2, 4)
    embedded = embedding(tokens)
    output = ours(embedded, embedded)
    np.testing.assert_array_equal(
        numpy(output._keras_mask), tokens.astype(bool)
    )
    explicit = ours(
        numpy(embedded),
        numpy(embedded),
        query_mask=tokens != 0,
        value_mask=tokens != 0,
    )
    np.testing.assert_array_equal(numpy(output), numpy(explicit))
    # The caller's tensor keeps its mask: residual connections need it.
    assert embedded._keras_mask is not None


# --- Inputs of rank > 3


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 3, 4, 6), None),
        ((2, 3, 4, 6), (1,)),
        ((2, 3, 4, 6), (2,)),
        ((2, 3, 4, 6), -2),
        ((2, 3, 4, 6), (1, 2)),
        ((2, 3, 2, 4, 6), (1, 3)),
    ],
    ids=str,
)
def test_attention_axes(shape, axes):
    x = random(*shape)
    options = {"attention_axes": axes}
    if isinstance(axes, int):  # Keras would take the axis before the batch
        theirs_options = {"attention_axes": len(shape) + axes}
    else:
        theirs_options = options
    ours = LinearMultiHeadAttention(2, 4, mechanism="softmax", **options)
    theirs = KERAS(2, 4, **theirs_options)
    ours(x, x)
    theirs(x, x)
    ours.set_weights(theirs.get_weights())
    assert_close(ours(x, x), theirs(x, x))
    unknown = keras.Input(batch_shape=(None, None, *shape[2:]))
    assert ours(unknown, unknown).shape == (None, None, *shape[2:])


def test_attention_axes_attend_row_by_row():
    """Each row of an image alone gives what the image gives at once."""
    x = random(2, 3, 4, 6)
    mask = RNG.random((2, 3, 4)) < 0.7
    layer = LinearMultiHeadAttention(2, 4, attention_axes=2)
    whole = numpy(layer(x, x, query_mask=mask, value_mask=mask))
    plain = LinearMultiHeadAttention(2, 4)
    plain(x[:, 0], x[:, 0])
    plain.set_weights(layer.get_weights())
    for row in range(3):
        one = {"query_mask": mask[:, row], "value_mask": mask[:, row]}
        alone = plain(x[:, row], x[:, row], **one)
        np.testing.assert_allclose(whole[:, row], numpy(alone), atol=1e-5)


# --- Keras' sliding window


@pytest.mark.parametrize("causal", [False, True])
def test_sliding_window_is_that_of_keras(causal, tmp_path):
    """With all masks, holes in them too, and after a round trip."""
    x = random(2, 9, 6)
    mask = RNG.random((2, 9)) < 0.6
    call = {
        "query_mask": np.arange(9) < np.array([[9], [7]]),
        "value_mask": mask,
        "attention_mask": (RNG.random((2, 1, 9)) < 0.8),
        "use_causal_mask": causal,
    }
    ours = LinearMultiHeadAttention(2, 4, mechanism="softmax", sliding_window=3)
    theirs = KERAS(2, 4, sliding_window=3)
    ours(x, x)
    theirs(x, x)
    ours.set_weights(theirs.get_weights())
    revived = LinearMultiHeadAttention.from_config(ours.get_config())
    revived(x, x)
    revived.set_weights(theirs.get_weights())
    # Keras gives a row that sees nothing the mean of all values; ours is 0.
    near = np.abs(np.arange(9)[:, None] - np.arange(9)) < 3
    near = np.tril(near) if causal else near
    keys = mask[:, None] & call["attention_mask"]
    sees = (near & keys).any(axis=-1) & call["query_mask"]
    expected = numpy(theirs(x, x, **call))
    for layer in (ours, revived):
        assert layer.get_config()["sliding_window"] == 3
        output = numpy(layer(x, x, **call))
        np.testing.assert_allclose(output[sees], expected[sees], atol=1e-5)


# --- Options that act in training


def test_regularizers_constraints_and_initializers():
    x = random(2, 5, 6)
    options = {
        "kernel_initializer": keras.initializers.RandomNormal(seed=3),
        "bias_initializer": "ones",
        "kernel_regularizer": keras.regularizers.L2(0.1),
        "bias_regularizer": keras.regularizers.L1(0.1),
        "activity_regularizer": keras.regularizers.L2(0.1),
        "kernel_constraint": keras.constraints.NonNeg(),
        "bias_constraint": keras.constraints.MaxNorm(2.0),
    }
    ours, theirs = pair(x, x, **options)
    ours(x, x)
    theirs(x, x)
    assert len(ours.losses) == len(theirs.losses)
    assert_close(ours.losses, theirs.losses)
    for mine, other in zip(ours.variables, theirs.variables, strict=True):
        assert type(mine.constraint) is type(other.constraint)
    fresh = LinearMultiHeadAttention(2, 4, **options)
    fresh(x, x)
    np.testing.assert_array_equal(numpy(fresh.query_dense.bias), 1)


def test_dropout_is_active_in_training_alone_and_seeded():
    x = random(2, 50, 6)

    def make():
        keras.utils.set_random_seed(1)
        layer = LinearMultiHeadAttention(2, 4, dropout=0.5, seed=4)
        layer.build(x.shape, x.shape)
        return layer

    first, second = make(), make()
    still = numpy(first(x, x))
    np.testing.assert_array_equal(still, numpy(first(x, x, training=False)))
    dropped = numpy(first(x, x, training=True))
    assert np.abs(dropped - still).max() > 1e-3
    np.testing.assert_array_equal(dropped, numpy(second(x, x, training=True)))


def test_scores():
    x, y = random(2, 5, 6), random(2, 7, 8)
    ours, theirs = pair(x, y)
    mask = key_mask(2, 7)
    output, scores = ours(x, y, value_mask=mask, return_attention_scores=True)
    expected = theirs(x, y, value_mask=mask, return_attention_scores=True)
    assert_close(output, expected[0])
    assert_close(scores, expected[1])
    symbolic = ours(
        keras.Input((5, 6)), keras.Input((7, 8)), return_attention_scores=True
    )
    assert [s.shape for s in symbolic] == [(None, 5, 6), (None, 2, 5, 7)]


# --- What is refused


def refuse(message, **options):
    with pytest.raises(ValueError, match=message):
        LinearMultiHeadAttention(**{"num_heads": 2, "key_dim": 4, **options})


def test_refuses_constructor_arguments():
    refuse("`num_heads` must be a positive.*num_heads=0", num_heads=0)
    refuse("`num_heads` must be a positive.*num_heads=2.5", num_heads=2.5)
    refuse("`key_dim` must be a positive.*key_dim=-1", key_dim=-1)
    refuse("`value_dim` must be a positive.*value_dim=0", value_dim=0)
    refuse("`dropout` must be.*dropout=1", dropout=1)
    refuse("`output_shape` must.*'wide'", output_shape="wide")
    rule = "sliding_window=4 with the mechanism `ModifiedLinformer`. Pass"
    refuse(rule, sliding_window=4)
    refuse("a positive integer", sliding_window=0, mechanism="softmax")
    refuse("flash_attention=True. Leave it out, or use", flash_attention=True)
    refuse(
        "Unknown mechanism 'sotfmax'. Did you mean 'softmax'",
        mechanism="sotfmax",
    )
    with pytest.raises(TypeError, match="Received: 7 of type int"):
        LinearMultiHeadAttention(2, 4, mechanism=7)
    LinearMultiHeadAttention(2, 4, flash_attention=False)


@pytest.mark.parametrize("symbolic", [False, True])
def test_refuses_call_arguments(symbolic):
    def make(*shape, dtype="float32"):
        if symbolic:
            return keras.Input(batch_shape=shape, dtype=dtype)
        return np.ones(shape, dtype)

    def refuse_call(message, *shapes, mechanism="nystromformer", **kwargs):
        layer = LinearMultiHeadAttention(2, 4, mechanism=mechanism)
        with pytest.raises(ValueError, match=message):
            layer(*(make(*shape) for shape in shapes), **kwargs)

    x = (2, 5, 6)
    refuse_call(r"one rank, at least 3.*query shape \(2, 6\)", (2, 6), (2, 6))
    refuse_call("same length", x, x, (2, 4, 6))
    refuse_call(
        r"must not depend on the query.*shape \(2, 5, 5\).*Pass `value_mask=`",
        x,
        x,
        attention_mask=make(2, 5, 5, dtype="bool"),
    )
    refuse_call(
        "no exact causal form.*Use a mechanism with the trait `causal`",
        x,
        x,
        use_causal_mask=True,
    )
    refuse_call(
        "Causal attention needs queries and keys of the same length",
        x,
        (2, 7, 6),
        mechanism="linear_transformer",
        use_causal_mask=True,
    )


def test_refuses_masks_of_another_shape():
    layer = LinearMultiHeadAttention(2, 4)
    x = random(2, 5, 6)
    with pytest.raises(ValueError, match=r"shape \(2, 4\), expected \(2, 5\)"):
        layer(x, x, value_mask=np.ones((2, 4), bool))
    with pytest.raises(ValueError, match=r"query_mask of shape \(2, 4\)"):
        layer(x, x, query_mask=np.ones((2, 4), bool))
    image = random(2, 3, 4, 6)
    with pytest.raises(ValueError, match=r"shape \(2, 12\).*\(2, 3, 4\)"):
        layer = LinearMultiHeadAttention(2, 4)
        layer(image, image, attention_mask=np.ones((2, 12), bool))


def test_refuses_attention_axes_that_are_not_there():
    layer = LinearMultiHeadAttention(2, 4, attention_axes=3)
    with pytest.raises(ValueError, match=r"attention_axes=\(3,\)"):
        layer(random(2, 3, 4, 6), random(2, 3, 4, 6))


def test_refuses_an_input_longer_than_linformer_was_built_for():
    layer = LinearMultiHeadAttention(2, 4, mechanism="linformer")
    layer(random(2, 5, 6), random(2, 5, 6))
    with pytest.raises(ValueError, match="was built for, 5. Received: query"):
        layer(random(2, 6, 6), random(2, 6, 6))
    with pytest.raises(ValueError, match="must know the longest input"):
        layer = LinearMultiHeadAttention(2, 4, mechanism="linformer")
        layer(keras.Input((None, 6)), keras.Input((None, 6)))
