"""`LinearTransformerEncoder` beside `keras_hub.layers.TransformerEncoder`."""

import inspect

import keras
import numpy as np
import pytest
from helpers import numpy
from helpers import random
from helpers import slow_to_compile
from keras import ops

from keras_linattn import LinearTransformerEncoder
from keras_linattn.testing import timing


@pytest.fixture(scope="module")
def hub_encoder():
    keras_hub = pytest.importorskip("keras_hub")
    return keras_hub.layers.TransformerEncoder


def test_arguments_are_keras_hubs(hub_encoder):
    def names(function):
        return list(inspect.signature(function).parameters)

    # Not of the classes: some Pythons look at `Layer.__new__` then.
    ours, theirs = (
        names(cls.__init__) for cls in (LinearTransformerEncoder, hub_encoder)
    )
    assert ours[:-5] == [*theirs[:-1], "mechanism", "remat"]
    theirs = names(hub_encoder.call)
    own = ["segment_ids", "mask", "inputs_mask"]
    assert names(LinearTransformerEncoder.call) == [*theirs, *own]


@pytest.mark.parametrize("normalize_first", [False, True])
def test_softmax_block_is_keras_hubs(hub_encoder, normalize_first):
    options = {"normalize_first": normalize_first, "activation": "gelu"}
    ours = LinearTransformerEncoder(12, 2, mechanism="softmax", **options)
    theirs = hub_encoder(12, 2, **options)
    x = random(2, 5, 8)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    ours(x)
    theirs(x)
    weights = [0.3 * random(*w.shape) for w in theirs.get_weights()]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    output = numpy(ours(x, padding_mask=mask))
    expected = numpy(theirs(x, padding_mask=mask))
    np.testing.assert_allclose(output[mask], expected[mask], atol=1e-5)
    output, scores = ours(x, return_attention_scores=True)
    expected = theirs(x, return_attention_scores=True)
    np.testing.assert_allclose(numpy(output), numpy(expected[0]), atol=1e-5)
    np.testing.assert_allclose(numpy(scores), numpy(expected[1]), atol=1e-5)


@pytest.mark.parametrize("kind", ["padding", "attention", "implicit"])
def test_masks(kind):
    layer = LinearTransformerEncoder(12, 2)
    x = random(2, 7, 8)
    short = numpy(layer(x[:, :4]))
    mask = np.arange(7) < np.array([[4], [4]])
    if kind == "padding":
        output = layer(x, padding_mask=mask)
    elif kind == "attention":
        output = layer(x, attention_mask=mask[:, None])
    else:
        masked = keras.layers.Masking(7.0)
        x[:, 4:] = 7.0
        output = layer(masked(x))
        np.testing.assert_array_equal(numpy(output._keras_mask), mask)
    np.testing.assert_allclose(numpy(output)[:, :4], short, atol=1e-5)


def test_dropout_is_active_in_training_alone():
    layer = LinearTransformerEncoder(12, 2, dropout=0.5)
    x = random(2, 5, 8)
    still = numpy(layer(x))
    np.testing.assert_array_equal(numpy(layer(x, training=False)), still)
    assert np.abs(numpy(layer(x, training=True)) - still).max() > 1e-2


@pytest.mark.parametrize("num_heads", [0, 9, 1.5])
def test_refuses_num_heads(num_heads):
    layer = LinearTransformerEncoder(12, num_heads)
    with pytest.raises(ValueError, match=f"num_heads={num_heads}"):
        layer(random(2, 5, 8))


def test_refuses_a_mask_that_depends_on_the_query():
    layer = LinearTransformerEncoder(12, 2)
    x = random(2, 5, 8)
    with pytest.raises(ValueError, match="must not depend on the query"):
        layer(x, attention_mask=np.ones((2, 5, 5), bool))
    with pytest.raises(ValueError, match="must not depend on the query"):
        layer(
            keras.Input((5, 8)),
            attention_mask=keras.Input((5, 5), dtype="bool"),
        )


def gradients(remat, mechanism, dropout, **options):
    """Of the input and all weights, with the generators' states after it."""
    keras.utils.set_random_seed(1)
    block = LinearTransformerEncoder(
        12, 2, dropout=dropout, mechanism=mechanism, remat=remat, **options
    )
    block.build((2, 9, 8))
    mask = np.arange(9) < np.array([[9], [6]])
    towards = ops.convert_to_tensor(random(2, 9, 8))

    class Twice(keras.layers.Layer):
        """Two calls before one backward pass, whose seeds must not mix."""

        def __init__(self):
            super().__init__()
            self.block = block

        def call(self, x):
            for _ in range(2):
                x = self.block(x, padding_mask=mask, training=True)
            return x - towards

    layer = Twice()
    layer.built = True
    step = timing.training_step(layer)
    found = keras.tree.flatten(step(ops.convert_to_tensor(random(2, 9, 8))))
    states = [numpy(v.value) for v in block.non_trainable_variables]
    return [numpy(x) for x in found], states


@pytest.mark.parametrize(
    ("mechanism", "normalize_first", "dropout"),
    [
        ("modified_linformer", False, 0),
        ("modified_linformer", True, 0.3),
        ("linear_transformer", True, 0),
        ("lara", False, 0.3),  # draws at random, too
    ],
)
def test_remat_changes_no_gradient(mechanism, normalize_first, dropout):
    options = {"normalize_first": normalize_first}
    plain, states = gradients(False, mechanism, dropout, **options)
    found, after = gradients(True, mechanism, dropout, **options)
    assert max(abs(x).max() for x in plain) > 0.01
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for one, other in zip(after, states, strict=True):
        np.testing.assert_array_equal(one, other)


@slow_to_compile
@pytest.mark.parametrize(
    ("policy", "eager"), [("float32", True), ("mixed_bfloat16", False)]
)
def test_models_of_remat_blocks_learn(policy, eager, tmp_path):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((9, 8)),
            *(
                LinearTransformerEncoder(
                    12, 2, dropout=0.1, remat=True, dtype=policy
                )
                for _ in range(2)
            ),
            keras.layers.Dense(1, dtype="float32"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=eager)
    x, y = random(16, 9, 8), random(16, 9, 1)
    history = model.fit(x, y, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.layers[0].remat
    np.testing.assert_array_equal(
        again.predict(x, verbose=0), model.predict(x, verbose=0)
    )
