"""One run of `compare.py`, in a process of its own: its memory is its own.

Called with a job as JSON and the path of the answer.
"""

import json
import pathlib
import sys
import time

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES.parent)]

import _training  # noqa: E402  (after the path above)
import keras  # noqa: E402
import numpy as np  # noqa: E402
from _compare_tasks import make_task  # noqa: E402

from tools._machine import forget_peak  # noqa: E402
from tools._machine import machine  # noqa: E402
from tools._machine import peak_memory  # noqa: E402

WARM_UP_STEPS = 2  # compiled in the first, warm in the second
STEPS = 4  # of each model in each round
MEGABYTE = 1e6


def train(job):
    """Trains, tests, and says how much memory that took."""
    task, options = make_task(job)
    identifier = job["mechanism"]
    before = forget_peak()
    keras.utils.set_random_seed(job["seed"])
    model = task.build(_training.fit_to(identifier, task))
    result = _training.train(model, task, options.epochs)
    return {
        "parameters": model.count_params(),
        "steps": len(task.train()) * options.epochs,
        **result,
        "peak_mb": (peak_memory() - before) / MEGABYTE,
    }


def measure(job):
    """Milliseconds of a training step: mechanisms take turns, in one process.

    Whatever else the machine does then slows all of them alike. The batch is
    the largest of the first epoch: a full one, of full length.
    """
    task, _ = make_task(job)
    batches = task.train()
    batch = max(
        (batches[index] for index in range(len(batches))),
        key=lambda batch: batch[0].size,
    )
    models = []
    for identifier in job["mechanisms"]:
        keras.utils.set_random_seed(job["seed"])
        model = task.build(_training.fit_to(identifier, task))
        _training.compile_model(model, task, len(batches))
        for _ in range(WARM_UP_STEPS):
            model.train_on_batch(*batch)
        models.append(model)
    rounds = [
        [median_step(model, batch) for model in models]
        for _ in range(job["rounds"])
    ]
    return {
        "batch_shape": list(batch[0].shape),
        "tokens": task.tokens,
        "milliseconds": np.transpose(rounds).tolist(),
    }


def median_step(model, batch):
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        model.train_on_batch(*batch)  # returns numbers: it has waited for them
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def main():
    job = json.loads(sys.argv[1])
    run = measure if "mechanisms" in job else train
    answer = {**run(job), "machine": machine()}
    pathlib.Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
