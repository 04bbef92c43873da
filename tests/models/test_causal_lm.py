"""`CausalLM`: states, samplers, texts, files, and the exported step."""

import gc
import inspect
import json
import pathlib
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
from helpers import FirstValues
from helpers import fed
from helpers import predict
from helpers import slow_to_compile
from keras import ops

from keras_linattn.export import export_saved_model
from keras_linattn.models import CausalLM
from keras_linattn.models import _generator
from keras_linattn.models import bucket_length
from keras_linattn.models import decoding
from keras_linattn.testing._backends import quick

BACKEND = keras.backend.backend()
C_API = pathlib.Path(__file__).parents[1] / "export" / "c_api.py"
OPTIONS = {
    "vocabulary_size": 40,
    "hidden_dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_dim": 24,
    "dropout": 0.2,
    "mechanism": "linear_transformer",
    "kernel_size": 3,
    "layers_per_state": 2,
    "sequence_length": 64,
    "remat": True,
}
OTHERS = {
    "activation": "silu",
    "normalization": "rms",
    "layer_norm_epsilon": 1e-6,
    "use_bias": False,
    "use_feedforward_gate": True,
    "attention_options": {"kernel_size": 3},
    "tie_embeddings": True,
    "packed": True,
}
LENGTHS = (7, 4)  # of two prompts


def lm(**options):
    return CausalLM(**{**OPTIONS, "dropout": 0.0, "remat": False, **options})


