"""Trains mechanisms on the pipelines' data, and compares them.

    python tools/compare.py --jobs 2
    python tools/compare.py --budget full --seed 0 1 2 --jobs 2
    python tools/compare.py --smoke --out /tmp/comparison

Same steps, same seeds, same batches for all. The short budget is for all
mechanisms, softmax and no attention among them, and writes comparison.json,
.md and .png; the full one is what the examples train by default, for the
default mechanism and softmax, and writes pipelines.*. Each training is a
process of its own, so that its memory is its own; its result is written as it
comes, and a call that is interrupted goes on where it stopped. Step times come
last, from one process for each task in which the mechanisms take turns.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import _common  # noqa: E402  (after the path above)
import _compare_report  # noqa: E402
import _compare_tasks  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import MofNCompleteColumn  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.progress import TimeElapsedColumn  # noqa: E402

import keras_linattn  # noqa: E402

WORKER = pathlib.Path(__file__).with_name("_compare_worker.py")
# What the defaults of the registered mechanisms leave out.
VARIANTS = ({"name": "modified_linformer", "reading": "projected"},)
COMPARED = ("modified_linformer", "softmax")  # with the full budget
STEMS = {"short": "comparison", "full": "pipelines"}  # of the files
LAST_LINES = 12  # of a run that failed


def _bidirectional():
    """The mechanisms that an encoder can have."""
    return [
        name
        for name in keras_linattn.mechanisms.available()
        if keras_linattn.mechanisms.get(name).traits.bidirectional
    ]


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--budget",
        choices=tuple(_compare_tasks.BUDGETS),
        default="short",
        help="of training: see above",
    )
    parser.add_argument(
        "--task",
        nargs="+",
        choices=tuple(_compare_tasks.TASKS),
        help="all of the budget if left out",
    )
    parser.add_argument(
        "--mechanism",
        nargs="+",
        type=_common.mechanism,
        help="names, or JSON with arguments; those of the budget if left out",
    )
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--rounds",
        type=_common.positive,
        default=5,
        help="in which the mechanisms take turns while steps are timed",
    )
    parser.add_argument(
        "--jobs",
        type=_common.positive,
        default=1,
        help="trainings at the same time, one thread each if more than one",
    )
    parser.add_argument(
        "--no-times", action="store_true", help="only accuracy and memory"
    )
    parser.add_argument("--smoke", action="store_true", help="does it run?")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs")
    options = parser.parse_args(arguments)
    options.settings = _compare_tasks.settings(options.budget, options.smoke)
    options.task = options.task or list(options.settings)
    unknown = set(options.task) - set(options.settings)
    if unknown:
        parser.error(
            f"the {options.budget} budget has the tasks "
            f"{', '.join(options.settings)}. Received: {', '.join(unknown)}."
        )
    if options.mechanism is None:
        short = options.budget == "short"
        everything = [*_bidirectional(), *VARIANTS]
        options.mechanism = everything if short else list(COMPARED)
    return options


class Results:
    """The JSON file: read at the start, written after each result."""

    def __init__(self, path):
        self.path = path
        self.content = {"commands": [], "runs": [], "times": []}
        if path.is_file():
            self.content = json.loads(path.read_text(encoding="utf-8"))

    def add(self, kind, result):
        self.content[kind].append(result)
        text = json.dumps(self.content, indent=1) + "\n"
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.path)  # whole, or not at all

    def has(self, kind, job):
        """Is there a result of this job, by what describes it?"""
        return any(
            all(result.get(name) == value for name, value in job.items())
            for result in self.content[kind]
        )


def training_jobs(options):
    """Seed by seed, so that an early end leaves whole rows."""
    return [
        {
            "task": task,
            "mechanism": identifier,
            "seed": seed,
            "backend": os.environ["KERAS_BACKEND"],
            "settings": options.settings[task],
        }
        for seed in options.seed
        for identifier in options.mechanism
        for task in options.task
    ]


def timing_jobs(options):
    return [
        {
            "task": task,
            "mechanisms": options.mechanism,
            "seed": options.seed[0],
            "backend": os.environ["KERAS_BACKEND"],
            "rounds": options.rounds,
            "settings": options.settings[task],
        }
        for task in options.task
    ]


def run_job(job, one_thread=False):
    """The job and what its process answers; raises `RuntimeError`."""
    threads = dict.fromkeys(
        ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"),
        "1",
    )
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder, "answer.json")
        child = subprocess.run(
            [sys.executable, str(WORKER), json.dumps(job), str(answer)],
            env={**os.environ, **(threads if one_thread else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        if child.returncode:
            lines = child.stdout.splitlines()[-LAST_LINES:]
            raise RuntimeError("\n".join(lines))
        return {**job, **json.loads(answer.read_text(encoding="utf-8"))}


def run_all(kind, jobs, workers, results, console):
    """Runs what is not there yet; returns how many failed."""
    jobs = [job for job in jobs if not results.has(kind, job)]
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    failed = 0
    with (
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        bar = progress.add_task(kind, total=len(jobs))
        futures = {pool.submit(run_job, job, workers > 1): job for job in jobs}
        for future in concurrent.futures.as_completed(futures):
            job = futures[future]
            try:
                results.add(kind, future.result())
                progress.print(describe(results.content[kind][-1]))
            except RuntimeError as error:
                failed += 1
                progress.print(f"failed: {describe(job)}\n{error}")
            progress.advance(bar)
    return failed


def describe(job):
    """One line about a job or its result."""
    if "mechanisms" in job:
        return f"{job['task']}: {len(job['mechanisms'])} mechanisms timed"
    line = f"{job['task']}, {_common.label_of(job['mechanism'])}"
    line += f", seed {job['seed']}"
    if "test_accuracy" in job:
        line += f": {100 * job['test_accuracy']:.2f} %"
    return line


def main(arguments=None):
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    stem = options.out / STEMS[options.budget]
    results = Results(stem.with_suffix(".json"))
    jobs = training_jobs(options)
    failed = run_all("runs", jobs, options.jobs, results, console)
    if not options.no_times:
        failed += run_all("times", timing_jobs(options), 1, results, console)
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "tools/compare.py", *given])
    if command not in results.content["commands"]:
        results.add("commands", command)
    _compare_report.write(
        results.content,
        options.settings,
        os.environ["KERAS_BACKEND"],
        stem,
    )
    console.print(f"Files in {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
