"""A frozen layer trains nothing, whenever its sublayers are made."""

import keras
import numpy as np
import pytest
from helpers import slow_to_compile

from keras_linattn import LinearMultiHeadAttention
from keras_linattn import LinearSelfAttention
from keras_linattn import LinearTransformerDecoder
from keras_linattn import LinearTransformerEncoder
from keras_linattn import mechanisms
from keras_linattn import models
from keras_linattn.layers import LinearAttentionCell
from keras_linattn.layers import LinearTransformerDecoderGroup
from keras_linattn.layers import NGramEmbedding
from keras_linattn.layers import PatchEmbedding
from keras_linattn.layers import StridedConvolution
from keras_linattn.layers import TokenExtension
from keras_linattn.layers import TokenMerging


@keras.saving.register_keras_serializable("tests")
class Inner(mechanisms.Softmax):
    """A mechanism of sublayers that are made when it is built."""

    def build(self, query_shape, key_shape, value_shape):
        self.dense = keras.layers.Dense(2)
        self.dense.build(query_shape)


ONE, TWO = [(2, 8, 8)], [(2, 8, 8), (2, 8, 8)]
CASES = {
    "self": (LinearSelfAttention, (2, 4), ONE),
    "inner": (LinearSelfAttention, (2, 4, None, Inner), ONE),
    "multi": (LinearMultiHeadAttention, (2, 4), TWO),
    "encoder": (LinearTransformerEncoder, (12, 2), ONE),
    "decoder": (LinearTransformerDecoder, (12, 2), TWO),
    "group": (LinearTransformerDecoderGroup, (2, 12, 2), ONE),
    "merging": (TokenMerging, (2, 4), ONE),
    "convolution": (StridedConvolution, (4, 2, 2), ONE),
    "extension": (TokenExtension, (1,), TWO),
    "patches": (PatchEmbedding, (2, 4), [(2, 4, 4, 1)]),
    "ngrams": (NGramEmbedding, (9, 4), [(2, 8)]),
}


def trained(layer):
    """Names of the weights that a layer around it would train."""
    return [v.path for v in layer.variables if v.trainable]


@pytest.mark.parametrize("when", ["constructor", "attribute", "config"])
@pytest.mark.parametrize("name", CASES)
def test_frozen_before_it_is_built(name, when):
    cls, args, shapes = CASES[name]
    layer = cls(*args, trainable=when != "constructor")
    layer.trainable = when == "config"
    if when == "config":
        layer = cls.from_config({**layer.get_config(), "trainable": False})
    layer.build(*shapes)
    assert layer.weights and not trained(layer)
    layer.trainable = True
    other = cls(*args)
    other.build(*shapes)
    assert len(trained(layer)) == len(trained(other)) > 0


def test_frozen_cell_freezes_its_attention():
    attention = LinearSelfAttention(
        2, 4, mechanism="linear_transformer", causal=True
    )
    cell = LinearAttentionCell(attention, trainable=False)
    cell.build((2, 8))
    assert cell.weights and not trained(cell)


@slow_to_compile
def test_frozen_in_a_file(tmp_path):
    """A block of a model, and one block whose mechanism alone is frozen."""
    model = models.TextClassifier(
        3, hidden_dim=8, num_layers=2, num_heads=2, num_buckets=16
    )
    model.get_layer("encoder_0").trainable = False
    model.compile("sgd", "sparse_categorical_crossentropy")
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert not loaded.get_layer("encoder_0").trainable
    assert len(trained(loaded)) == len(trained(model))
    before = loaded.get_layer("encoder_0").get_weights()
    x = np.ones((2, 8), "int32")
    loaded.fit(x, np.array([0, 1]), verbose=0)
    for one, other in zip(before, loaded.get_layer("encoder_0").get_weights()):
        np.testing.assert_array_equal(one, other)
    loaded.get_layer("encoder_0").trainable = True
    assert len(trained(loaded)) > len(trained(model))
