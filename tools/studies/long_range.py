"""One run of the study `long_range`: tasks of the Long Range Arena.

`job.py` runs this file as it runs an example. A task has one model for all
mechanisms: token embeddings, learned positions, three encoder blocks, the mean
over the positions. Nothing tells it that pixels lie in two dimensions. Data
that take long to make are kept in .data/long_range.

Source: Tay et al., "Long Range Arena", 2021, arXiv 2011.04006, section 2.2.
"""

import argparse
import hashlib
import os
import pathlib
import time

import keras
import numpy as np
import scipy.ndimage

import keras_linattn
from tools import _process
from tools.studies import pathfinder
from tools.studies.mechanisms import entries_of
from tools.studies.optimizers import adamw
from tools.studies.tasks import Drawn
from tools.studies.tasks import draw_rows
from tools.studies.tasks import example_data
from tools.studies.tasks import listops

CACHE = _process.ROOT / ".data" / "long_range"
WIDTH, BLOCKS, HEADS = 64, 3, 2
PARTS = 10  # of a training, each with a value in the history


class Task:
    """What the tasks share: `load` gives the data, `vary` augments a batch.

    The data are the same for each seed, which draws the weights, the batches
    and their changes.
    """

    steps, batch_size, tested_at_once = 3000, 64, 200
    learning_rate = 2e-3
    padding = False  # whether id 0 is masked

    def __init__(self, smoke=False):
        self.smoke = smoke
        if smoke:
            self.steps, self.batch_size = 2 * PARTS, 2
        train, test = self.load()
        self.train = train
        self.test = [array[:4] for array in test] if smoke else test

    def vary(self, tokens, generator):
        return tokens

    def kept(self, name, make):
        """What `make` returns; kept in a file, unless it is a smoke run."""
        return make() if self.smoke else cached(name, make)

    def draw(self, generator):
        """A batch to train on."""
        tokens, labels = draw_rows(self.train, self.batch_size, generator)
        return self.vary(tokens, generator), labels


class Pixels(Task):
    """Digits, row by row: turned, scaled and moved a little in training.

    A changed image has more grey values between black and white than those of
    the test. So half of the images stay as they are.
    """

    vocabulary, length, classes = 256, 28 * 28, 10
    degrees, scale, moved = 10, 0.1, 2  # at most; the last in pixels
    changed = 0.5  # share of the images

    def load(self):
        return [
            (np.rint(255 * images).astype("uint8").reshape(-1, 28**2), labels)
            for images, labels in example_data().load_mnist_5k()[:2]
        ]

    def vary(self, tokens, generator):
        tokens = tokens.copy()
        for row in np.flatnonzero(generator.random(len(tokens)) < self.changed):
            image = self.varied(tokens[row].reshape(28, 28), generator)
            tokens[row] = image.reshape(-1)
        return tokens

    def varied(self, image, generator):
        turn, scale, *moved = generator.uniform(-1, 1, 4)
        angle = np.deg2rad(self.degrees * turn)
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, -sin], [sin, cos]]) * (1 + self.scale * scale)
        middle = np.full(2, 13.5)
        offset = middle - matrix @ (middle + self.moved * np.array(moved))
        return scipy.ndimage.affine_transform(image, matrix, offset, order=1)


class Pathfinder(Task):
    """Are two circles ends of one path? Turned and mirrored in training."""

    form, steps = pathfinder.EASIEST, 10000
    vocabulary, length, classes = 256, form.size**2, 2
    number, tested = 44000, 4000

    def load(self):
        number = 8 if self.smoke else self.number

        def make():
            images, labels = pathfinder.make_images(number, 0, self.form)
            return images.reshape(number, -1), labels

        name = f"pathfinder-{number}-{self.form.size}"
        name += f"-{digest(pathfinder.__file__)}"
        return split(*self.kept(name, make), self.tested)

    def vary(self, tokens, generator):
        images = tokens.reshape(-1, self.form.size, self.form.size)
        # Of a batch each eighth is changed in one of the eight ways.
        turns = generator.permutation(np.arange(len(images)) % 8)
        images = [
            np.rot90(image if turn < 4 else image.T, turn)
            for image, turn in zip(images, turns, strict=True)
        ]
        return np.stack(images).reshape(tokens.shape)


class SmallPathfinder(Pathfinder):
    """To train without a GPU: a quarter of the pixels, shorter paths."""

    form, steps = pathfinder.SMALL, 3000
    length = form.size**2


