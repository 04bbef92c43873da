"""Compares mechanisms, seeds and backends: runs the examples with each.

    python -m tools.studies.run listops
    python -m tools.studies.run pipelines --seed 0 1 2 --jobs 2
    python -m tools.studies.run pipelines --task R8 --backend jax torch
    python -m tools.studies.run listops --smoke
    python -m tools.studies.run listops --out docs

Every job (task x mechanism x seed x backend) is an example in a fresh process.
Its result is added to STUDY.json as soon as it is there, and a call that was
interrupted goes on where it stopped. STUDY.md and STUDY.png are made of it. The
last call adds to the pages of docs/.
"""

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import pathlib
import shlex
import sys

from rich.console import Console
from rich.progress import Progress

from tools import _process
from tools.studies import mechanisms
from tools.studies import report

EXAMPLES = _process.ROOT / "examples"
BACKENDS = ("tensorflow", "jax", "torch")
ONE_THREAD = dict.fromkeys(
    ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"), "1"
)


@dataclasses.dataclass
class Study:
    """What is compared.

    Args:
        tasks: dict from a task's name to its example and its arguments.
        mechanisms: names, or keys of `mechanisms.ROWS`, compared unless
            `--mechanism` says otherwise.
        page: name of the files, that of the study by default.
        rates: dict from a task's name to the learning rates that each
            mechanism is tried with, for tasks that have such a sweep. The
            page has the best one of each mechanism.
        others: whether rows that are not in `mechanisms` can be asked for.
    """

    tasks: dict
    mechanisms: tuple
    page: str | None = None
    rates: dict = dataclasses.field(default_factory=dict)
    others: bool = True

    def rows(self):
        """All values of `--mechanism`."""
        own = list(self.mechanisms)
        if not self.others:
            return own
        # Each mechanism has a file of its name; to import them takes seconds.
        folder = _process.ROOT / "keras_linattn" / "mechanisms"
        names = sorted(file.stem for file in folder.glob("[!_]*.py"))
        rows = [*own, *mechanisms.ROWS, *names, "no_attention"]
        return list(dict.fromkeys(rows))

    def arguments(self, task, rate=None):
        """Those of the task's example."""
        rated = [] if rate is None else ["--learning-rate", str(rate)]
        return [*self.tasks[task][1:], *rated]

    def made(self, result, smoke):
        """Whether a result has a task of this study and its settings."""
        if result["task"] not in self.tasks:
            return False
        arguments = self.arguments(result["task"], result.get("rate"))
        return result["arguments"] == arguments + ["--smoke"] * smoke