def prompts(length, vocabulary=40):
    """Two rows of ids, padded after `LENGTHS`."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, vocabulary, (2, length), dtype="int32")
    return np.where(np.arange(length) < np.array([LENGTHS]).T, tokens, 0)


def sentences(length=10):
    rng = np.random.default_rng(1)
    return rng.integers(1, 40, (2, length), dtype="int32")


@pytest.fixture(scope="module")
def hub():
    return pytest.importorskip("keras_hub")


# --- The model


def test_config_is_the_constructor():
    options = {**OPTIONS, **OTHERS}
    model = CausalLM(**options)
    config = model.get_config()
    for name, parameter in inspect.signature(CausalLM).parameters.items():
        if name not in ("dtype", "kwargs", "tokenizer"):
            assert config[name] == options[name], name
            assert options[name] != parameter.default, f"{name} is default"
    assert CausalLM.from_config(config).get_config() == config


def test_bytes_are_the_default():
    model = CausalLM(hidden_dim=8, num_layers=1, num_heads=1)
    assert model.output_shape == (None, None, 257)
    assert [x.name for x in model.inputs] == ["tokens"]


def test_groups_of_layers_share_a_state():
    """Half the states, and no keys and values for every second layer."""
    one, two = (
        lm(num_layers=5, layers_per_state=n, hidden_dim=8) for n in (1, 2)
    )
    names = ["convolution", "decoder_0", "decoder_2", "decoder_4"]
    assert sorted(two.get_initial_state(1)) == names

    def state_size(model):
        leaves = keras.tree.flatten(model.get_initial_state(1))
        return sum(ops.size(leaf) for leaf in leaves)

    convolution = 2 * 8
    alone = (state_size(one) - convolution) // 5
    assert state_size(two) == convolution + 3 * alone
    projections = 2 * (8 * 8 + 8)
    assert one.count_params() - two.count_params() == 2 * projections


# Three layers in groups of two: a group and a plain block.
MIXED = {"num_layers": 3, "layers_per_state": 2}


@pytest.mark.parametrize(
    "mechanism",
    [
        "linear_transformer",
        "cosformer",
        "gated_delta",
    ],
)
def test_whole_is_pieces_is_token_by_token(mechanism):
    model = lm(mechanism=mechanism, **MIXED)
    tokens = sentences(6)
    whole = predict(model, tokens)
    for sizes in ((3, 1, 2), (1,) * 6):
        # Logits are of the size of 1, and rounded in each of several blocks.
        np.testing.assert_allclose(
            fed(model, tokens, sizes), whole, atol=2e-5, rtol=1e-5
        )


def test_padded_prompts_go_on_as_each_does_alone():
    model = lm(mechanism="gated_delta", **MIXED)
    padded, more = prompts(8), sentences()[:, :3]

    def go_on(padded, more):
        state = model.get_initial_state(2)
        _, _, state = model.call_with_state(padded, state)
        return model.call_with_state(more, state)[0]

    together = quick(go_on, [padded, more])
    for row, length in enumerate(LENGTHS):
        alone = np.concatenate([padded[row, :length], more[row]])[None]
        expected = predict(model, alone)[0, length:]
        np.testing.assert_allclose(together[row], expected, atol=1e-5)


def test_padding_changes_neither_logits_nor_loss():
    model = lm()
    tokens = sentences()
    padded = np.pad(tokens, [(0, 0), (0, 4)])
    np.testing.assert_allclose(
        predict(model, padded)[:, :10], predict(model, tokens), atol=1e-5
    )
    model.compile()
    loss = model.evaluate(tokens[:, :-1], tokens[:, 1:], verbose=0)
    again = model.evaluate(padded[:, :-5], padded[:, 1:-4], verbose=0)
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    inputs, targets = np.where(padded > 0, padded, 0), np.roll(padded, -1, 1)
    inputs[:, 9] = 0  # the last token has no target
    again = model.evaluate(inputs, targets, verbose=0)
    np.testing.assert_allclose(again, loss, rtol=1e-5)


def test_learns_by_heart():
    model = lm(num_layers=1)
    tokens = sentences()
    model.compile(keras.optimizers.Adam(0.03))
    x, y = tokens[:, :-1], tokens[:, 1:]
    losses = model.fit(x, y, epochs=40, verbose=0).history["loss"]
    assert losses[-1] < 0.2 < losses[0]


@slow_to_compile
def test_remat_changes_no_loss_and_no_state():
    losses, outputs = [], []
    for remat in (False, True):
        keras.utils.set_random_seed(0)
        model = lm(**MIXED, dropout=0.2, remat=remat)
        model.compile(keras.optimizers.SGD(0.1))
        tokens = sentences(6)
        fitted = model.fit(tokens[:, :-1], tokens[:, 1:], epochs=3, verbose=0)
        losses.append(fitted.history["loss"])
        outputs.append(fed(model, tokens, (2, 4)))
        again = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(model)
        )
        assert again.get_config()["remat"] is remat
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)


# --- Generation


class Follower:
    """In a sampler's place: follows a text and keeps the logits it is given."""

    variables = ()

    def __init__(self, text):
        self.text = text

    def __call__(self, next, prompt, cache, index, mask, **options):
        logits = []
        for position in range(min(LENGTHS), self.text.shape[1]):
            tokens = ops.where(
                ops.arange(self.text.shape[1]) < position, self.text, 0
            )
            some, hidden, cache = next(tokens, cache, position)
            logits.append(some)
        self.logits = ops.stack(logits, axis=1)
        self.hidden_states = options["hidden_states"]
        return prompt


def test_samplers_see_the_logits_of_the_whole():
    model = lm(mechanism="gated_delta", **MIXED)
    text, shortest = sentences(), min(LENGTHS)
    whole = predict(model, text)
    follower = Follower(ops.convert_to_tensor(text))
    model.compile(sampler=follower)
    mask = np.arange(10) < np.array([LENGTHS]).T

    def logits(tokens, mask):
        inputs = {"token_ids": tokens, "padding_mask": mask}
        model.generate_step(inputs)
        return follower.logits

    output = quick(logits, [np.where(mask, text, 0), mask])
    np.testing.assert_allclose(
        output[..., 1:], whole[:, shortest - 1 : -1, 1:], atol=1e-5
    )
    assert (output[..., 0] < -1e6).all()  # padding never follows


def test_contrastive_search_sees_the_hidden_states_of_the_prompt():
    model = lm()
    text, shortest = sentences(), min(LENGTHS)
    layers = model.get_layer("final_norm").output
    expected = predict(keras.Model(model.inputs, layers), text)
    follower = Follower(ops.convert_to_tensor(text))
    model.compile(sampler=follower)
    mask = np.arange(10) < np.array([LENGTHS]).T

    def hidden(tokens, mask):
        inputs = {"token_ids": tokens, "padding_mask": mask}
        model.generate_step(inputs)
        return follower.hidden_states

    output = quick(hidden, [np.where(mask, text, 0), mask])
    np.testing.assert_allclose(
        output[:, :shortest], expected[:, :shortest], atol=1e-5
    )


