"""The pages do what they say, and their table is the command's."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import pytest

from keras_linattn import models
from keras_linattn import testing
from keras_linattn.mechanisms import _registry

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "write_your_own_mechanism.md"
BEGIN, END = "<!-- mechanisms -->", "<!-- /mechanisms -->"


@pytest.fixture
def forget_after():
    """Lets a page register names that no other test sees."""
    custom = keras.saving.get_custom_objects()
    places = (_registry._CLASSES, custom)
    before = [dict(place) for place in places]
    yield
    for place, content in zip(places, before):
        place.clear()
        place.update(content)


def python_blocks(path):
    """The page's Python code; line numbers in errors are the page's."""
    text = path.read_text(encoding="utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        skipped = text.count("\n", 0, block.start(1))
        yield compile("\n" * skipped + block[1], str(path), "exec")


@pytest.mark.once
def test_the_page_runs(forget_after, capsys):
    namespace = {"__name__": "my_project"}
    blocks = list(python_blocks(PAGE))
    assert len(blocks) == 7
    for block in blocks:
        exec(block, namespace)
    printed = re.findall(r"\(.*?\)", capsys.readouterr().out)
    assert printed == 4 * ["(2, 10, 16)"]


@pytest.mark.once
def test_the_page_is_checked_in_earnest(forget_after):
    """The suite finds the fault that the page warns of."""
    formula, reference, *_ = python_blocks(PAGE)
    namespace = {"__name__": "my_project"}
    exec(formula, namespace)
    exec(reference, namespace)
    namespace["SMALLEST"] = 0
    reference = namespace["softplus_reference"]
    with pytest.raises(AssertionError, match="do_not_count_as_empty"):
        testing.check_mechanism("softplus_kernel", reference)


def test_variable_lengths_page():
    """Batches have few shapes; `fit` is run where nothing is compiled."""
    namespace = {}
    dataset, fit = python_blocks(ROOT / "docs" / "variable_lengths.md")
    exec(dataset, namespace)
    rows = [list(range(1, n + 1)) for n in range(2, 302)]
    batches = namespace["Buckets"](rows, 8)
    shapes = set()
    for x, y in (batches[i] for i in range(len(batches))):
        shapes.add(x.shape)
        assert (x[:, 1:] == y[:, :-1]).all()
        assert ((y > 0).sum(1) == y.max(1) - 1).all()
    assert shapes == {(8, 64), (8, 128), (8, 256), (8, 512)}
    if keras.backend.backend() == "torch":
        exec(fit, namespace)
        assert namespace["model"].optimizer.iterations > 0


GUIDES = ("index", "install", "from_softmax", "how_it_works", "masks")
GUIDES += ("streaming", "language_models", "images", "audio", "time_series")
GUIDES += ("two_modalities",)


@pytest.mark.once
@pytest.mark.parametrize("name", GUIDES)
def test_guide_runs(name, tmp_path, monkeypatch):
    if name == "language_models":
        pytest.importorskip("keras_hub")
    monkeypatch.chdir(tmp_path)  # some write files
    namespace = {}
    blocks = list(python_blocks(ROOT / "docs" / f"{name}.md"))
    assert blocks
    for block in blocks:
        exec(block, namespace)


@pytest.mark.release
@pytest.mark.once
def test_serving_page(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_serving")
    monkeypatch.chdir(tmp_path)
    models.TextClassifier(2, hidden_dim=16, num_layers=1).save(
        "classifier.keras"
    )
    namespace = {}
    for block in python_blocks(ROOT / "docs" / "serving.md"):
        exec(block, namespace)
    assert (tmp_path / "models" / "topics" / "2" / "saved_model.pb").is_file()


@pytest.mark.once
def test_no_page_with_code_is_left_out():
    """Every page with Python code is run by a test of this file."""
    text = pathlib.Path(__file__).read_text(encoding="utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        if "```python" in path.read_text(encoding="utf-8"):
            named = path.name in text or path.stem in GUIDES
            assert named, f"no test runs {path.name}"


@pytest.mark.once
def test_modern_blocks_page(capsys):
    pytest.importorskip("keras_hub")
    namespace = {}
    for block in python_blocks(ROOT / "docs" / "modern_blocks.md"):
        exec(block, namespace)
    logits, layer = "(None, None, 257)\n", "(1, 6, 64)\n"
    assert capsys.readouterr().out == logits + 2 * layer + logits


@pytest.mark.once
def test_packing_page():
    namespace = {}
    for block in python_blocks(ROOT / "docs" / "packing.md"):
        exec(block, namespace)
    assert namespace["means"].shape == (2, 2, 16)


@pytest.mark.once
def test_several_devices_page():
    """On 4 devices: tests/distribution/test_several.py."""
    namespace = {}
    for block in python_blocks(ROOT / "docs" / "several_devices.md"):
        exec(block, namespace)
    assert namespace["model"].optimizer.iterations > 0


@pytest.mark.once
def test_mixed_stacks_page():
    pytest.importorskip("keras_hub")
    namespace = {}
    for block in python_blocks(ROOT / "docs" / "mixed_stacks.md"):
        exec(block, namespace)
    assert namespace["text"].startswith("exact ")
    assert namespace["logits"].shape == (1, 257)


@pytest.mark.once
def test_linearize_page(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in python_blocks(ROOT / "docs" / "linearize.md"):
        exec(block, namespace)
    assert "hedgehog" in capsys.readouterr().out
    assert (tmp_path / "linear.keras").is_file()


@pytest.mark.once
def test_distillation_page(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in python_blocks(ROOT / "docs" / "distillation.md"):
        exec(block, namespace)
    assert "['transfer', 'finetune']" in capsys.readouterr().out
    assert list(namespace["errors"]) == ["attention"]


@pytest.mark.release
@pytest.mark.once
def test_the_table_is_the_command_s():
    page = ROOT / "docs" / "mechanisms.md"
    text = page.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1, (
        f"mechanisms.md must hold {BEGIN} and {END}, once each, with what "
        "`keras-linattn list --format markdown` prints between them"
    )
    table = text.partition(BEGIN)[2].partition(END)[0]
    # A process of its own: other tests register mechanisms.
    child = subprocess.run(
        [sys.executable, "-m", "keras_linattn_cli.main"]
        + ["list", "--format", "markdown"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    assert table.strip() == child.stdout.strip(), (
        "run `keras-linattn list --format markdown` and put what it prints "
        f"between {BEGIN} and {END} of docs/mechanisms.md"
    )
