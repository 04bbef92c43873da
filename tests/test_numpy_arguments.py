"""Constructors take NumPy's numbers and arrays, or refuse them by name."""

import json

import keras
import numpy as np
import pytest

import keras_linattn
from keras_linattn import mechanisms
from keras_linattn import models
from keras_linattn.mechanisms._base import constructor_arguments
from keras_linattn.testing._subject import subjects

pytestmark = pytest.mark.once
ATTENTION = {
    "num_heads": 2,
    "key_dim": 4,
    "value_dim": 3,
    "dropout": 0.5,
    "use_bias": False,
    "output_shape": (9,),
    "attention_axes": (1,),
    "use_gate": True,
    "seed": 3,
}
BLOCK = {
    "intermediate_dim": 12,
    "num_heads": 2,
    "dropout": 0.5,
    "layer_norm_epsilon": 0.25,
    "normalize_first": True,
}
MODEL = {"hidden_dim": 8, "num_layers": 2, "num_heads": 2, "dropout": 0.5}
CASES = {
    keras_linattn.LinearSelfAttention: {**ATTENTION, "causal": True},
    keras_linattn.LinearMultiHeadAttention: ATTENTION,
    keras_linattn.LinearTransformerEncoder: {**BLOCK, "remat": True},
    keras_linattn.LinearTransformerDecoder: BLOCK,
    keras_linattn.layers.LinearTransformerDecoderGroup: {
        **BLOCK,
        "num_layers": 2,
    },
    keras_linattn.layers.CausalConvolution: {"kernel_size": 3},
    keras_linattn.layers.PatchEmbedding: {
        "patch_size": (2, 4),
        "embed_dim": 4,
        "use_positions": False,
    },
    keras_linattn.layers.NGramEmbedding: {
        "vocabulary_size": 9,
        "embed_dim": 4,
        "orders": (1, 3),
        "num_buckets": 16,
    },
    keras_linattn.layers.TokenExtension: {"factor": 3},
    keras_linattn.layers.TokenMerging: {"factor": 3, "units": 4},
    keras_linattn.layers.StridedConvolution: {
        "units": 4,
        "kernel_size": 6,
        "strides": 3,
    },
    models.TextClassifier: {
        **MODEL,
        "num_classes": 3,
        "ngram_orders": (1, 2),
        "num_buckets": 16,
        "merge_factor": 2,
        "hourglass_factor": 2,
    },
    models.VisionTransformer: {
        **MODEL,
        "num_classes": 3,
        "image_shape": (8, 8, 1),
        "patch_size": (2, 2),
        "stem_filters": (4,),
    },
    models.AudioClassifier: {
        **MODEL,
        "num_classes": 3,
        "strides": (4, 2),
        "kernel_sizes": (8, 4),
    },
    models.CausalLM: {**MODEL, "kernel_size": 3, "layers_per_state": 2},
}


def as_numpy(value):
    """A number or tuple of them as NumPy's; bool, int and float apart."""
    if isinstance(value, (tuple, list)):
        return np.array(value)
    kinds = {bool: np.bool_, int: np.int64, float: np.float32}
    return kinds[type(value)](value) if type(value) in kinds else value


def check(cls, options):
    keras.utils.clear_session(free_memory=False)
    found = cls(**{k: as_numpy(v) for k, v in options.items()}, name="it")
    config = found.get_config()
    keras.utils.clear_session(free_memory=False)  # names without numbers
    assert json.loads(json.dumps(config)) == json.loads(
        json.dumps(cls(**options, name="it").get_config())
    )


@pytest.mark.parametrize("cls", CASES, ids=lambda cls: cls.__name__)
def test_layers_and_models(cls):
    check(cls, CASES[cls])


@pytest.mark.parametrize("name", mechanisms.available())
def test_mechanisms(name):
    for subject in subjects(name):
        check(subject.cls, subject.config)
    named = constructor_arguments(subject.cls)
    if "sequence_length" in named:
        check(subject.cls, {"sequence_length": 9})


def test_empty_arrays_and_arrays_for_numbers():
    layer = keras_linattn.LinearSelfAttention(
        2, 4, output_shape=np.array([]), attention_axes=np.array([], int)
    )
    assert layer(np.ones((2, 3, 5), "float32")).shape == (2, 3, 5)
    for name, value in (("dropout", [0.1]), ("num_heads", [2])):
        options = {"num_heads": 2, "key_dim": 4, name: np.array(value)}
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            keras_linattn.LinearSelfAttention(**options)
    with pytest.raises(ValueError, match="`patch_size` must be"):
        keras_linattn.layers.PatchEmbedding(np.array([2.0, 2.0]), 4)
    keras.models.clone_model(keras.Sequential([layer]))
