"""One run of the study `memory`: what a causal model finds in a long noise.

`job.py` runs this file as it runs an example. Both tasks draw each batch anew.
The models are those of associative recall, trained at one length and tested at
longer ones, too.
"""

import argparse
import functools
import time

import keras
import numpy as np

from tools.studies.mechanisms import entries_of
from tools.studies.optimizers import adamw
from tools.studies.tasks import Drawn
from tools.studies.tasks import Recall


class Task(Recall):
    """What both tasks share; `lengths` are that of training and longer ones."""

    symbols, hidden, batch_size = 32, 64, 32
    steps, test_steps = 400, 4

    def __init__(self, seed, smoke):
        self.seed = seed
        if smoke:
            self.steps, self.test_steps, self.hidden = 4, 1, 16
            self.batch_size, self.lengths = 4, (16, 32)

    def train(self, model):
        length = self.lengths[0]
        draw = functools.partial(self.batch, length=length, training=True)
        data = Drawn(draw, self.steps, (0, self.seed))
        return model.fit(data, verbose=0)

    def accuracy(self, model, **options):
        draw = functools.partial(self.batch, **options)
        data = Drawn(draw, self.test_steps, (2,))
        score = model.evaluate(data, verbose=0, return_dict=True)
        return 100 * score["accuracy"]

    def batch(self, generator, **options):
        """Tokens and answers of `draw`, and weights: 0 is no question."""
        tokens, answers = self.draw(generator, **options)
        return tokens, answers, (answers != 0).astype("float32")

    def metrics(self, model):
        return {
            f"{length:,} positions, %": self.accuracy(model, length=length)
            for length in self.lengths
        }


class SelectiveCopying(Task):
    """Symbols between noise are to be written in their order.

    Source: Gu, Dao, 2023, arXiv 2312.00752, section 4.1.1. Here each answer has
    a mark of its own, which says the number of its symbol.
    """

    copied, lengths = 8, (128, 512, 2048)

    def draw(self, generator, length, training=False):
        """Tokens and answers `(B, length)`."""
        noisy, shape = length - self.copied, (self.batch_size, self.copied)
        tokens, answers = np.zeros((2, self.batch_size, length), "int32")
        order = generator.random((self.batch_size, noisy)).argsort(axis=1)
        places = np.sort(order[:, : self.copied], axis=1)
        symbols = generator.integers(1, 1 + self.symbols, shape)
        np.put_along_axis(tokens, places, symbols, axis=1)
        tokens[:, noisy:] = 1 + self.symbols + np.arange(self.copied)
        answers[:, noisy:] = symbols
        return tokens, answers


class Needle(Task):
    """A symbol behind a mark, among others; questions ask for it later.

    In training each row has several questions after the needle, in a test only
    the last position asks.
    """

    lengths, questions = (128, 512, 2048), 8

    def draw(self, generator, length, training=False, depth=None):
        """Tokens and answers `(B, length)`; the mark at `depth` of it."""
        shape = (self.batch_size, length)
        tokens = generator.integers(1, 1 + self.symbols, shape, "int32")
        asked = np.zeros(shape, bool)
        asked[:, -1] = True
        rows = np.arange(self.batch_size)
        places = generator.integers(length - 2, size=self.batch_size)
        if depth is not None:
            places[:] = round(depth * (length - 3))
        needles = tokens[rows, places + 1]
        if training:
            asked |= generator.random(shape) < self.questions / length
            asked &= np.arange(length) > places[:, None] + 1
        tokens[rows, places] = 1 + self.symbols
        tokens[asked] = 2 + self.symbols
        return tokens, np.where(asked, needles[:, None], 0).astype("int32")

    def by_depth(self, model):
        """Accuracy at the longest length, by the place of the mark."""
        return {
            f"{depth:.0%}": self.accuracy(
                model, length=self.lengths[-1], depth=depth
            )
            for depth in (0, 0.25, 0.5, 0.75, 1)
        }


TASKS = {"copying": SelectiveCopying, "needle": Needle}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--task", choices=TASKS, required=True)
    add("--mechanism", nargs="+", default=["gated_delta"], help="one a block")
    add("--learning-rate", type=float, default=Task.learning_rate)
    add("--seed", type=int, default=0)
    add("--out", help="not used: the caller keeps the results")
    add("--smoke", action="store_true", help="tiny, quick runs")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    task = TASKS[args.task](args.seed, args.smoke)
    keras.utils.set_random_seed(args.seed)
    model = task.model(entries_of(args.mechanism))
    optimizer = adamw(task.steps, args.learning_rate)
    model.compile(optimizer, task.loss, weighted_metrics=["accuracy"])
    started = time.perf_counter()
    history = task.train(model)
    seconds, steps = time.perf_counter() - started, task.steps
    metrics = task.metrics(model)
    if args.task == "needle":
        curve = task.by_depth(model)
    print(args.mechanism, metrics, f"{seconds:.0f} s")
