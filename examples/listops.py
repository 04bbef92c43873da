"""Compute nested operations on digits: ListOps of the Long Range Arena.

You learn how to train a `TextClassifier` on token ids of your own.

    python examples/listops.py

The model reads an expression such as `[MAX 4 3 [MIN 2 3 ] 1 ]` token by token
and names its value. MED is the median, rounded down; SM is the sum modulo 10.
Training takes about 4 minutes on two CPU cores. The Long Range Arena has 500 to
2,000 tokens and 96,000 training expressions: change the settings to get there.

Source: Tay et al. 2021, arXiv 2011.04006, section 2.2.1; Nangia and Bowman
2018, arXiv 1804.06028. Differs from it: the expressions are drawn anew, and
hashed n-grams take the place of positions.
"""

import argparse
import pathlib
import random
import statistics
import sys
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import sklearn.metrics

import keras_linattn

# ## Settings

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--mechanism", default="modified_linformer")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="out/listops")
parser.add_argument("--smoke", action="store_true", help="a tiny, quick run")
# A notebook has no command line.
args = parser.parse_args([] if "ipykernel" in sys.modules else None)

shortest, longest, epochs = 20, 200, args.epochs
num_test, num_validation, num_train = 2000, 500, 12000
model_sizes = {"hidden_dim": 64, "num_layers": 2, "num_buckets": 4096}
if args.smoke:
    num_test, num_validation, num_train, epochs = 32, 32, 64, 1
    model_sizes = {"hidden_dim": 16, "num_layers": 1, "num_buckets": 256}
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(args.seed)

# ## Data: expressions are lists of tokens, drawn at random

OPERATORS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda digits: int(statistics.median(digits)),
    "[SM": lambda digits: sum(digits) % 10,
}
TOKENS = ["<pad>", *"0123456789", *OPERATORS, "]"]


def draw(generator, levels=10):
    """Draws an operation, at most `levels` deep, and its value."""
    operator = generator.choice(list(OPERATORS))
    tokens, values = [operator], []
    for _ in range(generator.randint(2, 10)):
        if levels > 2 and generator.random() < 0.25:
            inner, value = draw(generator, levels - 1)
            tokens += inner
        else:
            value = generator.randrange(10)
            tokens.append(str(value))
        values.append(value)
        if len(tokens) > longest:
            break  # too long in any case
    return [*tokens, "]"], OPERATORS[operator](values)


def draw_many(number):
    """Draws ids `(N, longest)`, padded with 0, and values; no two alike."""
    generator, drawn = random.Random(args.seed), {}
    while len(drawn) < number:
        tokens, value = draw(generator)
        if shortest <= len(tokens) <= longest:
            drawn[" ".join(tokens)] = value
    ids = [[TOKENS.index(word) for word in text.split()] for text in drawn]
    ids = keras.utils.pad_sequences(ids, longest, padding="post")
    return ids, np.array(list(drawn.values())), list(drawn)


x, y, texts = draw_many(num_test + num_validation + num_train)
test_x, validation_x, train_x = np.split(
    x, [num_test, num_test + num_validation]
)
test_y, validation_y, train_y = np.split(
    y, [num_test, num_test + num_validation]
)
print(f"{min(texts, key=len)} = {y[texts.index(min(texts, key=len))]}")

# ## Model

model = keras_linattn.models.TextClassifier(
    num_classes=10,
    vocabulary_size=len(TOKENS),
    merge_factor=1,
    mechanism=args.mechanism,
    **model_sizes,
)
steps = epochs * -(-num_train // 32)
warmup = max(1, steps // 10)
schedule = keras.optimizers.schedules.CosineDecay(
    0.0, max(1, steps - warmup), warmup_target=2e-3, warmup_steps=warmup
)
optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05, clipnorm=1.0)
optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
model.compile(
    optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"]
)

# ## Train and test

start = time.perf_counter()
history = model.fit(
    train_x,
    train_y,
    batch_size=32,
    epochs=epochs,
    validation_data=(validation_x, validation_y),
)
seconds = time.perf_counter() - start
score = model.evaluate(test_x, test_y, verbose=0, return_dict=True)
commonest = np.bincount(test_y).max() / len(test_y)
print(f"Trained in {seconds:.0f} s. Test accuracy: {score['accuracy']:.2%}")
print(f"Always the commonest value: {commonest:.2%}")

predicted = model.predict(test_x, verbose=0).argmax(axis=-1)
sklearn.metrics.ConfusionMatrixDisplay.from_predictions(
    test_y, predicted, labels=range(10)
)
plt.savefig(out / "confusion.png", dpi=100)

# ## Save and load again

model.save(out / "model.keras")
loaded = keras.saving.load_model(out / "model.keras")
expected = model.predict(test_x[:8], verbose=0)
answer = loaded.predict(test_x[:8], verbose=0)
np.testing.assert_allclose(answer, expected, atol=1e-5)
print(f"Files in {out}")
