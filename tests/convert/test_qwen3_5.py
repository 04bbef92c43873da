"""A whole Qwen3.5 of KerasHub, by its weights, gives the same logits."""

import keras
import numpy as np
import pytest
from helpers import numpy
from helpers import predict

from keras_linattn.convert import from_qwen3_5
from keras_linattn.testing._backends import quick

hub = pytest.importorskip("keras_hub")

KINDS = ["linear_attention", "full_attention"]
CACHED = {"name": "softmax", "cache_length": 16}
TOKENS = np.random.default_rng(0).integers(1, 20, (2, 9), dtype="int32")
SHOWN = np.arange(9) < [[9], [4]]


def made_backbone(tied=False):
    """Random weights, norms included."""
    backbone = hub.models.Qwen3_5Backbone(
        vocabulary_size=20,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        hidden_dim=16,
        intermediate_dim=12,
        layer_types=KINDS,
        partial_rotary_factor=0.5,
        tie_word_embeddings=tied,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=6,
        linear_value_head_dim=5,
    )
    rng = np.random.default_rng(1)
    weights = [rng.normal(0, 0.3, w.shape) for w in backbone.get_weights()]
    backbone.set_weights(weights)
    return backbone


def logits_of(backbone):
    inputs = {"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}
    if keras.backend.backend() == "jax":
        hidden = backbone.predict(inputs, verbose=0)
    else:
        hidden = backbone(inputs)
    return numpy(backbone.token_embedding(hidden, reverse=True))


@pytest.fixture(scope="module")
def backbone():
    return made_backbone()


@pytest.fixture(scope="module")
def model(backbone):
    return from_qwen3_5(backbone, full_attention=CACHED)


def test_logits(backbone, model):
    # Compiling KerasHub's 63 steps of an inverse takes most of the time.
    expected = logits_of(backbone)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(predict(model, TOKENS), expected, atol=1e-4)


@pytest.mark.once
def test_logits_of_tied_embeddings():
    backbone = made_backbone(tied=True)
    logits = predict(from_qwen3_5(backbone), TOKENS)
    np.testing.assert_allclose(logits, logits_of(backbone), atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_unequal_prompts_equal_each_alone(side, model):
    shown = SHOWN[:, ::-1] if side == "left" else SHOWN
    batch = np.zeros_like(TOKENS)
    batch[shown] = TOKENS[SHOWN]
    together = predict(model, batch)
    whole = predict(model, TOKENS)[0]
    np.testing.assert_allclose(together[0], whole, atol=1e-5)
    alone = predict(model, TOKENS[1:, :4])[0]
    np.testing.assert_allclose(together[1][shown[1]], alone, atol=1e-5)


def test_padding_behind_a_prompt_leaves_its_state(model):
    """Theirs fades there."""
    tokens = np.where(SHOWN, TOKENS, 0)
    longer = np.where(np.arange(9) == 4, 7, tokens)

    def logits(prompt, last):
        state = model.get_initial_state(2)
        _, _, state = model.call_with_state(prompt, state)
        return model.call_with_state(last, state)[0]

    found = quick(logits, [tokens, np.full((2, 1), 7, "int32")])
    expected = predict(model, longer)[1, 4]
    np.testing.assert_allclose(found[1, 0], expected, atol=1e-5)


@pytest.mark.once
def test_refuses(backbone, model):
    with pytest.raises(ValueError, match="must be a .*Qwen3_5Backbone"):
        from_qwen3_5(model)
    with pytest.raises(ValueError, match="logits/bias|_dense/bias"):
        from_qwen3_5(backbone, use_bias=True)
