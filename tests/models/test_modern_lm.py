"""A language model of modern blocks streams, saves, and is quantized."""

import keras
import numpy as np
import pytest
from helpers import fed
from helpers import predict
from helpers import slow_to_compile

from keras_linattn.models import CausalLM

GATED = {
    "num_heads": 4,
    "num_query_key_heads": 2,
    "key_dim": 4,
    "value_dim": 3,
    "kernel_size": 3,
    "output_norm": True,
    "use_gate": True,
    "gate_activation": "silu",
}
TURNING = {
    "num_key_value_heads": 1,
    "kernel_size": 2,
    "qk_norm": True,
    "rope_max_wavelength": 100,
    "partial_rotary_factor": 0.5,
    "use_gate": True,
}
TOKENS = np.random.default_rng(0).integers(1, 20, (2, 8), dtype="int32")


def made(**options):
    """A block alone, and a group of two that share a state."""
    return CausalLM(
        **{
            "vocabulary_size": 20,
            "hidden_dim": 8,
            "num_layers": 3,
            "num_heads": 2,
            "intermediate_dim": 12,
            "mechanism": "gated_delta",
            "kernel_size": None,
            "layers_per_state": 2,
            "activation": "silu",
            "normalization": "rms",
            "use_bias": False,
            "use_feedforward_gate": True,
            "attention_options": TURNING,
            "tie_embeddings": True,
            **options,
        }
    )


OPTIONS = (
    {},
    {"layers_per_state": 1, "attention_options": [GATED, TURNING]},
)


@pytest.mark.parametrize("options", OPTIONS)
def test_whole_is_pieces_is_token_by_token(options):
    model = made(**options)
    whole = predict(model, TOKENS)
    for sizes in ((5, 3), (1,) * 8):
        np.testing.assert_allclose(fed(model, TOKENS, sizes), whole, atol=1e-5)


def test_padding_changes_nothing():
    model = made()
    whole = predict(model, TOKENS)
    left = predict(model, np.pad(TOKENS, [(0, 0), (3, 0)]))
    np.testing.assert_allclose(left[:, 3:], whole, atol=1e-5)
    right = predict(model, np.pad(TOKENS, [(0, 0), (0, 3)]))
    np.testing.assert_allclose(right[:, :8], whole, atol=1e-5)


def test_no_biases_and_one_table():
    """But those of the mechanism's gates."""
    model = made()
    names = [weight.path for weight in model.weights]
    assert not [name for name in names if name.endswith("/bias")]
    assert sum("embedding" in name for name in names) == 1
    with pytest.raises(ValueError, match="No such layer: logits"):
        model.get_layer("logits")


def test_step_model_is_the_whole():
    model = made()
    step = model.step_model()
    state = {
        x.name: np.zeros((2, *x.shape[1:]), x.dtype)
        for x in step.inputs
        if x.name != "tokens"
    }
    names = sorted(state)
    assert "state_decoder_0_position" in names
    for t in range(3):
        state = step.predict_on_batch({"tokens": TOKENS[:, t : t + 1], **state})
        logits = state.pop("logits")
    np.testing.assert_allclose(logits, predict(model, TOKENS)[:, 2], atol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:.*does not have a `quantize`",
    "ignore:The use of `x.T`",  # by Keras' quantized embeddings under torch
)
@pytest.mark.parametrize("mode", [None, "int8"])
def test_saves(mode, tmp_path):
    model = made(**OPTIONS[1])
    exact = predict(model, TOKENS)
    if mode is not None:
        model.quantize(mode)
        assert 0 < np.abs(predict(model, TOKENS) - exact).max() < 0.1
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        predict(loaded, TOKENS), predict(model, TOKENS), atol=1e-5
    )
    assert loaded.get_config() == model.get_config()


@slow_to_compile
def test_trains_and_generates():
    pytest.importorskip("keras_hub")
    model = made()
    model.compile(keras.optimizers.Adam(0.05), sampler="beam")
    before = predict(model, TOKENS)
    model.fit(TOKENS[:, :-1], TOKENS[:, 1:], verbose=0)
    assert np.abs(predict(model, TOKENS) - before).max() > 1e-3
    prompts = np.where(np.arange(8) < [[5], [3]], TOKENS, 0)
    continued = model.generate(prompts)
    assert (continued[:, :3] == TOKENS[:, :3]).all()
    for row, length in ((0, 5), (1, 3)):
        alone = np.zeros((1, 8), "int32")
        alone[0, :length] = TOKENS[row, :length]
        np.testing.assert_array_equal(model.generate(alone)[0], continued[row])


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"normalization": "batch"}, "must be one of 'layer', 'rms'"),
        ({"attention_options": {"heads": 2}}, "must be a dict of arguments"),
        ({"attention_options": [TURNING] * 4}, "4 entries for 3 blocks"),
        ({"attention_options": [TURNING, None]}, "share their"),
    ],
)
def test_refuses(options, rule):
    with pytest.raises(ValueError, match=rule):
        made(**options)