STUDIES = {
    "pipelines": Study(
        {
            "R8": ("text_classification.py",),
            "20 Newsgroups": (
                "text_classification.py",
                "--dataset",
                "20newsgroups",
            ),
            "MNIST-5k": ("image_classification.py",),
            "speech prompts": ("audio_classification.py",),
        },
        ("modified_linformer", "softmax"),
    ),
    "associative_recall": Study(
        {
            "small state": (
                "associative_recall.py",
                *("--hidden-dim", "32", "--symbols", "32"),
            ),
            "small state, 1,200 steps": (
                "associative_recall.py",
                *("--hidden-dim", "32", "--symbols", "32", "--epochs", "6"),
                *("--learning-rate", "0.01"),
            ),
            "small state, 64 pairs, 1,200 steps": (
                "associative_recall.py",
                *("--hidden-dim", "32", "--symbols", "64", "--epochs", "6"),
                *("--learning-rate", "0.01", "--pairs", "8", "16", "32", "64"),
            ),
            "large state, 256 pairs, 1,200 steps": (
                "associative_recall.py",
                *("--symbols", "256", "--epochs", "6"),
                *("--pairs", "16", "64", "256"),
            ),
            "large state, 400 steps": ("associative_recall.py",),
            "large state, 1,200 steps": (
                "associative_recall.py",
                *("--epochs", "6"),
            ),
        },
        (
            "softmax",
            "gated_delta",
            "softmax + gated_delta",
            "gated_delta + softmax",
            "kda",
            "delta_rule",
            "linear_transformer",
            "retention",
            "mamba2",
            "local, 16",
            "hybrid_window, 16",
            "no_attention",
        ),
        rates={"small state": (0.003, 0.01, 0.03)},
    ),
    "language_model": Study(
        {
            "20 Newsgroups, bytes": ("../tools/studies/language_model.py",),
            "20 Newsgroups, bytes, small": (
                "../tools/studies/language_model.py",
                *("--width", "128", "--batch-size", "16", "--steps", "800"),
            ),
        },
        (
            "softmax",
            "gated_delta",
            "3 gated_delta + softmax",
            "kda",
            "mamba2",
            "retention",
            "linear_transformer",
            "local, 128",
        ),
    ),
    "memory": Study(
        {
            "selective copying": (
                "../tools/studies/memory.py",
                *("--task", "copying"),
            ),
            "a needle": ("../tools/studies/memory.py", "--task", "needle"),
        },
        (
            "softmax",
            "gated_delta",
            "softmax + gated_delta",
            "kda",
            "delta_rule",
            "mamba2",
            "retention",
            "linear_transformer",
            "local, 16",
            "no_attention",
        ),
    ),
    "long_range": Study(
        {
            name: ("../tools/studies/long_range.py", "--task", *task)
            for name, task in (
                ("pixels of MNIST-5k", ("pixels",)),
                ("pixels, all changed", ("pixels", "--changed", "1")),
                ("ListOps, 500 to 2,000 tokens", ("listops",)),
                ("Pathfinder, 32 x 32", ("pathfinder",)),
                ("Pathfinder, 16 x 16", ("small_pathfinder",)),
            )
        },
        (
            "modified_linformer",
            "softmax",
            "no_attention",
            "focused",
            "polaformer",
            "mala",
        ),
    ),
    "listops": Study(
        {"ListOps, short": ("listops.py",)},
        ("modified_linformer", "softmax", "no_attention"),
    ),
    "document_layout": Study(
        {
            name: ("document_layout.py", "--streams", streams)
            for name, streams in (
                ("words and boxes, two streams", "both"),
                ("words and boxes, one stream", "sum"),
                ("words only", "text"),
                ("boxes only", "layout"),
            )
        },
        ("modified_linformer", "softmax", "no_attention"),
    ),
    "forecasts": Study(
        {"pedestrians in Auckland": ("time_series.py",)},
        ("modified_linformer", "softmax", "no_attention"),
    ),
    "equal_time": Study(
        {"ListOps, 100 tokens": ("../tools/studies/equal_time.py",)},
        mechanisms.EQUAL_TIME,
    ),
    "linearize": Study(
        {
            name: ("../tools/studies/linearize.py", "--task", task)
            for name, task in (
                ("associative recall", "recall"),
                ("ListOps, short", "listops"),
                ("20 Newsgroups, bytes", "bytes"),
            )
        },
        mechanisms.LINEARIZE,
        page="linearize_study",
        others=False,
    ),
}


