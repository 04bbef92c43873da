"""One run of `compare.py`, in a process of its own: its memory is its own.

Called with a job as JSON and the path of the answer.
"""

import json
import pathlib
import sys
import time

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES.parent)]

import _data  # noqa: E402  (after the path above)
import _training  # noqa: E402
import image_classification  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
import text_classification  # noqa: E402

from tools._machine import forget_peak  # noqa: E402
from tools._machine import machine  # noqa: E402
from tools._machine import peak_memory  # noqa: E402

# Example, how it reads its data, how much of them a smoke run takes.
TASKS = {
    "text": (
        text_classification,
        lambda options: _data.load_texts(options.dataset),
        text_classification.SMOKE_DOCUMENTS,
    ),
    "images": (
        image_classification,
        lambda options: _data.load_digits(),
        image_classification.SMOKE_IMAGES,
    ),
}
WARM_UP_STEPS = 2  # compiled in the first, warm in the second
STEPS = 4  # of each model in each round
MEGABYTE = 1e6


def make_task(job):
    """The `Task` of an example, with the job's settings and seed."""
    settings = {**job["settings"], "seed": job["seed"]}
    smoke = settings.pop("smoke")
    arguments = [
        text
        for name, value in settings.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    if smoke:
        arguments.append("--smoke")
    example, load, sizes = TASKS[job["task"]]
    options = example.parse(arguments)
    data = load(options)
    if smoke:
        data = data.take(*sizes)
    return example.make_task(data, options), options


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
