"""`mechanism=[...]`: an entry for each block, in models and decoder groups."""

import json

import keras
import numpy as np
import pytest
from helpers import FirstValues
from helpers import fed
from helpers import predict
from helpers import slow_to_compile
from keras import ops

from keras_linattn import LinearSelfAttention
from keras_linattn import LinearTransformerDecoder
from keras_linattn import mechanisms
from keras_linattn.layers import LinearAttentionCell
from keras_linattn.layers import LinearTransformerDecoderGroup
from keras_linattn.models import AudioClassifier
from keras_linattn.models import CausalLM
from keras_linattn.models import TextClassifier
from keras_linattn.models import VisionTransformer
from keras_linattn.testing._backends import quick

SMALL = {"num_layers": 4, "hidden_dim": 8, "num_heads": 2}
TEXT = {"num_classes": 3, "num_buckets": 64, "merge_factor": 2, **SMALL}
IMAGE = {"num_classes": 3, "image_shape": (8, 12, 1), **SMALL}
MODELS = {
    "text": (TextClassifier, TEXT),
    "image": (VisionTransformer, IMAGE),
    "audio": (AudioClassifier, {"num_classes": 3, **SMALL}),
    "lm": (CausalLM, {"vocabulary_size": 40, **SMALL}),
}
every = pytest.mark.parametrize("kind", MODELS)


def model_of(kind, mechanism, **options):
    cls, defaults = MODELS[kind]
    return cls(**{**defaults, **options, "mechanism": mechanism})


def data(kind):
    rng = np.random.default_rng(0)
    if kind == "image":
        return rng.random((2, 8, 12, 1), dtype="float32")
    if kind == "audio":
        return rng.uniform(-1, 1, (2, 83)).astype("float32")
    return rng.integers(1, 40, (2, 9), dtype="int32")


def blocks_of(model):
    return [x for x in model.layers if x.name.startswith(("encoder_", "deco"))]


def mechanisms_in(model):
    return [block.mechanism for block in blocks_of(model)]


def names_in(model):
    return [mechanisms.name_of(mechanism) for mechanism in mechanisms_in(model)]


def as_json(model):
    """The config as a file holds it; Keras has lists for tuples there."""
    return json.loads(json.dumps(model.get_config()))


# --- Patterns


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (("softmax", "taylor"), "softmax taylor softmax taylor"),
        (["taylor"] * 2 + ["softmax"], "taylor taylor softmax taylor"),
        (["taylor"], "taylor taylor taylor taylor"),
    ],
)
def test_a_shorter_list_repeats_and_is_cut(pattern, expected):
    assert names_in(model_of("lm", pattern)) == expected.split()


@every
def test_each_kind_of_entry_comes_back_from_a_file(kind, tmp_path):
    """A name, a dict, a class, and an object that two blocks share."""
    shared = mechanisms.Hedgehog(dtype="float32")
    entries = [shared, {"name": "taylor"}, mechanisms.Performer, shared]
    model = model_of(kind, entries)
    model.layers[1].trainable = False
    names = ["hedgehog", "taylor", "performer", "hedgehog"]
    config = model.get_config()
    assert config["mechanism"][1:3] == ({"name": "taylor"}, "performer")
    model.save(tmp_path / "model.keras")
    again = {
        "file": keras.saving.load_model(tmp_path / "model.keras"),
        "clone": keras.models.clone_model(model),
        "config": type(model).from_config(config),
    }
    x = data(kind)
    for way, other in again.items():
        assert names_in(other) == names, way
        first, *_, last = mechanisms_in(other)
        assert first is last and first is not shared, way
        if way != "clone":  # Keras makes a plain functional model
            assert as_json(other) == as_json(model), way
        other.set_weights(model.get_weights())
        np.testing.assert_allclose(
            predict(other, x), predict(model, x), atol=1e-6, err_msg=way
        )


def test_entries_get_the_sizes_that_they_ask_for():
    def sizes(model, name):
        return [getattr(x, name, None) for x in mechanisms_in(model)]

    pattern = ["linformer", "xca"]
    options = {"sequence_length": 23}  # merged to 12
    model = model_of("text", pattern, **options)
    assert sizes(model, "sequence_length") == [12, None, 12, None]
    pattern = ["xca", "linformer"]
    model = model_of("text", pattern, hourglass_factor=3, **options)
    assert sizes(model, "sequence_length") == [None, 4, None, 12]
    model = model_of("image", ["softmax", "focused"])
    assert sizes(model, "grid") == [None, (2, 3), None, (2, 3)]
    model = model_of("lm", ["gated_delta", "cosformer"], **options)
    assert sizes(model, "sequence_length") == [None, 23, None, 23]
    assert model.get_config()["mechanism"] == ("gated_delta", "cosformer")


