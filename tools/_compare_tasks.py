"""What `compare.py` trains: the examples' tasks, with one budget or another."""

import _data
import audio_classification
import image_classification
import text_classification

_TEXT = (
    text_classification,
    lambda options: _data.load_texts(options.dataset),
    text_classification.SMOKE_DOCUMENTS,
)
# Example, how it reads its data, how much of them a smoke run takes, and the
# arguments that make the task.
TASKS = {
    "text": (*_TEXT, {"dataset": "r8"}),
    "newsgroups": (*_TEXT, {"dataset": "20newsgroups"}),
    "books": (*_TEXT, {"dataset": "books"}),
    "books_hourglass": (*_TEXT, {"dataset": "books", "hourglass": 4}),
    "images": (
        image_classification,
        lambda options: _data.load_images(options.dataset),
        image_classification.SMOKE_IMAGES,
        {},
    ),
    "speech": (
        audio_classification,
        lambda options: _data.load_speech(),
        audio_classification.SMOKE_RECORDINGS,
        {},
    ),
}
# Arguments beside the defaults of the examples, by task.
BUDGETS = {
    "short": {
        "text": {"epochs": 1, "length": 1024, "batch_size": 32},
        "images": {"epochs": 3, "patch": 4, "batch_size": 32},
    },
    "full": {task: {} for task in TASKS},
}
NOT_SETTINGS = ("mechanism", "seed", "out")  # of an example's options


def settings(budget, smoke):
    """Arguments of the examples, for each task: what makes runs comparable.

    The short budget gives those alone that a user would change; the full one
    all, so that a new default is a new budget.
    """
    chosen = {}
    for task, arguments in BUDGETS[budget].items():
        if budget == "full":
            example, _, _, own = TASKS[task]
            options = vars(example.parse(_as_arguments({**own, **arguments})))
            arguments = {
                name: value
                for name, value in options.items()
                if name not in NOT_SETTINGS
            }
        chosen[task] = {**arguments, "smoke": smoke}
    return chosen


def make_task(job):
    """The `Task` of an example, with the job's settings and seed."""
    example, load, sizes, own = TASKS[job["task"]]
    settings = {**own, **job["settings"], "seed": job["seed"]}
    smoke = settings.pop("smoke")
    options = example.parse(
        [*_as_arguments(settings), *(["--smoke"] if smoke else [])]
    )
    data = load(options)
    if smoke:
        data = data.take(*sizes)
    return example.make_task(data, options), options


def _as_arguments(settings):
    arguments = []
    for name, value in settings.items():
        name = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        else:
            arguments += [f"--{name}", str(value)]
    return arguments
