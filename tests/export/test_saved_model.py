"""`export_saved_model`: what it writes runs elsewhere; what it refuses."""

import dataclasses
import functools
import importlib
import importlib.util
import os
import pathlib
import textwrap
from collections.abc import Callable

import keras
import numpy as np
import pytest
from exported import contents
from exported import outputs_of
from exported import run_c_api
from helpers import FAMILIES
from helpers import cases_of
from helpers import predict

from keras_linattn import LinearSelfAttention
from keras_linattn import mechanisms
from keras_linattn.export import export_saved_model
from keras_linattn.export.saved_model import _move_into_place
from keras_linattn.layers import MaskedAveragePooling
from keras_linattn.models import AudioClassifier
from keras_linattn.models import TextClassifier
from keras_linattn.models import VisionTransformer

BACKEND = keras.backend.backend()
BATCHES, LENGTHS = (1, 5), (1, 7, 128, 1000)
SHAPES = [(batch, length) for length in LENGTHS for batch in BATCHES]
if BACKEND == "jax":  # which compiles for each: one position, and chunks
    SHAPES = [(1, 1), (5, 130)]
TOLERANCE = 1e-5


def plain_classifier():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(64, 8, mask_zero=True)(tokens)
    x = keras.layers.Dropout(0.1)(x)
    x = keras.layers.Dense(8, activation="gelu")(x)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, keras.layers.Dense(3)(x))


def token_batch(batch, length):
    generator = np.random.default_rng(length)
    tokens = generator.integers(1, 64, (batch, length), dtype=np.int32)
    tokens[0, length // 2 + 1 :] = 0  # padding
    return {"tokens": tokens}


@dataclasses.dataclass
class Case:
    """A model of one input, and that by name for (batch, length)."""

    build: Callable
    inputs: Callable = token_batch


def text_classifier(mechanism="modified_linformer", num_layers=1, **options):
    return TextClassifier(
        num_classes=3,
        vocabulary_size=64,
        hidden_dim=16,
        num_layers=num_layers,
        num_heads=2,
        num_buckets=64,
        embedding_dim=8,
        merge_factor=2,
        mechanism=mechanism,
        **options,
    )


def decoder(mechanism):
    """Causal self-attention, without models around it."""
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32", name="tokens"),
            keras.layers.Embedding(64, 8, mask_zero=True),
            LinearSelfAttention(2, 4, mechanism=mechanism, causal=True),
            MaskedAveragePooling(),
        ]
    )


def vision_transformer():
    return VisionTransformer(
        num_classes=3, image_shape=(8, 8, 1), hidden_dim=16, num_layers=1
    )


def image_batch(batch, length):
    generator = np.random.default_rng(length)
    return {"images": generator.random((batch, 8, 8, 1), dtype=np.float32)}


def audio_classifier():
    return AudioClassifier(num_classes=3, hidden_dim=16, num_layers=1)


