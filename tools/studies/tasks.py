"""The tasks of the study `linearize`: data, models, optimizers, scores.

Data and settings are those of the examples, whose functions are read from
their files; only the attention differs.
"""

import ast
import functools
import importlib
import math
import random
import statistics
import sys
import types

import keras
import numpy as np

import keras_linattn
from tools import _process

EXAMPLES = _process.ROOT / "examples"


def definitions(example, names, answer=None, **settings):
    """Some functions, classes and constants of an example, by name.

    Args:
        example: name of the file.
        names: what to take from it.
        answer: which of them to return. Defaults to `None`: all.
        **settings: the example's global names that they use.
    """
    tree = ast.parse((EXAMPLES / example).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if _name(node) in names]
    settings |= {"keras": keras, "np": np}
    exec(compile(tree, example, "exec"), settings)
    return [settings[name] for name in answer or names]


def _name(node):
    if isinstance(node, ast.Assign):
        return getattr(node.targets[0], "id", None)
    return getattr(node, "name", None)


class Drawn(keras.utils.PyDataset):
    """Batches that `draw(generator)` makes, new ones in each epoch.

    Args:
        draw: function of a NumPy generator that returns a batch.
        steps: int, batches of an epoch.
        stream: tuple of ints, the seed. The same one gives the same batches.
    """

    def __init__(self, draw, steps, stream):
        super().__init__()
        self.draw, self.steps, self.stream = draw, steps, stream
        self.first = 0  # batch of this epoch

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        seed = [*self.stream, self.first + index]
        return self.draw(np.random.default_rng(seed))

    def on_epoch_end(self):
        self.first += self.steps


def draw_rows(arrays, batch_size, generator):
    """Rows drawn at random, the same ones of each array."""
    rows = generator.integers(len(arrays[0]), size=batch_size)
    return tuple(array[rows] for array in arrays)


class Recall:
    """Associative recall; the score is the mean over the numbers of pairs.

    Like the other tasks, it has `steps`, the teacher's training steps; the
    `learning_rate` of training from scratch; the `loss` and the name of the
    `score`.
    """

    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    learning_rate = 3e-3
    score_name = "accuracy, %"

    def __init__(self, seed, smoke):
        self.seed = seed
        self.steps, self.sizes, self.test_steps = 400, (4, 8, 16), 8
        self.hidden, batch_size = 64, 32
        if smoke:
            self.steps, self.sizes, self.test_steps = 20, (2, 4), 1
            self.hidden, batch_size = 16, 4
        names = ("SYMBOLS", "draw", "RecallBatches")
        self.symbols, _, self.data = definitions(
            "associative_recall.py",
            names,
            args=types.SimpleNamespace(symbols=128),
            batch_size=batch_size,
            sizes=self.sizes,
        )

    def model(self, mechanism):
        """A new model of two blocks: one mechanism, or a list that repeats."""
        entries = mechanism if isinstance(mechanism, list) else [mechanism]
        inputs = keras.Input((None,), dtype="int32")
        symbols = 1 + 2 * self.symbols
        x = keras.layers.Embedding(symbols, self.hidden)(inputs)
        for number in range(2):
            near = keras.layers.LayerNormalization(epsilon=1e-5)(x)
            near = keras.layers.Conv1D(self.hidden, 4, padding="causal")(near)
            x = keras_linattn.LinearTransformerDecoder(
                2 * self.hidden,
                num_heads=2,
                activation="gelu",
                normalize_first=True,
                mechanism=entries[number % len(entries)],
            )(keras.layers.Add()([x, near]))
        x = keras.layers.LayerNormalization(epsilon=1e-5)(x)
        return keras.Model(inputs, keras.layers.Dense(symbols)(x))

    def batches(self, steps, stream):
        """A data set of so many steps; each stream has data of its own."""
        return self.data(self.sizes, steps, (0, self.seed, stream))

    def score(self, model):
        """The score on the test data, of a compiled model."""
        scores = []
        for pairs in self.sizes:
            test = self.data([pairs], self.test_steps, (2,))
            score = model.evaluate(test, verbose=0, return_dict=True)
            scores.append(score["accuracy"])
        return 100 * float(np.mean(scores))


def listops(seed, shortest, longest):
    """The example's tokens, and its function that draws many expressions."""
    return definitions(
        "listops.py",
        ("OPERATORS", "draw", "TOKENS", "draw_many"),
        answer=("TOKENS", "draw_many"),
        random=random,
        statistics=statistics,
        args=types.SimpleNamespace(seed=seed),
        shortest=shortest,
        longest=longest,
    )


class ListOps:
    """Nested operations on digits; the score is the accuracy."""

    loss = "sparse_categorical_crossentropy"
    learning_rate = 2e-3
    score_name = "accuracy, %"
    longest = 200  # tokens

    def __init__(self, seed, smoke):
        self.seed = seed
        self.steps, number, tested = 1000, 20000, 4000
        self.batch_size = 32
        self.sizes = {"hidden_dim": 64, "num_layers": 2, "num_buckets": 4096}
        if smoke:
            self.steps, number, tested, self.batch_size = 20, 64, 32, 4
            self.sizes |= {"hidden_dim": 16, "num_buckets": 256}
        self.tokens, draw_many = listops(seed, 20, self.longest)
        x, y, _ = draw_many(number)
        self.test = x[:tested], y[:tested]
        self.train = x[tested:], y[tested:]

    def model(self, mechanism):
        return keras_linattn.models.TextClassifier(
            num_classes=10,
            vocabulary_size=len(self.tokens),
            merge_factor=1,
            mechanism=mechanism,
            **self.sizes,
        )

    def batches(self, steps, stream):
        draw = functools.partial(draw_rows, self.train, self.batch_size)
        return Drawn(draw, steps, (self.seed, stream))

    def score(self, model):
        score = model.evaluate(*self.test, verbose=0, return_dict=True)
        return 100 * score["accuracy"]


def example_data():
    """The module `data.py` of the examples."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module("data")


def newsgroups():
    """The texts of 20 Newsgroups for training and for tests, joined: bytes."""
    (train, _), (test, _), _ = example_data().load_texts("20newsgroups")
    return b"\n".join(train), b"\n".join(test)


def windows(text, length):
    """Ids `(N, length)` of a text's bytes, and of the bytes after them."""
    (function,) = definitions("language_model.py", ("windows",), length=length)
    return function(text)


class LanguageModel:
    """The bytes of 20 Newsgroups; the score is in bits per byte."""

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learning_rate = 2e-3
    score_name = "bits per byte"

    def __init__(self, seed, smoke):
        self.seed = seed
        self.steps, length, self.batch_size, tested = 600, 128, 16, 1 << 17
        self.sizes = {"hidden_dim": 64, "num_layers": 2}
        if smoke:
            self.steps, length, self.batch_size, tested = 20, 32, 4, 1024
            self.sizes = {"hidden_dim": 16, "num_layers": 1}
        train, test = newsgroups()
        self.train = windows(train, length)
        self.test = windows(test[:tested], length)

    def model(self, mechanism):
        # Rotary positions in place of the convolution, as in Llama: a byte
        # learns of others by attention only.
        return keras_linattn.models.CausalLM(
            mechanism=mechanism,
            kernel_size=None,
            attention_options={"rope_max_wavelength": 10000.0},
            **self.sizes,
        )

    batches = ListOps.batches

    def score(self, model):
        score = model.evaluate(
            *self.test,
            batch_size=self.batch_size,
            verbose=0,
            return_dict=True,
        )
        return score["loss"] / math.log(2)


TASKS = {"recall": Recall, "listops": ListOps, "bytes": LanguageModel}
