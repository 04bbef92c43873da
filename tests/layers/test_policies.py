"""All that a layer is made of follows its dtype policy."""

import keras
import pytest

import keras_linattn as kl

LAYERS = {
    "self": lambda **options: kl.LinearSelfAttention(2, 4, **options),
    "multi": lambda **options: kl.LinearMultiHeadAttention(2, 4, **options),
    "encoder": lambda **options: kl.LinearTransformerEncoder(8, 2, **options),
    "decoder": lambda **options: kl.LinearTransformerDecoder(8, 2, **options),
    "group": lambda **options: kl.layers.LinearTransformerDecoderGroup(
        2, 8, 2, **options
    ),
}


# JAX has no float64.
OTHER = "bfloat16" if keras.backend.backend() == "jax" else "float64"


@pytest.mark.parametrize("policy", ["mixed_float16", OTHER])
@pytest.mark.parametrize("name", LAYERS)
def test_sublayers_and_mechanism_follow_the_layer(name, policy):
    mechanism = "linear_transformer"
    layer = LAYERS[name](mechanism=mechanism, dtype=policy)
    shapes = [(1, 4, 8)] * (2 if name == "multi" else 1)
    layer.build(*shapes)
    found = {
        sublayer.path: sublayer.dtype_policy.name
        for sublayer in layer._flatten_layers()
    }
    assert any(mechanism in path for path in found)
    assert set(found.values()) == {policy}, found


def test_a_mechanism_that_is_an_object_keeps_its_own():
    mechanism = kl.mechanisms.get("linear_transformer", dtype="float32")
    layer = kl.LinearSelfAttention(
        2, 4, mechanism=mechanism, dtype="mixed_bfloat16"
    )
    assert layer.mechanism.dtype_policy.name == "float32"
    assert keras.config.dtype_policy().name == "float32"
