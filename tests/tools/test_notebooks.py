"""The notebooks of the site are those of the examples, and run."""

import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NAMES = sorted(
    x.stem for x in (ROOT / "examples").glob("*.py") if x.stem != "data"
)
pytestmark = pytest.mark.once


@pytest.fixture
def notebooks(monkeypatch):
    for package in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(package, reason="needs the extra `docs`")
    monkeypatch.syspath_prepend(str(ROOT))
    from tools import notebooks

    return notebooks


def test_the_notebooks_are_those_of_the_examples(notebooks):
    import nbformat

    written = {path.stem for path in notebooks.FOLDER.glob("*.ipynb")}
    assert written == set(NAMES)
    for name in NAMES:
        script = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
        wanted = [
            (cell.cell_type, cell.source)
            for cell in notebooks.to_notebook(script).cells
        ]
        read = nbformat.read(notebooks.FOLDER / f"{name}.ipynb", 4)
        found = [(cell.cell_type, cell.source) for cell in read.cells]
        assert found == wanted, "run python -m tools.notebooks"


def test_a_script_becomes_cells(notebooks):
    script = (
        '"""Title.\n\nAbout.\n"""\n\nimport x\n\n# ## Head\n# text\ny = 1\n'
    )
    cells = notebooks.to_notebook(script).cells
    assert [cell.source for cell in cells] == [
        "# Title\n\nAbout.",
        "import x",
        "## Head\ntext",
        "y = 1",
    ]


def test_a_progress_bar_that_comes_in_parts_shows_its_end(notebooks):
    from nbformat.v4 import new_output

    parts = ("1/2 loss: 3", "\b\b\r\x1b[1m2/2\x1b[0m loss: 1\n", "Done.\n")
    outputs = [new_output("stream", name="stdout", text=x) for x in parts]
    outputs.append(new_output("stream", name="stderr", text="a log line"))
    history = {"text/plain": "<keras.src.callbacks.history.History at 0x1>"}
    outputs.append(new_output("execute_result", data=history))
    (shown,) = notebooks.shown(outputs)
    assert shown.text == "2/2 loss: 1\nDone.\n"


def test_the_site_names_the_options_of_a_run(notebooks):
    pytest.importorskip("nbconvert", reason="needs the extra `docs`")
    from tools.site.sources import about_outputs

    ran = {"metadata": {"options": []}, "cells": [{"outputs": ["1"]}]}
    assert "those of one run on two" in about_outputs(ran)
    ran["metadata"]["options"] = ["--epochs", "2"]
    assert "those of one run with `--epochs 2` on" in about_outputs(ran)
    ran["metadata"]["options"] = ["--smoke"]
    assert "a tiny run" in about_outputs(ran)
    assert about_outputs({"metadata": {}, "cells": [{"outputs": []}]}) == ""


@pytest.mark.release
@pytest.mark.filterwarnings("default")  # of Jupyter's packages
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(notebooks, name, tmp_path, monkeypatch):
    from nbclient.exceptions import CellExecutionError

    arguments = ["notebooks", "--execute", name, "--smoke"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path)])
    try:
        notebooks.main()
    except CellExecutionError as error:  # its message says what to install
        if error.ename not in ("ImportError", "FileNotFoundError"):
            raise
        pytest.skip(error.evalue)
    text = (tmp_path / f"{name}.ipynb").read_text(encoding="utf-8")
    assert "image/png" in text and re.search(r"\d s\. ", text)