def test_greedy_is_an_argmax_over_the_whole(hub):
    model = lm()
    tokens = prompts(12)
    model.compile(sampler="greedy")
    output = model.generate(tokens, stop_token_ids=None)
    expected = tokens.copy()
    for position in range(min(LENGTHS), 12):
        logits = predict(model, expected)[:, position - 1, 1:]
        free = expected[:, position] == 0
        best = np.argmax(logits, axis=-1) + 1
        expected[:, position] = np.where(free, best, expected[:, position])
    np.testing.assert_array_equal(output, expected)


SAMPLERS = {
    "top_k": {"k": 5, "seed": 0},
    "top_p": {"p": 0.9, "seed": 0},
    "beam": {},
    "contrastive": {},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_go_on_from_the_prompts(hub, name, monkeypatch):
    """With the same text in a bucket of 16 positions as in one of 9."""
    model = lm(num_layers=1, mechanism="gated_delta")
    tokens = prompts(9)
    inputs = {"token_ids": tokens, "padding_mask": tokens > 0}
    outputs = {}
    for length in (9, 16):
        monkeypatch.setattr(decoding, "bucket_length", lambda _: length)
        config = {"class_name": name, "config": SAMPLERS[name]}
        model.compile(sampler=hub.samplers.get(config))
        outputs[length] = model.generate(inputs, stop_token_ids=(5, 7, 9))
    output = outputs[16]
    assert output["token_ids"].shape == (2, 9)
    for key in output:
        np.testing.assert_array_equal(output[key], outputs[9][key])
    new = output["token_ids"][output["padding_mask"]]
    assert new.min() > 0 and new.max() < 40
    kept = tokens > 0
    assert output["padding_mask"][kept].all()
    np.testing.assert_array_equal(output["token_ids"][kept], tokens[kept])


def test_lengths_share_compiled_functions(hub, monkeypatch):
    """The oldest are released, with what they have compiled."""
    monkeypatch.setattr(_generator, "MOST_COMPILED", 2)
    model = saying(ord("x"))
    made, compiled = [], model._compiled

    def counted(*key):
        function = compiled(*key)
        made.append(weakref.ref(function))
        return function

    monkeypatch.setattr(model, "_compiled", counted)
    for length in (5, 9, 40, 64, 7):
        expected = "ab" + "x" * (length - 2)
        assert model.generate("ab", max_length=length) == expected
    assert len(made) == 1
    model.generate("ab", max_length=70)
    model.generate(["ab"] * 2, max_length=9)
    assert model.generate(["ab"] * 2, max_length=5) == ["abxxx"] * 2
    assert len(made) == 3
    gc.collect()
    assert [function() is None for function in made] == [True, False, False]


def test_buckets():
    lengths = (0, 1, 64, 65, 128, 129, 5000)
    expected = [64, 64, 64, 128, 128, 256, 8192]
    assert [bucket_length(length) for length in lengths] == expected
    assert bucket_length(300, shortest=100) == 400
    for arguments in ((-1,), (1, 0)):
        with pytest.raises(ValueError, match="must be at least"):
            bucket_length(*arguments)


def saying(byte, **options):
    """A byte model that always goes on with `byte`."""
    options = {"hidden_dim": 8, "num_layers": 1, "num_heads": 1, **options}
    model = CausalLM(**options, mechanism="linear_transformer")
    head = model.get_layer("logits")
    kernel, bias = (np.zeros(w.shape) for w in head.get_weights())
    bias[byte + 1] = 9.0
    head.set_weights([kernel, bias])
    model.compile(sampler="greedy")
    return model


def test_texts_in_texts_out(hub, monkeypatch):
    model = saying(ord("x"))
    calls, step = [], model.generate_step
    monkeypatch.setattr(
        model, "generate_step", lambda *args: calls.append(1) or step(*args)
    )
    assert model.generate(["ab", "é"], max_length=5) == ["abxxx", "éxxx"]
    assert model.generate(["a", "b"], max_length=5) == ["axxxx", "bxxxx"]
    # Compiled once for one shape; torch does not compile.
    assert len(calls) == (2 if BACKEND == "torch" else 1)
    assert model.generate("ab", max_length=5, strip_prompt=True) == "xxx"
    stop = (ord("x") + 1, 7)
    assert model.generate("ab", max_length=5, stop_token_ids=stop) == "abx"
    assert model.generate("abcdefgh", max_length=5) == "abcde"
    tokens = np.array([[98, 99, 0, 0, 0]])
    output = model.generate(tokens, strip_prompt=True)
    np.testing.assert_array_equal(output, [[121, 121, 121, 0, 0]])
    assert model.generate(tokens, max_length=7).shape == (1, 7)


def test_stop_inside_the_prompt_is_no_stop(hub):
    model = saying(ord("x"))
    output = model.generate("xa", max_length=4, stop_token_ids=(121,))
    assert output == "xax"


def test_texts_with_a_tokenizer(hub, tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "the", "qu", "##ick", "fox"]
    tokenizer = hub.tokenizers.WordPieceTokenizer(vocabulary=vocabulary)
    model = saying(4, tokenizer=tokenizer)  # logits of id 5 are largest
    assert model.vocabulary_size == len(vocabulary)
    expected = ["the quick fox", "fox fox fox fox"]
    assert model.generate(["the quick", "fox"], max_length=4) == expected
    model.optimizer.build(model.trainable_variables)  # or Keras warns
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.tokenizer.get_config() == tokenizer.get_config()
    assert loaded.generate("fox", max_length=3) == "fox fox fox"


def test_special_tokens_start_and_end(hub):
    class Tokenizer(hub.tokenizers.ByteTokenizer):
        start_token_id, end_token_id, pad_token_id = 1, 2, 0
        special_token_ids = (0, 1, 2)

    model = saying(1, tokenizer=Tokenizer())  # says the end token
    assert model.generate("ab", max_length=9) == "ab"
    tokens = model.generate(np.array([[1, 97, 98, 0, 0, 0, 0, 0, 0]]))
    assert tokens[0, 3] == 2
    assert model.generate("ab", max_length=9, strip_prompt=True) == ""


def test_refuses_what_it_cannot_go_on_from(hub):
    model = saying(ord("x"))
    for inputs in (["a", ""], np.zeros((1, 4), "int32")):
        with pytest.raises(ValueError, match="at least one token"):
            model.generate(inputs, max_length=4)
    packed = {"tokens": prompts(9), "segment_ids": prompts(9)}
    with pytest.raises(ValueError, match="a row of its own"):
        model.generate(packed)
    model = lm(mechanism="softmax", layers_per_state=1)
    model.compile(sampler="greedy")
    with pytest.raises(ValueError, match="no recurrent form"):
        model.generate(prompts(9))


def test_names_the_package_that_samples(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match=r"pip install keras-linattn\[nlp\]"):
        lm().generate(prompts(9))


@pytest.mark.parametrize("name", ["num_layers", "layers_per_state"])
def test_refuses_arguments(name):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive"):
        lm(**{name: 0})


def test_asks_for_the_longest_length():
    with pytest.raises(ValueError, match="'sequence_length': ..."):
        lm(mechanism="cosformer", sequence_length=None)
    model = lm(mechanism="cosformer", sequence_length=np.int64(50))
    assert model.get_layer("decoder_0").mechanism.sequence_length == 50
    assert model.get_config()["mechanism"] == "cosformer"


# --- Files


def reloaded(model, folder):
    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")
    x = sentences()
    np.testing.assert_allclose(predict(model, x), predict(loaded, x), atol=1e-5)
    assert loaded.get_config() == model.get_config()
    return loaded


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_policies(dtype, tmp_path):
    loaded = reloaded(lm(dtype=dtype), tmp_path)
    assert predict(loaded, sentences()).dtype == np.float32
    dtypes = {leaf.dtype for leaf in loaded.step_model().outputs}
    assert dtypes == {"float32"}


@slow_to_compile
def test_compiled_reloads_with_its_sampler(hub, tmp_path):
    model = lm()
    model.compile(
        keras.optimizers.Adam(0.5), sampler=hub.samplers.TopKSampler(k=3)
    )
    tokens = sentences()
    model.fit(tokens[:, :-1], tokens[:, 1:], verbose=0)
    loaded = reloaded(model, tmp_path)
    assert loaded.optimizer.learning_rate == 0.5
    assert loaded.sampler.get_config() == model.sampler.get_config()


@pytest.mark.once
def test_compiled_clones():
    """To a plain model, whose `compile` knows no sampler."""
    model = lm()
    model.compile(keras.optimizers.Adam(0.5), sampler="greedy")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert clone.optimizer.learning_rate == 0.5
    tokens = sentences()
    np.testing.assert_array_equal(
        predict(clone, tokens), predict(model, tokens)
    )
    assert CausalLM.from_config(model.get_config())._sampler == "greedy"


@slow_to_compile
@pytest.mark.filterwarnings("ignore:.*does not have a `quantize`")
def test_quantized_reloads(tmp_path):
    model = lm()
    exact = predict(model, sentences())
    model.quantize("int8")
    assert 0 < np.abs(predict(model, sentences()) - exact).max() < 0.1
    reloaded(model, tmp_path)


def test_lora_reloads(tmp_path):
    model = lm()
    for block in model.get_layer("decoder_0").blocks:
        dense = block._self_attention_layer.query_dense
        dense.enable_lora(2)
        dense.lora_kernel_b.assign(np.full(dense.lora_kernel_b.shape, 0.1))
    reloaded(model, tmp_path)


# --- The exported step


def test_step_model_is_the_whole():
    model = lm(mechanism="cosformer")
    step = model.step_model()
    tokens = sentences(5)
    feed = {
        x.name: np.zeros((2, *x.shape[1:]), "float32")
        for x in step.inputs
        if x.name != "tokens"
    }
    assert all(name.startswith("state_") for name in feed) and len(feed) > 1
    whole = predict(model, tokens)
    for position in range(5):
        now = tokens[:, position : position + 1]
        outputs = step.predict_on_batch({"tokens": now, **feed})
        logits = outputs.pop("logits")
        np.testing.assert_allclose(logits, whole[:, position], atol=1e-5)
        assert sorted(outputs) == sorted(feed)
        feed = outputs


# Runs in a process without Python TensorFlow and without Keras.
DECODE = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from c_api import NUMPY_TYPES
from c_api import SavedModel

model = SavedModel(sys.argv[2], "serving_default")
tokens = np.load(sys.argv[3])
feed = {
    name: np.zeros([abs(n) for n in info["shape"]], NUMPY_TYPES[info["type"]])
    for name, info in model.signature["inputs"].items()
    if name != "tokens"
}
feed = {name: np.repeat(x, len(tokens), 0) for name, x in feed.items()}
logits = []
for position in range(tokens.shape[1]):
    now = tokens[:, position : position + 1]
    feed = model.run({"tokens": now, **feed})
    logits.append(feed.pop("logits"))
np.save(sys.argv[4], np.stack(logits, axis=1))
foreign = {"keras", "keras_linattn", "tensorflow", "jax", "torch"}
print(sorted(foreign & set(sys.modules)))
"""


# Against float64, whole and step by step alike, two blocks of gated_delta are
# up to 1.1e-5 off after 100 tokens, the other up to 4e-6.
EXPORTED = {
    "group": ({}, 1e-5),
    "mixed": (
        {"mechanism": ["gated_delta", FirstValues()], "layers_per_state": 1},
        5e-5,
    ),
}
if BACKEND == "torch":  # which exports through a process under TensorFlow
    del EXPORTED["mixed"]


@pytest.mark.parametrize(
    ("options", "tolerance"), EXPORTED.values(), ids=EXPORTED
)
def test_exported_step_decodes_without_keras(options, tolerance, tmp_path):
    """States of several dtypes included."""
    model = lm(**options)
    tokens = sentences(100)
    path = export_saved_model(model.step_model(), tmp_path / "step")
    np.save(tmp_path / "tokens.npy", tokens)
    files = (C_API.parent, path, tmp_path / "tokens.npy", tmp_path / "out.npy")
    child = subprocess.run(
        [sys.executable, "-c", DECODE, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == []
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), predict(model, tokens), atol=tolerance
    )
