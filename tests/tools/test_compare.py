"""The comparison runs, resumes, reports failures and keeps what is by hand."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROJECTED = {"name": "modified_linformer", "reading": "projected"}
SETTINGS = {"text": {"epochs": 1, "smoke": False}}

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytestmark = pytest.mark.once


@pytest.fixture
def report(monkeypatch):
    """The module `tools/_compare_report.py`."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    # Importing `_common` registers a mechanism, once in a process.
    stand_in = type(sys)("_common")
    stand_in.label_of = lambda x: x if isinstance(x, str) else x["name"] + "-p"
    monkeypatch.setitem(sys.modules, "_common", stand_in)
    yield importlib.import_module("_compare_report")
    del sys.modules["_compare_report"]


def run(mechanism, accuracy, seed=0, **settings):
    return {
        "task": "text",
        "mechanism": mechanism,
        "seed": seed,
        "backend": "jax",
        "settings": {**SETTINGS["text"], **settings},
        "parameters": 1234,
        "test_accuracy": accuracy,
        "peak_mb": 10.0,
        "steps": 5,
        "seconds_per_epoch": [1.0, 2.0],
        "machine": {"processor": "a processor", "cores": 2},
    }


def content():
    return {
        "commands": ["python tools/compare.py"],
        "runs": [
            run("softmax", 0.5),
            run("linformer", 0.7, seed=0),
            run("linformer", 0.8, seed=1),
            run("linformer", 0.1, seed=0, epochs=9),  # another budget
            {**run("linformer", 0.1), "backend": "torch"},
            run(PROJECTED, 0.6),
        ],
        "times": [
            {
                "task": "text",
                "settings": SETTINGS["text"],
                "backend": "jax",
                "mechanisms": ["softmax", "linformer", PROJECTED],
                # The second round was slow for all: the ratios do not care.
                "milliseconds": [[10, 100, 10], [5, 50, 5], [20, 200, 20]],
                "batch_shape": [2, 8],
                "tokens": 8,
                "rounds": 3,
            }
        ],
    }


def test_rows_are_sorted_and_of_one_budget(report):
    chosen = report.select(content(), "text", SETTINGS["text"], "jax")
    rows = report.rows_of(*chosen)
    names = [row["mechanism"] for row in rows]
    assert names == ["linformer", "modified_linformer-p", "softmax"]
    assert rows[0]["accuracies"] == [70, 80]
    assert rows[0]["accuracy"] == pytest.approx(75)
    assert [row["ratio"] for row in rows] == [0.5, 2, 1]
    assert [row["step_ms"] for row in rows] == [5, 20, 10]


def test_page_keeps_what_is_by_hand(report, tmp_path):
    report.write(content(), SETTINGS, "jax", tmp_path / "comparison")
    path = tmp_path / "comparison.md"
    text = path.read_text(encoding="utf-8")
    assert (
        "| `linformer` | 75.0 (70.0 to 80.0) | 2 | 1,234 | 3 | 5 | 0.50 |"
        in text
    )
    assert (tmp_path / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    path.write_text(text + "\nWritten by hand.\n", encoding="utf-8")
    report.write(content(), SETTINGS, "jax", tmp_path / "comparison")
    assert path.read_text(encoding="utf-8") == text + "\nWritten by hand.\n"


def test_page_has_what_was_trained_on_more_than_one_backend(report):
    text = report.backends(content(), SETTINGS)
    assert text.count("##") == 1 and "`linformer` on each backend" in text
    assert "| jax | 75.0 (70.0 to 80.0) | 2 | 3 |" in text
    assert "| torch | 10.0 | 1 | 3 |" in text


def test_page_without_times(report, tmp_path):
    stem = tmp_path / "comparison"
    report.write({**content(), "times": []}, SETTINGS, "jax", stem)
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "| `softmax` | 50.0 | 1 | 1,234 | 3 |  |  | 10 |" in text


def compare(out, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "compare.py"), "--smoke"]
        + ["--out", str(out), "--task", "images", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend"
)
def test_smoke_run_and_again(tmp_path):
    # A grid that does not fit the images: one training must fail, alone.
    wrong = {"name": "agent", "grid": [3, 5]}
    names = ["linear_transformer", json.dumps(wrong)]
    child = compare(tmp_path, "--no-times", "--mechanism", *names)
    assert child.returncode == 1, child.stderr
    assert "failed: images, agent" in child.stdout
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert len(result["runs"]) == 1
    first = result["runs"][0]
    assert 0 <= first["test_accuracy"] <= 1 and first["peak_mb"] > 0

    child = compare(tmp_path, "--rounds", "2", "--mechanism", *names[:1])
    assert child.returncode == 0, child.stderr
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert result["runs"] == [first]  # not trained again
    times = result["times"][0]["milliseconds"]
    assert len(times) == 1 and len(times[0]) == 2 and min(times[0]) > 0
    assert len(result["commands"]) == 2
    page = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "| `linear_transformer` |" in page
