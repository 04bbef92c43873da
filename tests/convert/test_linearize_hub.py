"""KerasHub's models after conversion: class, numbers, files, generation."""

import sys

import keras
import numpy as np
import pytest
from keras import ops

import keras_linattn
from keras_linattn import convert

sys.path.insert(0, __file__.rpartition("/")[0])
pytest.importorskip("keras_hub")
import keras_hub  # noqa: E402
from families import FAMILIES  # noqa: E402
from families import backbone  # noqa: E402
from families import inputs_of  # noqa: E402
from families import visible  # noqa: E402

TORCH = keras.backend.backend() == "torch"
OFTEN = ("Bert", "GPT2")


def some(names, often):
    """All under torch, where nothing is compiled, else a few."""
    return [
        pytest.param(
            name,
            marks=[pytest.mark.release] * (not TORCH and name not in often),
        )
        for name in names
    ]


@pytest.mark.parametrize("family", some(FAMILIES, OFTEN))
def test_softmax_is_the_original_and_files_hold_the_rest(family, tmp_path):
    teacher, x = backbone(family), inputs_of(family)
    before = [ops.convert_to_numpy(w) for w in teacher.weights]
    expected = visible(teacher.predict(x, verbose=0), family)
    same = keras_linattn.linearize(teacher, "softmax")
    assert isinstance(same, type(teacher))
    assert same.num_layers == teacher.num_layers
    found = visible(same.predict(x, verbose=0), family)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    linear = keras_linattn.linearize(teacher)
    output = visible(linear.predict(x, verbose=0), family)
    assert np.abs(output - expected).max() > 1e-3
    linear.save(tmp_path / "linear.keras")
    loaded = keras.saving.load_model(tmp_path / "linear.keras")
    assert type(loaded) is type(linear)
    again = visible(loaded.predict(x, verbose=0), family)
    np.testing.assert_allclose(again, output, rtol=1e-6, atol=1e-6)
    for old, weight in zip(before, teacher.weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(weight))


def test_presets_come_back_converted(tmp_path):
    linear = keras_linattn.linearize(backbone("GPT2"), layers=0, window=4)
    linear.save_to_preset(str(tmp_path))
    loaded = keras_hub.models.Backbone.from_preset(str(tmp_path))
    assert type(loaded) is type(linear)
    for one, other in zip(linear.weights, loaded.weights, strict=True):
        assert one.path == other.path
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (one, other)))


@pytest.mark.parametrize("family", some(("GPT2", "OPT", "Llama", "Qwen3"), ()))
@pytest.mark.parametrize("options", [{}, {"window": 3, "layers": [1]}])
def test_generation_is_that_of_whole_passes(family, options):
    """Two prompts of different length; one layer of the second stays exact."""
    cls = getattr(keras_hub.models, f"{family}CausalLM")
    task = cls(backbone=backbone(family), preprocessor=None)
    linear = keras_linattn.linearize(task, **options)
    assert isinstance(linear, cls)
    prompt = np.arange(10) < np.array([[5], [3]])
    ids = np.random.default_rng(2).integers(1, 40, prompt.shape) * prompt
    x = {"token_ids": ids, "padding_mask": prompt.astype("int32")}
    linear.compile(sampler="greedy")
    found = linear.generate(x, stop_token_ids=None)["token_ids"]
    x = {"token_ids": found, "padding_mask": np.ones_like(found)}
    logits = linear.predict(x, verbose=0)
    chosen = np.take_along_axis(logits[:, :-1], found[:, 1:, None], axis=-1)[
        ..., 0
    ]
    best = logits[:, :-1].max(axis=-1)
    behind = ~prompt[:, 1:]
    np.testing.assert_allclose(chosen[behind], best[behind], atol=1e-5)
    np.testing.assert_array_equal(found[prompt], ids[prompt])


@pytest.mark.once
def test_a_window_of_qwen_3_stays():
    """Two layers with windows of 3 see 4 positions back, one that is exact
    among them. KerasHub's default of 32,768 is none."""
    model = backbone("Qwen3", sliding_window_size=3)
    linear = keras_linattn.linearize(model, layers=[0])
    names = [row["becomes"] for row in convert.report(linear).rows]
    assert names == ["local", "local"]
    x = inputs_of("Qwen3")
    before = linear.predict(x, verbose=0)
    x["token_ids"][:, 4] += 1
    changed = np.abs(linear.predict(x, verbose=0) - before).max(axis=(0, 2))
    assert (changed > 1e-4).tolist() == [4 <= n <= 8 for n in range(9)]
    (row, _) = convert.report(backbone("Qwen3")).rows
    assert row["becomes"] == "hedgehog"


@pytest.mark.once
def test_cross_attention_gets_no_window():
    linear = keras_linattn.linearize(backbone("Bart"), window=4)
    kinds = {
        row["layer"].partition("/")[2]: row["becomes"]
        for row in convert.report(linear).rows
    }
    assert kinds == {
        "self_attention_layer": "hybrid_window",
        "self_attention": "hybrid_window",
        "cross_attention": "hedgehog",
    }


@pytest.mark.once
def test_a_task_that_cannot_be_converted_is_named():
    task = keras_hub.models.BartSeq2SeqLM(backbone("Bart"), preprocessor=None)
    with pytest.raises(ValueError, match="Received: `BartSeq2SeqLM`") as error:
        keras_linattn.linearize(task)
    assert str(error.value).count("\n- ") == 6


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_quantization_comes_back(tmp_path):
    linear = keras_linattn.linearize(backbone("Llama"), window=4)
    x = inputs_of("Llama")
    before = visible(linear.predict(x, verbose=0), "Llama")
    linear.quantize("int8")
    output = visible(linear.predict(x, verbose=0), "Llama")
    assert 1e-4 < np.abs(output - before).max() < 0.5
    linear.save(tmp_path / "linear.keras")
    loaded = keras.saving.load_model(tmp_path / "linear.keras")
    assert loaded.transformer_layers[0]._self_attention_layer.mechanism.window
    again = visible(loaded.predict(x, verbose=0), "Llama")
    np.testing.assert_array_equal(again, output)


@pytest.mark.once
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(policy, tmp_path):
    teacher = backbone("Llama", dtype=policy)
    x = inputs_of("Llama")
    expected = visible(teacher.predict(x, verbose=0), "Llama")
    same = keras_linattn.linearize(teacher, "softmax")
    output = visible(same.predict(x, verbose=0), "Llama")
    assert output.dtype == expected.dtype
    np.testing.assert_allclose(
        *(np.asarray(a, "float32") for a in (output, expected)), atol=0.2
    )
    linear = keras_linattn.linearize(teacher)
    output = visible(linear.predict(x, verbose=0), "Llama")
    linear.save(tmp_path / "linear.keras")
    loaded = keras.saving.load_model(tmp_path / "linear.keras")
    assert loaded.dtype_policy.name == policy
    again = visible(loaded.predict(x, verbose=0), "Llama")
    np.testing.assert_array_equal(
        *(np.asarray(a, "float32") for a in (again, output))
    )


@pytest.mark.once
def test_a_task_keeps_its_head():
    task = keras_hub.models.BertTextClassifier(
        backbone=backbone("Bert"), num_classes=3, preprocessor=None
    )
    linear = keras_linattn.linearize(task, "softmax")
    assert isinstance(linear, keras_hub.models.BertTextClassifier)
    x = inputs_of("Bert")
    np.testing.assert_allclose(
        linear.predict(x, verbose=0), task.predict(x, verbose=0), atol=1e-5
    )
