"""One run of the study `equal_time`: what a mechanism learns in a given time.

`job.py` runs this file as it runs an example. All models have the same blocks
around their mechanism, and train on the same batches until the budget is used.
The budget counts seconds of the processor, without tests: a busy machine
changes it less than the time on a wall clock.
"""

import argparse
import itertools
import statistics
import time
import types

import keras

from keras_linattn import layers
from keras_linattn import mechanisms
from tools.studies.mechanisms import entries_of
from tools.studies.optimizers import adamw_at
from tools.studies.optimizers import schedule
from tools.studies.tasks import ListOps

PARTS = (1 / 4, 1 / 2, 1)  # of the budget, after which we test


def parse():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--mechanism", default="modified_linformer")
    add("--budget", type=float, default=20.0, help="seconds of training")
    add("--causal", action="store_true", help="positions see the past only")
    add("--seed", type=int, default=0)
    add("--out", help="not used: the caller keeps the results")
    add("--smoke", action="store_true", help="a tiny, quick run")
    return parser.parse_args()


class Short(ListOps):
    """Expressions of up to 100 tokens: a step takes half of the time."""

    longest = 100

    def model(self, mechanism, causal=False):
        """A classifier like that of ListOps; causal: of decoder blocks."""
        make = layers.LinearTransformerEncoder
        if causal:
            make = layers.LinearTransformerDecoder
        width = self.sizes["hidden_dim"]
        tokens = keras.Input((None,), dtype="int32")
        x = layers.NGramEmbedding(
            len(self.tokens), width, num_buckets=self.sizes["num_buckets"]
        )(tokens)
        for _ in range(self.sizes["num_layers"]):
            x = make(
                2 * width,
                num_heads=2,
                dropout=0.1,
                activation="gelu",
                normalize_first=True,
                mechanism=mechanisms.with_input_sizes(
                    mechanism, sequence_length=self.longest
                ),
            )(x)
        x = keras.layers.LayerNormalization(epsilon=1e-5)(x)
        x = layers.MaskedAveragePooling()(x)
        return keras.Model(tokens, keras.layers.Dense(10, "softmax")(x))


def train(model, task, budget):
    """Trains until the budget is used.

    Args:
        model: compiled `keras.Model`.
        task: `Short`.
        budget: float, seconds of the processor.

    Returns:
        Steps, the mean loss in each part of the budget, and a dict from parts
        of the budget to the accuracy on the test data then, in percent.
    """
    rate = schedule(1000, task.learning_rate)  # thousandths of the budget
    batches = task.batches(1, 0)
    model.train_on_batch(*batches[0])  # compiles; not counted, at rate 0
    losses, means, accuracies, used = [], [], {}, 0.0
    for step in itertools.count(1):
        model.optimizer.learning_rate = float(rate(1000 * used / budget))
        started = time.process_time()
        losses.append(float(model.train_on_batch(*batches[step])[0]))
        used += time.process_time() - started
        while used >= PARTS[len(accuracies)] * budget:
            part = PARTS[len(accuracies)]
            means.append(statistics.fmean(losses))
            losses = losses[-1:]
            accuracies[f"{part:.0%}"] = task.score(model)
            if part == PARTS[-1]:
                return step, means, accuracies


if __name__ == "__main__":
    args = parse()
    budget = 0.1 if args.smoke else args.budget
    keras.utils.set_random_seed(args.seed)
    task = Short(args.seed, args.smoke)
    (mechanism,) = entries_of([args.mechanism])
    model = task.model(mechanism, args.causal)
    model.compile(adamw_at(0.0), task.loss, metrics=["accuracy"])
    steps, losses, curve = train(model, task, budget)
    seconds = budget  # and a part of the last step
    metrics = {"test accuracy, %": curve["100%"]}
    history = types.SimpleNamespace(history={"loss": losses})
    print(args.mechanism, f"{steps} steps", curve)
