"""Layers that share one mechanism share one again, however they are copied."""

import keras
import pytest

from keras_linattn import LinearSelfAttention
from keras_linattn import LinearTransformerDecoder
from keras_linattn import LinearTransformerEncoder
from keras_linattn import mechanisms


def shared_model():
    shared = mechanisms.Hedgehog()
    x = inputs = keras.Input((6, 8))
    for layer in (
        LinearSelfAttention(2, 4, mechanism=shared),
        LinearSelfAttention(2, 4, mechanism=shared),
        LinearTransformerEncoder(12, 2, mechanism=shared),
        LinearTransformerDecoder(12, 2, mechanism=shared),
    ):
        x = layer(x)
    return keras.Model(inputs, x)


def reloaded(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


WAYS = {
    "clone": lambda model, folder: keras.models.clone_model(model),
    "config": lambda model, folder: type(model).from_config(model.get_config()),
    "json": lambda model, folder: keras.models.model_from_json(model.to_json()),
    "file": reloaded,
}


@pytest.mark.parametrize("way", WAYS)
def test_shared_mechanism_stays_one(way, tmp_path):
    model = shared_model()
    one, other = (WAYS[way](model, tmp_path) for _ in range(2))
    copies = [
        {layer.mechanism for layer in m.layers[1:]}
        for m in (model, one, other, WAYS[way](one, tmp_path))
    ]
    assert [len(copy) for copy in copies] == [1, 1, 1, 1]
    assert len(set.union(*copies)) == 4  # none is another model's
    assert one.count_params() == model.count_params()
