"""Both kinds of layers of KerasHub's Qwen3.5, by their weights."""

import numpy as np
import pytest
from keras import ops

from keras_linattn import LinearSelfAttention

pytestmark = pytest.mark.once
X = np.random.default_rng(0).standard_normal((2, 9, 16)).astype("float32")


@pytest.fixture(scope="module")
def blocks():
    """A block of each kind, with random weights, norms included."""
    hub = pytest.importorskip("keras_hub")
    backbone = hub.models.Qwen3_5Backbone(
        vocabulary_size=5,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        hidden_dim=16,
        intermediate_dim=4,
        layer_types=["linear_attention", "full_attention"],
        partial_rotary_factor=0.5,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=6,
        linear_value_head_dim=5,
    )
    rng = np.random.default_rng(1)
    weights = [rng.normal(0, 0.5, w.shape) for w in backbone.get_weights()]
    backbone.set_weights(weights)
    return backbone.transformer_layers


def weights_of(layer):
    return {
        weight.path.split(f"{layer.name}/", 1)[-1]: ops.convert_to_numpy(weight)
        for weight in layer.weights
    }


def made(weights, **options):
    """Our layer with weights by the ends of their paths."""
    layer = LinearSelfAttention(causal=True, use_bias=False, **options)
    layer.build(X.shape)
    layer.built = True
    ours = {w.path.split(f"{layer.name}/", 1)[-1]: w for w in layer.weights}
    assert set(ours) == set(weights)
    for name, weight in ours.items():
        weight.assign(np.reshape(weights[name], weight.shape))
    return layer


def assert_same(ours, theirs):
    np.testing.assert_allclose(
        *(ops.convert_to_numpy(y) for y in (ours, theirs)), atol=1e-5, rtol=1e-5
    )


def test_gated_delta_layer(blocks):
    layer = blocks[0]._linear_attn
    theirs = weights_of(layer)
    query, key, value = np.split(theirs["in_proj_qkv/kernel"], [12, 24], axis=1)
    taps = np.split(theirs["conv1d_kernel"], [12, 24], axis=0)
    convolutions = {
        f"{role}_heads/convolution/kernel": kernel.T[::-1]
        for role, kernel in zip(("query", "key", "value"), taps)
    }
    ours = made(
        {
            **convolutions,
            "query/kernel": query,
            "key/kernel": key,
            "value/kernel": value,
            "gate/kernel": theirs["in_proj_z/kernel"],
            "attention_output/kernel": theirs["out_proj/kernel"],
            "output_norm/scale": theirs["norm/scale"],
            "gated_delta/beta_kernel": theirs["in_proj_b/kernel"],
            "gated_delta/beta_bias": np.zeros(4),
            "gated_delta/decay_kernel": theirs["in_proj_a/kernel"],
            "gated_delta/decay_bias": theirs["dt_bias"],
            "gated_delta/log_rate": theirs["A_log"],
        },
        num_heads=4,
        num_query_key_heads=2,
        key_dim=6,
        value_dim=5,
        kernel_size=4,
        output_norm=True,
        use_gate=True,
        gate_activation="silu",
        mechanism={
            "name": "gated_delta",
            "output_norm": False,
            "activation": None,
            "scale": 6**-0.5,
            "epsilon": 1e-6,
        },
    )
    x = ops.convert_to_tensor(X)
    assert_same(ours(x), layer(x))


def test_full_attention_layer(blocks):
    layer = blocks[1]._self_attention_layer
    theirs = weights_of(layer)
    query, gate = np.split(theirs["query/kernel"], 2, axis=-1)
    ours = made(
        {
            "query/kernel": query,
            "gate/kernel": gate,
            "key/kernel": theirs["key/kernel"],
            "value/kernel": theirs["value/kernel"],
            "attention_output/kernel": theirs["attention_output/kernel"],
            # Theirs are kept without the 1.
            "query_heads/norm/scale": 1 + theirs["query_norm/scale"],
            "key_heads/norm/scale": 1 + theirs["key_norm/scale"],
        },
        num_heads=4,
        num_key_value_heads=2,
        key_dim=8,
        qk_norm=True,
        rope_max_wavelength=10000,
        partial_rotary_factor=0.5,
        use_gate=True,
        mechanism="softmax",
    )
    x = ops.convert_to_tensor(X)
    visible = np.tril(np.ones((1, 9, 9), bool)).repeat(2, axis=0)
    mask = ops.convert_to_tensor(visible)
    assert_same(ours(x), layer(x, attention_mask=mask))