class ListOps(Task):
    """Nested operations on digits, as in examples/listops.py, but longer."""

    vocabulary, length, classes = 16, 2000, 10
    steps, batch_size, tested_at_once = 1250, 32, 50
    padding = True
    number, tested = 34000, 2000

    def load(self):
        number = 8 if self.smoke else self.number
        shortest = 500
        _, draw_many = listops(0, shortest, self.length)

        def make():
            tokens, values, _ = draw_many(number)
            return tokens.astype("uint8"), values.astype("int32")

        name = f"listops-{number}-{shortest}-{self.length}"
        name += f"-{digest(_process.ROOT / 'examples' / 'listops.py')}"
        return split(*self.kept(name, make), self.tested)


TASKS = {
    "pixels": Pixels,
    "pathfinder": Pathfinder,
    "small_pathfinder": SmallPathfinder,
    "listops": ListOps,
}


def cached(name, make):
    """The arrays that `make()` returns, kept in a file of `CACHE`."""
    path = CACHE / f"{name}.npz"
    if not path.is_file():
        arrays = make()
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = CACHE / f"{name}.{os.getpid()}.npz"
        np.savez_compressed(unfinished, *arrays)
        unfinished.replace(path)  # whole, or not at all: jobs run side by side
    with np.load(path) as file:
        return [file[name] for name in file.files]


def digest(path):
    """Names a file's text: data that other code made are not taken for new."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:8]


def split(tokens, labels, tested):
    """Training and test data: the test has the first rows, at most a half."""
    tested = min(tested, len(labels) // 2)
    return (tokens[tested:], labels[tested:]), (
        tokens[:tested],
        labels[:tested],
    )


class Positions(keras.layers.Layer):
    """Adds a learned vector to each position."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, shape):
        self.table = self.add_weight(shape[1:], "random_normal", name="table")

    def call(self, inputs):
        return inputs + self.table


def make_model(task, mechanism):
    """A classifier of `(B, length)` token ids."""
    width, blocks = (16, 1) if task.smoke else (WIDTH, BLOCKS)
    tokens = keras.Input((task.length,), dtype="int32")
    x = keras.layers.Embedding(task.vocabulary, width, mask_zero=task.padding)(
        tokens
    )
    x = Positions()(x)
    for _ in range(blocks):
        x = keras_linattn.LinearTransformerEncoder(
            2 * width,
            num_heads=HEADS,
            activation="gelu",
            normalize_first=True,
            mechanism=mechanism,
        )(x)
    x = keras.layers.LayerNormalization(epsilon=1e-5)(x)
    x = keras_linattn.layers.MaskedAveragePooling()(x)
    return keras.Model(tokens, keras.layers.Dense(task.classes)(x))


def train(model, task, seed, learning_rate, steps):
    """Compiles and trains the model; returns the history of `PARTS` parts."""
    eager = keras.backend.backend() == "torch"
    model.compile(
        adamw(steps, learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=1 if eager else min(50, -(-steps // PARTS)),
    )
    data = Drawn(task.draw, -(-steps // PARTS), (seed,))
    return model.fit(data, epochs=PARTS, verbose=0)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--task", choices=TASKS, required=True)
    add("--mechanism", nargs="+", default=["modified_linformer"])
    add("--changed", type=float, help="share of the pixels' images")
    add("--steps", type=int, help="default: those of the task")
    add("--learning-rate", type=float, help="default: that of the task")
    add("--seed", type=int, default=0)
    add("--out", help="not used: the caller keeps the results")
    add("--smoke", action="store_true", help="a tiny, quick run")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    task = TASKS[args.task](args.smoke)
    if args.changed is not None:
        task.changed = args.changed
    steps = args.steps or task.steps
    keras.utils.set_random_seed(args.seed)
    model = make_model(task, entries_of(args.mechanism)[0])
    started = time.perf_counter()
    history = train(
        model, task, args.seed, args.learning_rate or task.learning_rate, steps
    )
    seconds = time.perf_counter() - started
    score = model.evaluate(
        *task.test,
        batch_size=task.tested_at_once,
        verbose=0,
        return_dict=True,
    )
    metrics = {"test accuracy, %": 100 * score["accuracy"]}
    print(args.task, args.mechanism, metrics, f"{seconds:.0f} s")
