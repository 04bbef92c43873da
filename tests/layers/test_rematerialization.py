"""What is computed again in the backward pass gives the same gradients."""

import keras
import numpy as np
import pytest
from helpers import slow_to_compile
from keras import ops

from keras_linattn import LinearSelfAttention
from keras_linattn import LinearTransformerDecoder
from keras_linattn import LinearTransformerEncoder
from keras_linattn import mechanisms
from keras_linattn.layers import LinearTransformerDecoderGroup
from keras_linattn.testing import timing


class Dropped(mechanisms.LinearTransformer):
    """Owns a generator, two layers below the block."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = keras.layers.Dropout(0.3)

    def attend(self, query, key, value, *, training, **options):
        value = self.drop(value, training=training)
        return super().attend(query, key, value, training=training, **options)


class Stack(keras.layers.Layer):
    """Blocks one after the other, called as in training."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks
        self.built = True

    def call(self, x):
        mask = ops.convert_to_tensor(np.arange(9) < np.array([[9], [6]]))
        for block in self.blocks:
            name = "decoder_padding_mask"
            if isinstance(block, LinearTransformerEncoder):
                name = "padding_mask"
            elif isinstance(block, LinearSelfAttention):
                name = "mask"
            x = block(x, training=True, **{name: mask})
        return x


def step(make, scope=None):
    """Loss, gradients and generators' states after a training step."""
    keras.utils.set_random_seed(1)
    with scope or keras.RematScope(mode=None):
        made = make()
        for block in made:
            block.build((2, 9, 8))
    layer = Stack(made)
    x = np.random.default_rng(0).normal(size=(2, 9, 8)).astype("float32")
    found = timing.training_step(layer)(ops.convert_to_tensor(x))
    return [
        ops.convert_to_numpy(a)
        for a in (*keras.tree.flatten(found), *layer.non_trainable_variables)
    ]


def encoder(**options):
    return LinearTransformerEncoder(
        12, 2, dropout=0.3, mechanism=Dropped, name="block", **options
    )


def blocks():
    options = {"dropout": 0.3, "mechanism": "linear_transformer"}
    return [
        LinearSelfAttention(2, 4, **options, causal=True, name="attention"),
        encoder(),
        LinearTransformerDecoder(12, 2, **options, name="decoder"),
        LinearTransformerDecoderGroup(2, 12, 2, **options, name="group"),
    ]


def assert_same(one, other):
    assert max(abs(x).max() for x in one) > 0.01
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_generators_of_all_sublayers_are_found():
    plain = step(lambda: [encoder()])
    assert_same(plain, step(lambda: [encoder(remat=True)]))


SCOPES = {
    "full": {},
    "activations": {},
    "larger_than": {"output_size_threshold": 1},
    "list_of_layers": {"layer_names": ["attention", "block", "group"]},
}


@pytest.fixture(scope="module")
def without_scope():
    return step(blocks)


@slow_to_compile
@pytest.mark.parametrize("mode", SCOPES)
def test_scopes_change_no_gradient(mode, without_scope):
    scope = keras.RematScope(mode=mode, **SCOPES[mode])
    assert_same(without_scope, step(blocks, scope))
