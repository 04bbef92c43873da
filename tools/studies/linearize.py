"""A row of the study `linearize`: a teacher, or a model made from it.

`job.py` runs this file as it runs an example. `--mechanism` is a row: what
attends, a colon, and how it was trained. A teacher, and a model that a later
row goes on with, is kept in `--cache`; a call that does not find it trains it.

All methods that start from the teacher, and the short training from scratch,
have a tenth of the teacher's steps; transfer has half of them.
"""

import argparse
import pathlib
import time

import keras

import keras_linattn
from tools.studies import mechanisms as rows
from tools.studies.optimizers import adamw
from tools.studies.tasks import TASKS


def parse():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--mechanism", choices=rows.LINEARIZE, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="not used: the caller keeps the results")
    parser.add_argument("--cache", default=".cache/studies/linearize")
    parser.add_argument("--smoke", action="store_true", help="tiny, quick runs")
    return parser.parse_args()


class Study:
    """One task and seed.

    Args:
        task: one of `TASKS`, made.
        folder: `pathlib.Path`, where trained models are kept.
    """

    def __init__(self, task, folder):
        self.task = task
        self.folder = folder
        self.short = max(2, task.steps // 10)
        self.history = keras.callbacks.History()
        self.seconds, self.steps = 0.0, 0

    def row(self, row):
        """The row's model, trained and compiled."""
        if row == rows.TEACHER:
            model, self.steps = self.teacher(), self.task.steps
        elif row == rows.NOTHING:
            model = self.train(self.task.model("no_attention"), self.task.steps)
        elif row in rows.WINDOWS_OFF:
            model = self.student(row.removesuffix(rows.OFF))
            switch_window_off(model)
        else:
            model = self.student(row)
        model.compile(loss=self.task.loss, weighted_metrics=["accuracy"])
        return model

    def teacher(self):
        return self.kept(
            "teacher",
            lambda: self.train(self.task.model("softmax"), self.task.steps),
        )

    def student(self, row):
        name, _, method = row.partition(": ")
        options = rows.STUDENTS[name]
        if method.startswith("from scratch"):
            model = self.task.model("softmax")
            model = keras_linattn.linearize(model, **options)
            whole = method.endswith("all steps")
            return self.train(model, self.task.steps if whole else self.short)
        teacher = self.teacher()
        swapped = keras_linattn.linearize(teacher, **options)
        self.seconds, self.steps = 0.0, 0  # the teacher's do not count
        if method == rows.LORA:
            model = self.kept(
                name.replace(",", "").replace(" ", "-"),
                lambda: self.distill(swapped, teacher),
            )
            self.steps = self.short
            return model
        if "fine-tuning" in method:
            self.fine_tune(swapped, teacher, self.short, 0.0, None, 3e-3)
        return swapped

    def train(self, model, steps):
        """Trains from scratch, as the examples do."""
        optimizer = adamw(steps, self.task.learning_rate)
        model.compile(optimizer, self.task.loss)
        start = time.perf_counter()
        self.history = model.fit(self.task.batches(steps, 0), verbose=0)
        self.seconds, self.steps = time.perf_counter() - start, steps
        return model

    def distill(self, model, teacher):
        steps = self.short // 2
        start = time.perf_counter()
        keras_linattn.distill(
            model,
            teacher,
            self.task.batches(steps, 1),
            epochs=0,
            transfer_optimizer=keras.optimizers.Adam(decay(5e-2, steps)),
            verbose=0,
        )
        self.seconds, self.steps = time.perf_counter() - start, steps
        self.fine_tune(model, teacher, self.short - steps, 0.5, 8, 1e-2)
        return model

    def fine_tune(self, model, teacher, steps, weight, rank, rate):
        start = time.perf_counter()
        self.history = keras_linattn.distill(
            model,
            teacher,
            self.task.batches(steps, 3),
            transfer_epochs=0,
            loss=self.task.loss,
            teacher_weight=weight,
            lora_rank=rank,
            optimizer=keras.optimizers.Adam(decay(rate, steps)),
            verbose=0,
        )["finetune"]
        self.seconds += time.perf_counter() - start
        self.steps += steps

    def kept(self, name, make):
        """The model of this name, made by the first who asks for it."""
        path = self.folder / f"{name}.keras"
        if not path.is_file():
            model = make()
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{time.time_ns()}.keras")
            model.save(unfinished)
            unfinished.replace(path)  # whole, or not at all
            return model
        return keras.saving.load_model(path, compile=False)


def decay(rate, steps):
    return keras.optimizers.schedules.CosineDecay(rate, steps)


def switch_window_off(model):
    """Takes the exact part out of `hybrid_window`: its factor becomes 0."""
    for variable in model.variables:
        if variable.name == "window_factor":
            variable.assign(keras.ops.full_like(variable, -1e9))


if __name__ == "__main__":
    args = parse()
    task = TASKS[args.task](args.seed, args.smoke)
    keras.utils.set_random_seed(args.seed)
    size = "smoke" if args.smoke else f"{task.steps}"
    names = args.task, keras.backend.backend(), size, str(args.seed)
    study = Study(task, pathlib.Path(args.cache, "-".join(names)))
    model = study.row(args.mechanism)
    metrics = {task.score_name: task.score(model)}
    history, seconds, steps = study.history, study.seconds, study.steps
    print(args.mechanism, metrics, f"{steps} steps, {seconds:.0f} s")