# What a command that others repeat does not have.
OUT = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
OUT.add_argument(
    "--out",
    type=pathlib.Path,
    default=_process.ROOT / "out" / "studies",
    help="folder of the results",
)


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m tools.studies.run",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,  # like `OUT`
        parents=[OUT],
    )
    add = parser.add_argument
    add("study", choices=STUDIES)
    add("--task", nargs="+", help="default: all; a wrong one lists them")
    more = "default: those of the study; a wrong one lists what there is"
    add("--mechanism", nargs="+", help=more)
    add("--seed", nargs="+", type=int, default=[0])
    add("--rate", nargs="+", type=float, help="default: those of the task")
    add("--backend", nargs="+", choices=BACKENDS, default=["tensorflow"])
    add("--jobs", type=int, default=1, help="at a time; > 1: a thread each")
    add("--smoke", action="store_true", help="tiny runs")
    add("--report-only", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    study = STUDIES[options.study]
    options.task = options.task or list(study.tasks)
    options.mechanism = options.mechanism or list(study.mechanisms)
    for name, known in (("task", study.tasks), ("mechanism", study.rows())):
        unknown = [x for x in getattr(options, name) if x not in known]
        if unknown:
            parser.error(
                f"--{name} must be of the study {options.study}. "
                f"Received: {quoted(unknown)}. There are: {quoted(known)}."
            )
    return options


def quoted(names):
    return ", ".join(f"'{name}'" for name in names)


def jobs_of(options):
    """Returns the jobs, seed by seed: an early end leaves whole rows."""
    study, jobs = STUDIES[options.study], []
    for seed, backend, mechanism, task in itertools.product(
        options.seed, options.backend, options.mechanism, options.task
    ):
        for rate in options.rate or study.rates.get(task, (None,)):
            arguments = study.arguments(task, rate)
            jobs.append(
                {
                    "task": task,
                    "example": str(EXAMPLES / study.tasks[task][0]),
                    "arguments": arguments + ["--smoke"] * options.smoke,
                    "mechanism": mechanism,
                    "seed": seed,
                    "backend": backend,
                    **({} if rate is None else {"rate": rate}),
                }
            )
    return jobs


class Results:
    """The JSON file: written after each result.

    A job is known by its names and arguments. So a task whose data or settings
    change in the code needs a new name; results of the old one are deleted.
    """

    def __init__(self, path):
        self.path = path
        self.read()

    def read(self):
        self.content = {"commands": [], "results": []}
        if self.path.is_file():
            self.content = json.loads(self.path.read_text(encoding="utf-8"))

    def add(self, result, command):
        """Adds a result, and the command line that made it if it is new."""
        self.read()  # another call may have added results meanwhile
        self.content["results"].append(result)
        if command not in self.content["commands"]:
            self.content["commands"].append(command)
        text = json.dumps(self.content, indent=1) + "\n"
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.path)  # whole, or not at all

    def has(self, job):
        wanted = stored(job).items()
        return any(wanted <= x.items() for x in self.content["results"])


def stored(job):
    """Returns the job without the paths of this machine."""
    return {**job, "example": pathlib.Path(job["example"]).name}


def run_all(jobs, workers, results, command, console):
    """Runs the jobs that have no result yet; returns how many failed."""
    total, failed = len(jobs), 0
    jobs = [job for job in jobs if not results.has(job)]
    if len(jobs) < total:
        console.print(
            f"{total - len(jobs)} of {total} jobs have a result already. "
            "To run them again, give an empty folder to --out."
        )
    with (
        Progress(console=console) as progress,
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        bar = progress.add_task("jobs", total=len(jobs))
        futures = {pool.submit(run_job, job, workers > 1): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                job = futures[future]
                try:
                    result = {**stored(job), **future.result()}
                    results.add(result, command)
                    progress.print(f"{describe(job)}: {result['metrics']}")
                except RuntimeError as error:
                    failed += 1
                    progress.print(f"failed: {describe(job)}\n{error}")
                progress.advance(bar)
        except KeyboardInterrupt:  # what waits is not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def run_job(job, one_thread=False):
    environment = {"KERAS_BACKEND": job["backend"], "MPLBACKEND": "Agg"}
    environment |= ONE_THREAD if one_thread else {}
    return _process.ask("tools.studies.job", job, environment)


def describe(job):
    names = ("task", "mechanism", "backend", "seed", "rate")
    return ", ".join(str(job[name]) for name in names if name in job)


def command_of(arguments):
    """What a reader types to repeat it: into a folder of their own."""
    _, kept = OUT.parse_known_args(arguments)
    return shlex.join(["python", "-m", "tools.studies.run", *kept])


def main(arguments=None):
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    study = STUDIES[options.study]
    stem = options.out / (study.page or options.study)
    results = Results(stem.with_suffix(".json"))
    failed = 0
    if not options.report_only:
        command = command_of(sys.argv[1:] if arguments is None else arguments)
        jobs = jobs_of(options)
        failed = run_all(jobs, options.jobs, results, command, console)
    every = results.content["results"]
    shown = [x for x in every if study.made(x, options.smoke)]
    if len(shown) < len(every):
        console.print(
            f"{len(every) - len(shown)} results of other settings are not shown"
        )
    if shown:
        report.write({**results.content, "results": shown}, stem, options.smoke)
    console.print(f"Files in {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
