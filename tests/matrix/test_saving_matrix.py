"""A sample of the saving matrix is as it was; at a release, it is whole.

Runs once, after the tests of the backends: the tool starts its own processes.
"""

import pathlib
import re
import sys

import pytest
from helpers import FAMILIES

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import _saving_formats  # noqa: E402  (after the path above)
import _saving_reasons  # noqa: E402
import _saving_report  # noqa: E402
import saving_matrix  # noqa: E402
from _saving_formats import FORMATS  # noqa: E402
from _saving_formats import KEPT  # noqa: E402
from _saving_models import VARIANTS  # noqa: E402
from _saving_reasons import GREEN  # noqa: E402
from _saving_reasons import REASONS  # noqa: E402

from keras_linattn import mechanisms  # noqa: E402

NAMES = mechanisms.available()
CONTENT = saving_matrix.read(ROOT / "docs" / "saving_matrix.json")
CELLS = CONTENT["cells"]


def sample():
    """(format, mechanism, variant) of what is computed anew.

    Every mechanism's `.keras` file in float32, and each of them once more in
    a format and a variant that go round; an export of each format.
    """
    quick = (*KEPT, "clone")
    jobs = dict.fromkeys(("keras", name, "float32") for name in NAMES)
    for number, name in enumerate(NAMES):
        form = quick[number % len(quick)]
        variant = VARIANTS[number // len(quick) % len(VARIANTS)]
        jobs[form, name, variant] = None
    exports = [form for form in FORMATS if form not in quick]
    for number, form in enumerate(exports):
        name = NAMES[number * len(NAMES) // len(exports)]
        jobs[form, name, VARIANTS[number % len(VARIANTS)]] = None
    return list(jobs)


SAMPLE = sample()
# What each change tries: the files that a user keeps. The others' golden files
# load under each backend, see tests/test_golden.py.
OFTEN = [("keras", name, "float32") for name in FAMILIES]


@pytest.fixture(scope="session")
def computed(request):
    """The cells of the tests that are run, all by the same processes."""
    jobs = [
        item.callspec.params["job"]
        for item in request.session.items
        if "computed" in item.fixturenames
    ]
    return saving_matrix.compute(
        [job for job in jobs if not _saving_formats.missing(job[0])]
    )


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(
            job,
            id="-".join(job),
            marks=[] if job in OFTEN else [pytest.mark.release],
        )
        for job in SAMPLE
    ],
)
def test_cell_is_as_it_was(job, computed):
    lacking = _saving_formats.missing(job[0])
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}")
    assert sorted(computed[job]) == sorted(saving_matrix.pairs(job[0]))
    if job[1] not in CELLS[job[0]]:  # it gets its row at a release
        assert set(computed[job].values()) == {GREEN}
        return
    changed = saving_matrix.differing(CONTENT, {job: computed[job]})
    assert not list(changed), "run tools/saving_matrix.py"


def test_sample_has_everything():
    for values, place in ((FORMATS, 0), (NAMES, 1), (VARIANTS, 2)):
        assert {job[place] for job in SAMPLE} == set(values)


# --- The files


@pytest.mark.release
@pytest.mark.parametrize("form", FORMATS)
def test_table_is_whole(form):
    assert list(CELLS[form]) == NAMES
    for row in CELLS[form].values():
        assert list(row) == list(VARIANTS)
        for outcome in row.values():
            found = saving_matrix.expanded(form, outcome)
            assert sorted(found) == sorted(saving_matrix.pairs(form))


def outcomes():
    for form, rows in CELLS.items():
        for name, row in rows.items():
            for variant, cell in row.items():
                for pair, found in saving_matrix.expanded(form, cell).items():
                    yield form, name, variant, pair, found


def test_every_refusal_is_explained_and_every_reason_used():
    used = {outcome for *_, outcome in outcomes()} - {GREEN}
    assert used == {reason.key for reason in REASONS}


def test_what_must_be_green():
    """What the package promises, whatever the table says."""
    for form, name, variant, pair, outcome in outcomes():
        promised = form in ("keras", "weights", "tf_saved_model") or (
            form in ("config", "clone") and variant != "lora"
        )
        if promised:
            assert outcome == GREEN, (form, name, variant, pair)


@pytest.mark.release
def test_page_is_that_of_the_cells():
    page = (ROOT / "docs" / "saving_matrix.md").read_text(encoding="utf-8")
    expected = _saving_report.page(CONTENT, saving_matrix.expanded)
    assert page == expected, "run tools/saving_matrix.py"


@pytest.mark.release
def test_versions_are_those_that_are_pinned():
    text = (ROOT / "tools" / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.M))
    assert {"keras", "tensorflow", "jax", "torch"} <= set(pins)
    for package, version in CONTENT["versions"].items():
        pinned = pins.get(package, version)
        assert version.partition("+")[0] == pinned.partition("+")[0], (
            "run tools/saving_matrix.py"
        )


# --- The tool


def test_change_is_seen():
    form, name, variant = "keras", NAMES[0], "float32"
    cells = {(form, name, variant): {("jax", "torch"): "other"}}
    lines = list(saving_matrix.differing(CONTENT, cells))
    assert lines == [
        f"keras, {name}, float32, jax > torch: 'green' is now 'other'"
    ]


def test_rows_are_merged():
    kept = {"versions": {}, "cells": {"clone": {"no more": {}, NAMES[0]: {}}}}
    pairs = list(saving_matrix.pairs("clone"))
    outcomes = {**dict.fromkeys(pairs, GREEN), pairs[1]: "other"}
    cells = {("clone", NAMES[0], "int8"): outcomes}
    row = saving_matrix.merged(kept, cells)["cells"]["clone"]
    assert list(row) == NAMES[:1]
    assert saving_matrix.expanded("clone", row[NAMES[0]]["int8"]) == outcomes
    assert saving_matrix.collapsed(dict.fromkeys(pairs, GREEN)) == GREEN


def test_unknown_error_is_not_explained():
    found = _saving_reasons.key_of("keras", "jax", "OSError: new")
    assert found == "unexplained: OSError: new"
    assert _saving_reasons.key_of("keras", "jax", GREEN) == GREEN


DIES = """
import json, os, pathlib, signal, sys
cells = pathlib.Path(sys.argv[3], f"{sys.argv[1]}-torch.jsonl")
if not cells.exists():
    cells.with_suffix(".now").write_text(json.dumps(["litert", "broken off"]))
    os.kill(os.getpid(), signal.SIGKILL)
with cells.open("a") as file:
    file.write(json.dumps(["litert", "green"]) + "\\n")
"""


def test_a_runtime_that_ends_the_process_leaves_the_other_cells(
    tmp_path, monkeypatch
):
    worker = tmp_path / "worker.py"
    worker.write_text(DIES)
    monkeypatch.setattr(saving_matrix, "WORKER", worker)
    cells = saving_matrix.work("save", "torch", tmp_path, print)
    assert cells == [["litert", "broken off"], ["litert", "green"]]
