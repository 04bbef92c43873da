"""Measures attention layers beside the floor of their own projections.

    python -m tools.bench --write
    python -m tools.bench --backend jax --length 1024 --group times

Every job runs in a process of its own, one at a time. In it the cases take
turns round after round, so that whatever else the machine does slows all of
them alike: read the ratios. A linear mechanism whose conformance checks fail
gets no number. With --write every result is in the JSON file as soon as it is
there, and --resume takes from that file what it holds already.
"""

import argparse
import importlib.util
import json
import pathlib
import shlex
import sys
import time

from rich.console import Console
from rich.progress import Progress

from tools import _process
from tools.bench import report

ROOT = pathlib.Path(__file__).parents[2]
BACKENDS = ("tensorflow", "jax", "torch")
GROUPS = ("times", "memory", "profile", "decoding", "models")
DTYPES = ("float32", "bfloat16", "float16")
LENGTHS = (256, 1024, 4096, 8192, 16384)
CONTEXTS = (1024, 16384, 262144, 1048576)
MECHANISMS = (
    "linear_transformer",
    "performer",
    "retention",
    "mamba2",
    "gated_linear",
    "delta_rule",
    "gated_delta",
    "kda",
    "local",
)
PEER = "peer:"
PEERS = (
    "fast_transformers",
    "fast_transformers_causal",
    "linear_attention_transformer",
    "linear_attention_transformer_causal",
    "performer",
    "performer_causal",
    "nystrom_attention",
    "linformer",
)
CUDA_PEERS = ("fla_gated_delta", "fla_kda")  # by name only: need a GPU
HUB_PEERS = ("keras_hub_gated_delta", "keras_hub_rwkv7")  # any backend
CASES = (
    "floor",
    "both:modified_linformer",
    *(f"linear:{name}" for name in MECHANISMS),
    "gated_delta_as_keras_hub",
    "keras_mha",
    "keras_window",
)
MODELS = (
    "TextClassifier",
    "VisionTransformer",
    "AudioClassifier",
    "CausalLM",
)
DECODERS = ("linear:linear_transformer", "keras_hub_cache")
# Makes glibc return freed memory at once, so that the resident memory is the
# memory in use. tools/setup.sh may have set the opposite.
RETURN_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "LD_PRELOAD": "",
}


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    installed = [b for b in BACKENDS if importlib.util.find_spec(b)]
    add = parser.add_argument
    add("--backend", nargs="+", choices=BACKENDS, default=installed)
    add("--group", nargs="+", choices=GROUPS, default=GROUPS)
    add("--case", nargs="+", default=CASES, help="of times and memory")
    add(
        "--peers",
        action="store_true",
        help="measure other libraries too (torch; see tools/peers.sh)",
    )
    add("--decoder", nargs="+", default=DECODERS)
    add("--model", nargs="+", choices=MODELS, default=MODELS)
    add("--length", nargs="+", type=positive, default=LENGTHS)
    add("--memory-length", nargs="+", type=positive, default=(8192,))
    add("--profile-length", type=positive, default=4096)
    add("--context", nargs="+", type=positive, default=CONTEXTS)
    add("--dim", type=positive, default=512, help="of input and all heads")
    add("--heads", type=positive, default=8)
    add("--batch", type=positive, default=1)
    add("--dtype", nargs="+", choices=DTYPES, default=("float32",))
    add("--rounds", type=positive, default=7)
    add(
        "--verify",
        choices=("no", "some", "all"),
        default="some",
        help="conformance checks before a mechanism is measured",
    )
    add("--write", action="store_true", help="write the page in --out")
    add("--resume", action="store_true", help="go on with a run in --out")
    add(
        "--join",
        nargs="+",
        type=pathlib.Path,
        metavar="JSON",
        help="measure nothing: write the page of these files",
    )
    add("--out", type=pathlib.Path, default=ROOT / "docs")
    options = parser.parse_args(arguments)
    if options.peers:
        options.case = [*options.case, *(PEER + name for name in PEERS)]
    return options


def positive(text):
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"must be > 0, received: {text}")
    return number


def verify_jobs(options):
    """One job for each linear mechanism and peer that will be measured."""
    measured = []
    if {"times", "memory", "profile"} & set(options.group):
        measured += options.case
    if "decoding" in options.group:
        measured += options.decoder
    subjects = [checked(name) for name in measured if ":" in name]
    return [
        {"group": "verify", "mechanism": name, "checks": options.verify}
        for name in dict.fromkeys(subjects)
    ]


def checked(case):
    """What is checked before that case: a mechanism, or the peer itself."""
    return case if case.startswith(PEER) else case.partition(":")[2]


