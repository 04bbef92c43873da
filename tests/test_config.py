"""Every public layer: each constructor argument survives a round trip."""

import inspect

import keras
import pytest
from helpers import public_layers

from keras_linattn import layers

pytestmark = pytest.mark.once
ATTENTION = {
    "num_heads": 3,
    "key_dim": 5,
    "value_dim": 7,
    "dropout": 0.25,
    "use_bias": False,
    "output_shape": (9,),
    "attention_axes": (1,),
    "kernel_initializer": keras.initializers.HeNormal(seed=3),
    "bias_initializer": keras.initializers.Constant(0.5),
    "kernel_regularizer": keras.regularizers.L1(0.1),
    "bias_regularizer": keras.regularizers.L2(0.2),
    "activity_regularizer": keras.regularizers.L2(0.3),
    "kernel_constraint": keras.constraints.NonNeg(),
    "bias_constraint": keras.constraints.MaxNorm(1.5),
    "use_gate": True,
    "seed": 11,
    "mechanism": {"name": "modified_linformer", "reading": "projected"},
    "num_key_value_heads": 1,
    "num_query_key_heads": None,  # not both
    "kernel_size": 3,
    "qk_norm": True,
    "rope_max_wavelength": 100,
    "rope_scaling_factor": 2.0,
    "partial_rotary_factor": 0.8,
    "output_norm": True,
    "gate_activation": "silu",
    "layer_norm_epsilon": 1e-3,
}
WINDOWED = {**ATTENTION, "mechanism": "softmax", "sliding_window": 4}
BLOCK = {
    "intermediate_dim": 24,
    "num_heads": 3,
    "dropout": 0.25,
    "activation": "gelu",
    "layer_norm_epsilon": 1e-3,
    "kernel_initializer": keras.initializers.HeNormal(seed=3),
    "bias_initializer": keras.initializers.Constant(0.5),
    "normalize_first": True,
    "mechanism": "linear_transformer",
    "normalization": "rms",
    "use_bias": False,
    "use_feedforward_gate": True,
    "attention_options": {"kernel_size": 3, "gate_activation": "silu"},
}
CASES = {
    "LinearSelfAttention": {**WINDOWED, "causal": True},
    "LinearMultiHeadAttention": {
        **WINDOWED,
        "flash_attention": False,  # nothing else is taken
    },
    "LinearTransformerEncoder": {**BLOCK, "remat": True},
    "LinearTransformerDecoder": {**BLOCK, "cross_mechanism": "performer"},
    "LinearTransformerDecoderGroup": {**BLOCK, "num_layers": 3},
    "CausalConvolution": {
        "kernel_size": 3,
        "activation": "silu",
        "use_bias": False,
        "use_residual": False,
    },
    "PatchEmbedding": {
        "patch_size": (2, 4),
        "embed_dim": 5,
        "use_positions": False,
    },
    "NGramEmbedding": {
        "vocabulary_size": 9,
        "embed_dim": 5,
        "orders": (1, 3),
        "num_buckets": 77,
    },
    "TokenExtension": {"factor": 3},
    "TokenMerging": {"factor": 3, "units": 5},
    "MaskedAveragePooling": {"num_segments": 3},
    "StridedConvolution": {"units": 5, "kernel_size": 6, "strides": 3},
    "WaveformMasking": {},
}


def plain(value):
    """What a config holds for a value."""
    if isinstance(value, tuple):
        return list(value)
    return keras.saving.serialize_keras_object(value)


def test_every_public_layer_is_here():
    # The cell is made of another layer: tests/layers/test_streaming.py.
    assert public_layers() == {*CASES, "LinearAttentionCell"}


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name):
    cls, options = getattr(layers, name), CASES[name]
    # Keras keeps the arguments that a subclass passes on in **kwargs.
    accepted = {
        p
        for base in cls.__mro__
        if base.__module__.startswith("keras_linattn")
        and "__init__" in vars(base)
        for p in inspect.signature(base.__init__).parameters
    } - {"self", "kwargs"}
    if name == "LinearSelfAttention":  # it belongs to the drop-in layer
        accepted -= {"flash_attention"}
    assert accepted == set(options)
    layer = cls(**options, name="mine", dtype="mixed_bfloat16", trainable=False)
    config = layer.get_config()
    assert accepted <= set(config)
    for key in accepted - {"mechanism", "cross_mechanism", "activation"}:
        assert plain(config[key]) == plain(options[key]), key
    revived = cls.from_config(config)
    assert revived.get_config() == config
    assert revived.name == "mine" and not revived.trainable
    assert revived.dtype_policy.name == "mixed_bfloat16"
    for key in accepted & {"mechanism", "cross_mechanism"}:
        one, other = getattr(revived, key), getattr(layer, key)
        assert one.get_config() == other.get_config()
