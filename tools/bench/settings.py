"""What each setting does to the speed of training: one step, measured.

    python -m tools.bench.settings --backend jax

The step is that of `TextClassifier` at its defaults, with AdamW, on 32 rows of
bytes. Each setting is a fresh process. Lengths are drawn, from 40 to 1,024
with a median of about 500, as in Reuters R8. A row of the table changes one
thing: allocators against the first row, all else against the second.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import keras
import numpy as np

from keras_linattn import models
from tools import _machine
from tools import _process
from tools.bench import report

LONGEST, BATCH, STEPS = 1024, 32, 8
COLUMNS = (
    "setting",
    "ms a step",
    "processor ms",
    "page faults",
    "bytes a second",
    "against the first row",
)
BUCKET = 256  # lengths are multiples of it
KEEP = str(8 << 30)
PLAIN = dict.fromkeys(
    ("LD_PRELOAD", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
)
THRESHOLDS = {
    "LD_PRELOAD": None,
    "MALLOC_TRIM_THRESHOLD_": KEEP,
    "MALLOC_MMAP_THRESHOLD_": KEEP,
}
TCMALLOC = _process.ROOT / ".venv" / "lib" / "libtcmalloc_minimal.so.4"
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false "
    "intra_op_parallelism_threads=1",
}
# By name: what the process does, and its environment.
SETTINGS = {
    "glibc's allocator as it is": ({}, PLAIN),
    "glibc keeps 8 GiB": ({}, THRESHOLDS),
    "tcmalloc": ({}, {"LD_PRELOAD": str(TCMALLOC)}),
    "one thread": ({}, {**THRESHOLDS, **ONE_THREAD}),
    "jit_compile=False": ({"jit_compile": False}, THRESHOLDS),
    "jit_compile=True": ({"jit_compile": True}, THRESHOLDS),
    "mixed_bfloat16": ({"policy": "mixed_bfloat16"}, THRESHOLDS),
    "remat=True": ({"remat": True}, THRESHOLDS),
    "length buckets": ({"buckets": True}, THRESHOLDS),
}
FOR_BACKEND = {  # the others compile always or never
    "jit_compile=False": ("jax", "tensorflow"),
    "jit_compile=True": ("tensorflow",),
}


def documents():
    """Rows of ids, whose lengths are like those of R8."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(6.2, 0.8, BATCH * STEPS)).clip(40, LONGEST)
    return [rng.integers(1, 257, int(n)).astype("int32") for n in lengths]


def padded(rows, length):
    """Rows as one array, zeros behind each."""
    ids = np.zeros((len(rows), length), "int32")
    for place, row in zip(ids, rows, strict=True):
        place[: len(row)] = row
    return ids


def batches(buckets):
    """Batches of the documents, all of one length or of a few."""
    rows = documents()
    if not buckets:
        return [
            padded(rows[start : start + BATCH], LONGEST)
            for start in range(0, len(rows), BATCH)
        ]
    rows = sorted(rows, key=len)
    parts = (
        rows[start : start + BATCH] for start in range(0, len(rows), BATCH)
    )
    return [
        padded(part, -(-len(part[-1]) // BUCKET) * BUCKET) for part in parts
    ]


def classifier(job):
    """A model, and its batches as arguments of `train_on_batch`."""
    model = models.TextClassifier(8, remat=job.get("remat", False))
    loss = keras.losses.SparseCategoricalCrossentropy()
    labels = np.zeros(BATCH, "int32")
    data = [(ids, labels) for ids in batches(job.get("buckets"))]
    return model, loss, data


def measure(job):
    """Times of training in this process."""
    keras.utils.set_random_seed(0)
    if "policy" in job:
        keras.config.set_dtype_policy(job["policy"])
    model, loss, data = classifier(job)
    model.compile("adamw", loss, jit_compile=job.get("jit_compile", "auto"))
    for inputs, targets in data:  # compiles each shape
        model.train_on_batch(inputs, targets)
    results = []
    for inputs, targets in data:
        before, start = _machine.usage(), time.perf_counter()
        model.train_on_batch(inputs, targets)
        seconds = time.perf_counter() - start
        used = np.subtract(_machine.usage(), before)
        results.append(
            {
                "seconds": seconds,
                "processor": float(used[0]),
                "faults": float(used[1]),
                "tokens": int((inputs > 0).sum()),
            }
        )
    return {"steps": results}


def row(name, result, first):
    """The cells of a line of the table."""
    steps = result["steps"]

    def median(key):
        return statistics.median(step[key] for step in steps)

    def speed(result):
        steps = result["steps"]
        tokens = sum(step["tokens"] for step in steps)
        return tokens / sum(step["seconds"] for step in steps)

    return [
        name,
        f"{1000 * median('seconds'):,.0f}",
        f"{1000 * median('processor'):,.0f}",
        f"{median('faults'):,.0f}",
        f"{speed(result):,.0f}",
        f"{speed(result) / speed(first):.2f}",
    ]


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.settings",
        description=__doc__.partition("\n")[0],
    )
    add = parser.add_argument
    add("--backend", default=keras.backend.backend())
    add("--only", nargs="*", default=tuple(SETTINGS), choices=tuple(SETTINGS))
    add("--out", type=pathlib.Path, help="folder for settings_BACKEND.json")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    results = {}
    for name in options.only:
        if options.backend not in FOR_BACKEND.get(name, options.backend):
            continue
        if name == "tcmalloc" and not TCMALLOC.is_file():
            print("tcmalloc is not installed: see tools/setup.sh")
            continue
        job, environment = SETTINGS[name]
        environment = {**environment, "KERAS_BACKEND": options.backend}
        job = {**job, "group": "settings"}
        results[name] = _process.ask("tools.bench.worker", job, environment)
        print(f"{name}: done", file=sys.stderr, flush=True)
    first = next(iter(results.values()))
    print(", ".join(f"{k} {v}" for k, v in first["machine"].items()))
    rows = [row(name, result, first) for name, result in results.items()]
    print("\n".join(report.table(COLUMNS, rows)))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"settings_{options.backend}.json"
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