@every
def test_refuses_lists_that_do_not_fit(kind):
    with pytest.raises(ValueError, match=r"0 entries for 4.*mechanism=\[\]"):
        model_of(kind, [])
    with pytest.raises(ValueError, match="5 entries for 4 blocks"):
        model_of(kind, ["softmax"] * 5)
    with pytest.raises(ValueError, match="Unknown mechanism 'quadratic'"):
        model_of(kind, ["softmax", "quadratic"])
    with pytest.raises(TypeError, match="must be a name"):
        model_of(kind, ["softmax", ["softmax"]])


# --- Blocks that share a state


def test_a_group_has_one_mechanism():
    group = LinearTransformerDecoderGroup(4, 12, 2, mechanism=["taylor"] * 2)
    assert mechanisms.name_of(group.mechanism) == "taylor"
    config = group.get_config()
    same = LinearTransformerDecoderGroup.from_config(config)
    assert same.get_config() == config
    one, other = (mechanisms.Taylor() for _ in range(2))
    for entries in (["taylor", "softmax"], [one, other]):
        with pytest.raises(ValueError, match="share their `mechanism`"):
            LinearTransformerDecoderGroup(2, 12, 2, mechanism=entries)
    with pytest.raises(ValueError, match="3 entries for 2 blocks"):
        LinearTransformerDecoderGroup(2, 12, 2, mechanism=["taylor"] * 3)
    with pytest.raises(ValueError, match="0 entries for 2 blocks"):
        LinearTransformerDecoderGroup(2, 12, 2, mechanism=[])


def test_entries_count_blocks_where_groups_share_states():
    pattern = ["taylor", "taylor", "softmax"]
    model = model_of("lm", pattern, num_layers=3, layers_per_state=2)
    assert names_in(model) == ["taylor", "softmax"]
    with pytest.raises(ValueError, match=r"share.*`layers_per_state=1`"):
        model_of("lm", ["taylor", "softmax"], layers_per_state=2)


# --- Decoding

# States of one tensor, and of three dtypes.
STREAMING = ["gated_delta", FirstValues(), "linear_transformer"]
CACHE = {"name": "softmax", "cache_length": 20}
EXACT = ["gated_delta", {"name": "local", "window": 3}, CACHE]
LENGTH = 9


def tokens():
    return data("lm")


@slow_to_compile
def test_exact_and_linear_blocks_train_together():
    model = model_of("lm", ["gated_delta", "softmax"], num_layers=2)
    model.compile(keras.optimizers.Adam(0.01))
    before = [w.copy() for w in model.get_weights()]
    x = tokens()
    history = model.fit(x[:, :-1], x[:, 1:], verbose=0).history
    assert np.isfinite(history["loss"]).all()
    moved = [
        np.abs(new - old).max() > 0
        for new, old in zip(model.get_weights(), before)
    ]
    paths = [w.path for w in model.weights]
    for number in range(2):
        name = f"decoder_{number}/"
        assert any(m for m, path in zip(moved, paths) if name in path), name


@pytest.mark.parametrize(
    ("pattern", "dtype"),
    [
        (EXACT, "float32"),
        (STREAMING, "float32"),
        (STREAMING, "mixed_bfloat16"),
    ],
)
def test_whole_is_pieces_is_token_by_token(pattern, dtype):
    model = model_of("lm", pattern, dtype=dtype)
    x = tokens()[:, :5]
    whole = predict(model, x)
    tolerance = 1e-5 if dtype == "float32" else 0.05
    for sizes in ((2, 1, 2), (1,) * 5):
        np.testing.assert_allclose(fed(model, x, sizes), whole, atol=tolerance)


def test_step_model_has_the_leaves_of_each_block():
    model = model_of("lm", STREAMING)
    step = model.step_model()
    kinds = {x.name: x.dtype for x in step.inputs if x.name != "tokens"}
    assert kinds == {
        "state_convolution": "float32",
        "state_decoder_0": "float32",
        "state_decoder_1_count": "int32",
        "state_decoder_1_kept": "float32",
        "state_decoder_1_seen": "bool",
        "state_decoder_2": "float32",
        "state_decoder_3": "float32",
    }
    feed = {
        x.name: np.zeros((2, *x.shape[1:]), x.dtype)
        for x in step.inputs
        if x.name != "tokens"
    }
    whole = predict(model, tokens())
    for position in range(LENGTH):
        now = tokens()[:, position : position + 1]
        feed = step.predict_on_batch({"tokens": now, **feed})
        logits = feed.pop("logits")
        np.testing.assert_allclose(logits, whole[:, position], atol=1e-5)
        assert {name: str(x.dtype) for name, x in feed.items()} == kinds


