"""Saves every mechanism in every format under every backend, and loads it.

    python tools/saving_matrix.py                       # all, about an hour
    python tools/saving_matrix.py --missing             # cells not there yet
    python tools/saving_matrix.py --mechanism softmax   # these rows only
    python tools/saving_matrix.py --check               # all; writes nothing

Writes saving_matrix.json, the cells, and saving_matrix.md, the table of them.
It writes them after every few mechanisms, so that `--missing` goes on where a
run was stopped. One process for each backend saves and then one each loads, two
at a time. Beside the packages of tools/constraints.txt it needs openvino and
those of the extra `onnx`.
"""

import argparse
import concurrent.futures
import functools
import importlib.metadata
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = pathlib.Path(__file__).parents[1]

import _process  # noqa: E402  (after the choice of a backend)
import _saving_report  # noqa: E402  (after the choice of a backend)
from _saving_formats import BACKENDS  # noqa: E402
from _saving_formats import FORMATS  # noqa: E402
from _saving_formats import KEPT  # noqa: E402
from _saving_formats import PACKAGES  # noqa: E402
from _saving_formats import loaded_under  # noqa: E402
from _saving_formats import missing  # noqa: E402
from _saving_models import VARIANTS  # noqa: E402
from _saving_reasons import key_of  # noqa: E402

from keras_linattn import mechanisms  # noqa: E402

WORKER = pathlib.Path(__file__).with_name("_saving_worker.py")
SLOWEST_FIRST = ("jax", "torch", "tensorflow")
AT_ONCE = 6  # mechanisms between two writes


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    names = mechanisms.available()
    parser.add_argument(
        "--mechanism", nargs="+", choices=names, default=names, metavar="NAME"
    )
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--missing",
        action="store_true",
        help="only cells that saving_matrix.json does not have",
    )
    which.add_argument(
        "--check",
        action="store_true",
        help="compare with the files, write nothing, exit with 1 if they "
        "differ",
    )
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs")
    return parser.parse_args(arguments)


def pairs(form):
    """All (saved under, loaded under) of a format."""
    for saved in BACKENDS:
        for loaded in loaded_under(form, saved):
            yield saved, loaded


def versions(before):
    """{package: version} of all that decides a cell, `before` if not here."""
    packages = {"keras", *BACKENDS, *itertools.chain(*PACKAGES.values())}
    lacking = {name for form in FORMATS for name in missing(form)}
    known = {name: x for name, x in before.items() if name in packages}
    for name in packages - lacking:
        known[name] = importlib.metadata.version(name)
    return dict(sorted(known.items()))


def compute(jobs, say=lambda line: None):
    """Runs the workers.

    Args:
        jobs: list of (format, mechanism, variant).
        say: takes a line for each process that is done.

    Returns:
        dict {(format, mechanism, variant): {(saved under, loaded under):
        `GREEN` or the key of a reason}}.

    Raises:
        RuntimeError: if a process fails; what a model or a format refuses is
            an outcome.
    """
    cells = {job: {} for job in jobs}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "jobs.json").write_text(json.dumps(list(jobs)))
        kept = any(form in KEPT for form, *_ in jobs)
        for phase in ("save", "load") if kept else ("save",):
            search = functools.partial(work, phase, folder=folder, say=say)
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                found = list(pool.map(search, SLOWEST_FIRST))
            for *job, saved, loaded, outcome in itertools.chain(*found):
                key = key_of(job[0], saved, outcome)
                cells[tuple(job)][saved, loaded] = key
    return cells


def work(phase, backend, folder, say):
    """The cells that one process finds."""
    start = time.monotonic()
    environment = {
        # Most of the time would go to XLA's compiler.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    cells = folder / f"{phase}-{backend}.jsonl"
    worker = [WORKER, phase, folder / "jobs.json", folder]
    while True:
        try:
            _process.run(worker, environment)
            break
        except _process.Killed:  # the next worker goes on after that cell
            cell = cells.with_suffix(".now").read_text(encoding="utf-8")
            with cells.open("a", encoding="utf-8") as file:
                file.write(cell + "\n")
    say(f"{phase} {backend}: {time.monotonic() - start:.0f} s")
    lines = cells.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read(path):
    """The content of saving_matrix.json; that of no file is empty."""
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"versions": {}, "cells": {}}