def waveforms(batch, length):
    """Padded, but for the first."""
    generator = np.random.default_rng(length)
    samples = generator.uniform(-1, 1, (batch, length)).astype("float32")
    samples[1:, length // 2 :] = 0
    return {"waveforms": samples}


def identifier(name):
    """The mechanism, told its length if it must know it."""
    needs_length = mechanisms.get(name).traits.needs_length
    return {"name": name} | (
        {"sequence_length": max(LENGTHS)} if needs_length else {}
    )


CASES = {
    "plain": Case(plain_classifier),
    "vision": Case(vision_transformer, image_batch),
    "audio": Case(audio_classifier, waveforms),
    "hourglass": Case(
        functools.partial(text_classifier, num_layers=2, hourglass_factor=3)
    ),
    **{
        name: Case(functools.partial(text_classifier, identifier(name)))
        for name in mechanisms.available()
        if mechanisms.get(name).traits.bidirectional
    },
    **{
        f"{name}-causal": Case(functools.partial(decoder, identifier(name)))
        for name in mechanisms.available()
        if mechanisms.get(name).traits.causal
    },
}
if BACKEND == "torch":
    # Each export starts a process under TensorFlow, which loads the `.keras`
    # file; that those load is tested for all in tests/matrix.
    TRIED = ("plain", "linformer", "linear_transformer-causal")
    CASES = {name: CASES[name] for name in TRIED}


def in_families(name):
    """Is it a model, or a mechanism that stands for its like?

    That each mechanism is traced with free sizes, the conformance suite checks.
    """
    others = {*mechanisms.available()} - {*FAMILIES}
    return name.removesuffix("-causal") not in others


@dataclasses.dataclass
class Export:
    path: pathlib.Path
    feeds: list
    expected: list  # the model's own outputs, in its own backend


# At a release only: `plain` has the first, and each is exported causally.
ALIKE = {"modified_linformer", "linear_transformer", "local"}
AT_EACH_LANDING = {name for name in CASES if in_families(name)} - ALIKE


@pytest.fixture(scope="module", params=cases_of(CASES, AT_EACH_LANDING))
def export(request, tmp_path_factory):
    keras.utils.set_random_seed(0)
    case = CASES[request.param]
    model = case.build()
    feeds = [case.inputs(*shape) for shape in SHAPES]
    expected = outputs_of(model, feeds)
    path = tmp_path_factory.mktemp("exports") / request.param
    return Export(export_saved_model(model, path), feeds, expected)


class Unexportable(keras.layers.Layer):
    """Fails in the exporter's trace; under torch the child lacks it."""

    exporting = False

    def call(self, inputs):
        if self.exporting:
            raise RuntimeError("unexportable")
        return inputs


def unexportable_model():
    layer = Unexportable()
    model = keras.Sequential([keras.Input((2,)), layer])
    layer.exporting = True
    return model


# --- What is written


@pytest.mark.parametrize("export", ["plain", "linformer"], indirect=True)
def test_runs_in_tensorflow(export):
    """All of them run in its C API, which is below its Python."""
    tf = pytest.importorskip("tensorflow")
    serve = tf.saved_model.load(export.path).signatures["serving_default"]
    for feed, expected in zip(export.feeds[:2], export.expected):
        tensors = {name: tf.constant(value) for name, value in feed.items()}
        output = serve(**tensors)["output_0"].numpy()
        np.testing.assert_allclose(output, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def served(export, tmp_path_factory):
    """The outputs by the C API, and what its script printed."""
    return run_c_api(export.path, export.feeds, tmp_path_factory.mktemp("c"))


def test_runs_without_python_tensorflow_and_keras(export, served):
    outputs, report = served
    forbidden = {"keras", "keras_linattn", "tensorflow", "jax", "torch"}
    assert not forbidden & set(report["modules"])
    for output, expected in zip(outputs, export.expected, strict=True):
        np.testing.assert_allclose(
            output["output_0"], expected, rtol=0, atol=TOLERANCE
        )


def test_batch_and_length_are_free_in_the_signature(export, served):
    inputs = served[1]["signature"]["inputs"]
    assert set(inputs) == set(export.feeds[0])
    for name, info in inputs.items():
        varying = np.not_equal(
            export.feeds[0][name].shape, export.feeds[-1][name].shape
        )
        assert [size == -1 for size in info["shape"]] == varying.tolist()


def test_only_the_export_is_left_in_the_parent(export):
    assert list(export.path.parent.iterdir()) == [export.path]


def test_overwrite_replaces_a_saved_model(tmp_path, capfd):
    path = tmp_path / "deep" / "model"
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_text("old")
    (path / "leftover").write_text("old")
    returned = export_saved_model(
        plain_classifier(), str(path), overwrite=True, verbose=True
    )
    assert returned == path
    assert not (path / "leftover").exists()
    assert (path / "saved_model.pb").stat().st_size > 1000
    assert list(path.parent.iterdir()) == [path]
    assert f"'{path}'" in capfd.readouterr().out


@pytest.mark.usefixtures("own_process")
def test_custom_layer_of_another_package(tmp_path, monkeypatch):
    source = """
        import keras

        @keras.saving.register_keras_serializable("third_party")
        class Doubled(keras.layers.Layer):
            def call(self, inputs):
                return 2 * inputs
        """
    (tmp_path / "third_party.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    third_party = importlib.import_module("third_party")
    inputs = keras.Input((2,), name="x")
    model = keras.Model(inputs, third_party.Doubled()(inputs))
    path = export_saved_model(model, tmp_path / "model")
    x = np.ones((3, 2), "float32")
    outputs, _ = run_c_api(path, [{"x": x}], tmp_path)
    np.testing.assert_array_equal(outputs[0]["output_0"], 2 * x)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="strings need TensorFlow")
def test_vocabulary_and_string_input(tmp_path):
    words = keras.layers.TextVectorization(vocabulary=["linear", "attention"])
    text = keras.Input((), dtype="string", name="text")
    path = export_saved_model(
        keras.Model(text, words(text)), tmp_path / "model"
    )
    feed = {"text": np.array([b"linear attention", b"a very long other word"])}
    outputs, _ = run_c_api(path, [feed], tmp_path)
    np.testing.assert_array_equal(
        outputs[0]["output_0"], [[2, 3, 0, 0, 0], [1, 1, 1, 1, 1]]
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a layer of TensorFlow")
def test_lookup_table_of_an_own_layer(tmp_path):
    import tensorflow as tf

    class Table(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            keys = tf.constant([3, 4], "int64")
            self.table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(keys, keys * 10), -1
            )

        def call(self, inputs):
            return self.table.lookup(inputs)

    inputs = keras.Input((None,), dtype="int64", name="x")
    path = export_saved_model(
        keras.Model(inputs, Table()(inputs)), tmp_path / "model"
    )
    outputs, _ = run_c_api(path, [{"x": np.array([[3, 5, 4]])}], tmp_path)
    np.testing.assert_array_equal(outputs[0]["output_0"], [[30, -1, 40]])


@pytest.mark.skipif(BACKEND == "torch", reason="refused, see below")
def test_subclassed(tmp_path):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    model, x = Subclassed(), np.ones((3, 4), "float32")
    expected = predict(model, x)
    path = export_saved_model(model, tmp_path / "model")
    served = pytest.importorskip("tensorflow").saved_model.load(path)
    np.testing.assert_allclose(served.serve(x), expected, rtol=0, atol=1e-6)


# --- What is refused, and what a failure leaves


def test_not_a_model(tmp_path):
    with pytest.raises(TypeError, match="of type Dense.*Wrap a layer"):
        export_saved_model(keras.layers.Dense(1), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_not_built(tmp_path):
    model = keras.Sequential([keras.layers.Dense(1)], name="bare")
    with pytest.raises(ValueError, match="'bare', not built. Start it with"):
        export_saved_model(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(BACKEND != "torch", reason="others export it")
def test_subclassed_under_torch(tmp_path):
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    model = Subclassed(name="sub")
    model(np.ones((2, 3), "float32"))
    with pytest.raises(ValueError, match="Received: Subclassed 'sub'. Wrap it"):
        export_saved_model(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_url():
    with pytest.raises(ValueError, match="path='gs://bucket/1'. Export to a"):
        export_saved_model(plain_classifier(), "gs://bucket/1")


@pytest.mark.parametrize("kind", ["file", "folder", "broken link"])
def test_path_exists(tmp_path, kind):
    path = tmp_path / "model"
    if kind == "file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="exists. Choose another path"):
        export_saved_model(plain_classifier(), path)
    assert list(tmp_path.iterdir()) == [path]


def test_overwrite_keeps_what_is_not_a_saved_model(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="has no `saved_model.pb`"):
        export_saved_model(plain_classifier(), tmp_path, overwrite=True)
    assert contents(tmp_path) == {pathlib.Path("thesis.tex"): b"years of work"}


def test_tensorflow_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"pip install keras-linattn\[tensorflow\]"
    ):
        export_saved_model(plain_classifier(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_failure_leaves_the_old_export(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "saved_model.pb").write_text("old")
    with pytest.raises(RuntimeError) as raised:
        export_saved_model(unexportable_model(), path, overwrite=True)
    assert contents(tmp_path) == {pathlib.Path("model/saved_model.pb"): b"old"}
    assert list(tmp_path.iterdir()) == [path]
    if BACKEND == "torch":
        message = str(raised.value)
        assert "Could not locate class 'Unexportable'" in message
        assert "@keras.saving.register_keras_serializable()" in message
        assert "Traceback" in message


def test_failed_rename_puts_the_old_export_back(tmp_path, monkeypatch):
    new, old, path = tmp_path / "new", tmp_path / "old", tmp_path / "model"
    for folder in (new, path):
        folder.mkdir()
        (folder / "saved_model.pb").write_text(folder.name)
    rename = os.rename

    def rename_but_new(source, target):
        if source == new:
            raise OSError("disk trouble")
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_but_new)
    with pytest.raises(OSError, match="disk trouble"):
        _move_into_place(new, path, old)
    assert (path / "saved_model.pb").read_text() == "model"
    assert not old.exists()