@pytest.mark.parametrize("sampler", ["greedy", "beam"])
def test_samplers_carry_states_of_any_dtype(sampler):
    """Rows of unequal length go on as each does alone."""
    hub = pytest.importorskip("keras_hub")
    model = model_of("lm", STREAMING[:2], num_layers=2)
    model.compile(sampler=hub.samplers.get(sampler))
    prompts = np.where(np.arange(LENGTH) < np.array([[6], [4]]), tokens(), 0)
    together = model.generate(prompts, stop_token_ids=None)
    np.testing.assert_array_equal(together[0, :6], prompts[0, :6])
    np.testing.assert_array_equal(together[1, :4], prompts[1, :4])
    assert (together > 0).all()
    if sampler == "greedy":
        logits = predict(model, together)[..., 1:]
        best = logits.argmax(axis=-1) + 1
        np.testing.assert_array_equal(best[0, 5:-1], together[0, 6:])
        np.testing.assert_array_equal(best[1, 3:-1], together[1, 4:])


def test_prompts_stay_within_the_cache():
    """`generate` would make them 64 positions long."""
    pytest.importorskip("keras_hub")
    model = model_of("lm", EXACT[1:], num_layers=2)
    model.compile(sampler="greedy")
    prompts = np.where(np.arange(LENGTH) < np.array([[6], [4]]), tokens(), 0)
    together = model.generate(prompts, stop_token_ids=None)
    best = predict(model, together)[..., 1:].argmax(axis=-1) + 1
    np.testing.assert_array_equal(best[0, 5:-1], together[0, 6:])
    np.testing.assert_array_equal(best[1, 3:-1], together[1, 4:])


def test_names_the_block_that_cannot_be_decoded():
    model = model_of("lm", ["gated_delta"] * 3 + ["softmax"])
    model.compile(sampler="greedy")
    calls = [lambda: model.get_initial_state(1), model.step_model]
    if keras.backend.backend() == "torch":
        pytest.importorskip("keras_hub")
        calls.append(lambda: model.generate(tokens()))
    for call in calls:
        with pytest.raises(
            ValueError, match="'decoder_3'.*`Softmax` has no recurrent form"
        ):
            call()


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize`")
def test_quantized_reloads(tmp_path):
    model = model_of("lm", STREAMING[:2], num_layers=2)
    model.get_layer("decoder_1").trainable = False
    model.quantize("int8")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert as_json(loaded) == as_json(model)
    frozen = [x.name for x in loaded.layers if not x.trainable]
    assert frozen == ["decoder_1"]
    np.testing.assert_array_equal(
        predict(loaded, tokens()), predict(model, tokens())
    )
    step = fed(loaded, tokens(), (4, 5))
    np.testing.assert_allclose(step, predict(loaded, tokens()), atol=0.05)


# --- Layers around a state of several dtypes


def test_cell_carries_any_dtype():
    layer = LinearSelfAttention(2, 3, mechanism=FirstValues(), causal=True)
    rnn = keras.layers.RNN(LinearAttentionCell(layer), return_sequences=True)
    x = np.random.default_rng(0).standard_normal((2, 7, 5)).astype("float32")
    rnn.build(x.shape)  # not while JAX traces it
    got = quick(rnn, [x])
    np.testing.assert_allclose(got, quick(layer, [x]), atol=1e-5)


def test_remat_passes_any_dtype():
    with keras.RematScope(mode="full"):
        block = LinearTransformerDecoder(12, 2, mechanism=FirstValues())
    x = np.random.default_rng(0).standard_normal((2, 7, 8)).astype("float32")
    block.build(x.shape)

    def pieces(x):
        state = block.get_initial_state(2)
        first, state = block(
            x[:, :4], self_attention_cache=state, training=True
        )
        rest, _ = block(x[:, 4:], self_attention_cache=state, training=True)
        return ops.concatenate([first, rest], axis=1)

    np.testing.assert_allclose(quick(pieces, [x]), quick(block, [x]), atol=1e-5)