def merged(content, cells):
    """`content` with new cells, and without mechanisms that are no more."""
    known = set(mechanisms.available())
    new = {
        form: {name: row for name, row in rows.items() if name in known}
        for form, rows in content["cells"].items()
    }
    for (form, name, variant), outcomes in cells.items():
        row = new.setdefault(form, {}).setdefault(name, {})
        row[variant] = collapsed(outcomes)
    ordered = {
        form: {
            name: {v: rows[name][v] for v in VARIANTS if v in rows[name]}
            for name in sorted(rows)
        }
        for form in FORMATS
        if (rows := new.get(form))
    }
    return {"versions": versions(content["versions"]), "cells": ordered}


def collapsed(outcomes):
    """One outcome if all are the same, else {"saved > loaded": outcome}."""
    if len(set(outcomes.values())) == 1:
        return next(iter(outcomes.values()))
    return {" > ".join(pair): outcomes[pair] for pair in sorted(outcomes)}


def expanded(form, outcome):
    """The opposite of `collapsed`: {(saved, loaded): outcome}."""
    if isinstance(outcome, str):
        return dict.fromkeys(pairs(form), outcome)
    return {tuple(pair.split(" > ")): o for pair, o in outcome.items()}


def text_of(content):
    """JSON with a line for each mechanism in each format."""
    forms = ",\n".join(
        f"  {json.dumps(form)}: {{\n"
        + ",\n".join(
            f"   {json.dumps(name)}: {json.dumps(row)}"
            for name, row in rows.items()
        )
        + "\n  }"
        for form, rows in content["cells"].items()
    )
    made_with = json.dumps(content["versions"])
    return f'{{\n "versions": {made_with},\n "cells": {{\n{forms}\n }}\n}}\n'


def differing(content, cells):
    """Lines about cells that are not those of `content`."""
    for (form, name, variant), outcomes in cells.items():
        row = content["cells"].get(form, {}).get(name, {})
        known = expanded(form, row.get(variant, {}))
        for pair, outcome in outcomes.items():
            if known.get(pair) != outcome:
                where = f"{form}, {name}, {variant}, {' > '.join(pair)}"
                yield f"{where}: {known.get(pair)!r} is now {outcome!r}"


def main(arguments=None):
    options = parse(arguments)
    lacking = sorted({p for form in options.format for p in missing(form)})
    if lacking:
        raise SystemExit(
            "The matrix needs the packages of its formats. Received: no "
            f"{', '.join(lacking)}. Run `pip install {' '.join(lacking)}`."
        )
    path = options.out / "saving_matrix.json"
    content = read(path)
    jobs = list(itertools.product(options.format, options.mechanism, VARIANTS))
    if options.check:
        lines = list(differing(content, compute(jobs, print)))
        print("\n".join(lines) or "All cells are as they were.")
        return 1 if lines else 0
    if options.missing:
        jobs = [job for job in jobs if not is_known(content, *job)]
    names = list(dict.fromkeys(name for _, name, _ in jobs))
    for start in range(0, len(names), AT_ONCE):
        now = names[start : start + AT_ONCE]
        print(", ".join(now), flush=True)
        cells = compute([job for job in jobs if job[1] in now], print)
        content = merged(content, cells)
        write(path, content)
    print(f"Files in {options.out}")
    return 0


def is_known(content, form, name, variant):
    return variant in content["cells"].get(form, {}).get(name, {})


def write(path, content):
    path.write_text(text_of(content), encoding="utf-8")
    page = _saving_report.page(content, expanded)
    path.with_suffix(".md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