def jobs_of(options, cases, decoders):
    """The measurements, those of one length in one process."""
    sizes = {
        "dim": options.dim,
        "heads": options.heads,
        "batch": options.batch,
    }
    taking_turns = {"cases": cases, "rounds": options.rounds, **sizes}
    kinds = ("forward", "step")
    jobs = {
        "times": [
            {"length": length, "kind": kind, "dtype": dtype, **taking_turns}
            for dtype in options.dtype
            for length in options.length
            for kind in kinds
        ],
        "memory": [
            {"length": length, "kind": kind, "case": case} | sizes
            for length in options.memory_length
            for case in cases
            for kind in kinds
        ],
        "profile": [
            {"length": options.profile_length, "kind": kind, "case": case}
            | sizes
            for case in cases
            for kind in kinds
        ],
        "decoding": [
            {
                "contexts": list(options.context),
                **taking_turns,
                "cases": decoders,
            }
        ],
        "models": [
            {"model": name, "rounds": options.rounds} for name in options.model
        ],
    }
    return [
        {"group": group, **job}
        for group in options.group
        for job in jobs[group]
    ]


class Results:
    """What was measured: kept in the JSON file if it is to be written.

    Args:
        content: dict of `command`, `verify` and an empty list of `runs`.
        path: path of the file, or `None`.
        resume: bool, begin with the runs of that file that went well.
    """

    def __init__(self, content, path=None, resume=False):
        self.content, self.path, self.earlier = content, path, []
        if resume and path is not None and path.is_file():
            runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
            self.earlier = [run for run in runs if not went_wrong(run)]

    def find(self, job, backend):
        """An earlier result of this job, or `None`."""
        wanted = {**job, "backend": backend}.items()
        found = (run for run in self.earlier if wanted <= run.items())
        return next(found, None)

    def add(self, result):
        self.content["runs"].append(result)
        if self.path is not None:
            report.write_json(self.content, self.path)


def run_job(job, backend):
    """The job, and what its process answers or the end of what it said."""
    start = time.perf_counter()
    environment = {"KERAS_BACKEND": backend}
    if job["group"] == "memory":
        environment |= RETURN_MEMORY
    result = {**job, "backend": backend}
    try:
        result |= _process.ask("tools.bench.worker", job, environment)
    except RuntimeError as error:
        result["failed"] = str(error)
    result["seconds"] = round(time.perf_counter() - start, 1)
    return result


def run_backend(options, backend, results):
    """Adds the results of one backend, as they come."""

    checks = [] if options.verify == "no" else verify_jobs(options)
    measured = len(jobs_of(options, options.case, options.decoder))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    with Progress(console=console) as progress:
        bar = progress.add_task(backend, total=len(checks) + measured)

        def run(job):
            result = results.find(job, backend) or run_job(job, backend)
            results.add(result)
            progress.print(describe(result))
            progress.advance(bar)
            return result

        _check_and_measure(options, checks, run)


def _check_and_measure(options, checks, run):
    wrong = {job["mechanism"] for job in checks if went_wrong(run(job))}
    cases, decoders = (
        [name for name in names if checked(name) not in wrong]
        for names in (options.case, options.decoder)
    )
    for job in jobs_of(options, cases, decoders):
        run(job)


def went_wrong(result):
    return bool(result.get("failed") or result.get("failures"))


def describe(result):
    """One line about a result."""
    names = ("group", "mechanism", "model", "case", "kind", "length")
    said = [str(result[name]) for name in names if name in result]
    line = f"{result['backend']}: {', '.join(said)}, {result['seconds']} s"
    if result.get("failed"):
        return f"{line}, failed:\n{result['failed']}"
    if result.get("failures"):
        return "\n".join([f"{line}, checks failed:", *result["failures"]])
    return line


def command(given):
    """The command to repeat the run with: without its own place for files."""
    kept, skip = [], False
    for argument in given:
        if not skip and argument not in ("--out", "--write"):
            kept.append(argument)
        skip = argument == "--out"
    return shlex.join(["python", "-m", "tools.bench", *kept])


def main(arguments=None):
    options = parse(arguments)
    if options.join:
        options.out.mkdir(parents=True, exist_ok=True)
        report.write(report.joined(options.join), options.out)
        return 0
    given = sys.argv[1:] if arguments is None else arguments
    content = {
        "command": command(given),
        "verify": options.verify,
        "runs": [],
    }
    path = None
    if options.write:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / report.JSON
    results = Results(content, path, options.resume)
    for backend in options.backend:
        run_backend(options, backend, results)
    print("\n" + report.page(content))
    if options.write:
        report.write(content, options.out)
        print(f"Files in {options.out}")
    return int(any(went_wrong(run) for run in content["runs"]))


if __name__ == "__main__":
    sys.exit(main())
