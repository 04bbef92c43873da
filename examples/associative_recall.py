"""How many pairs does a causal attention remember? Associative recall.

You learn how to build your own model from `LinearTransformerDecoder` blocks and
train it on sequences in which only some positions have a label.

    python examples/associative_recall.py --mechanism gated_delta softmax

A sequence lists pairs of a key and a value, then asks for the keys again:

    key value key value ... key . . key key . key ...

At each question the model must name the value. Softmax looks the pairs up;
linear attention must hold them in a state of fixed size (4 minutes, 2 cores).
Source: Arora et al. 2023, arXiv 2312.04927; here with fewer symbols.
"""

import argparse
import json
import pathlib
import sys
import time

import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_linattn

# ## Settings

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--mechanism", nargs="+", default=["delta_rule"])
parser.add_argument("--epochs", type=int, default=2, help="200 steps each")
parser.add_argument("--pairs", nargs="+", type=int, default=[4, 8, 16, 32])
parser.add_argument("--hidden-dim", type=int, default=64)
parser.add_argument("--symbols", type=int, default=128, help="keys to draw of")
parser.add_argument("--learning-rate", type=float, default=3e-3)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="out/associative_recall")
parser.add_argument("--smoke", action="store_true", help="a tiny, quick run")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)

sizes, batch_size, steps, test_steps = args.pairs, 32, 200, 16
epochs, hidden_dim, num_layers = args.epochs, args.hidden_dim, 2
if args.smoke:
    sizes, batch_size, steps, test_steps = (2, 20), 4, 4, 1
    epochs, hidden_dim, num_layers = 1, 16, len(args.mechanism)
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(args.seed)
pattern = [json.loads(x) if x[0] == "{" else x for x in args.mechanism]

# ## Data: drawn anew for each batch, in a size that takes turns

SYMBOLS = max(args.symbols, *sizes)  # keys, then values; 0 is the filler


def draw(generator, pairs):
    """Draws tokens and answers `(B, T)`; an answer is 0 without a question."""
    length = max(64, 4 * pairs)
    shape = (batch_size, SYMBOLS)
    keys = 1 + generator.random(shape).argsort(axis=1)[:, :pairs]
    values = 1 + SYMBOLS + generator.random(shape).argsort(axis=1)[:, :pairs]
    tokens, answers = np.zeros((2, batch_size, length), "int32")
    tokens[:, 0 : 2 * pairs : 2] = keys
    tokens[:, 1 : 2 * pairs : 2] = values
    # Most gaps before a question are short: place g has weight 1 / g^0.99. The
    # largest of log-weight + Gumbel noise draws places without replacement.
    weights = -0.99 * np.log(np.arange(1, length // 2 - pairs + 1))
    scores = weights + generator.gumbel(size=(batch_size, len(weights)))
    chosen = 2 * pairs + 2 * scores.argsort(axis=1)[:, -pairs:]
    order = generator.random((batch_size, pairs)).argsort(axis=1)
    chosen = np.take_along_axis(chosen, order, axis=1)
    np.put_along_axis(tokens, chosen, keys, axis=1)
    np.put_along_axis(answers, chosen, values, axis=1)
    return tokens, answers


class RecallBatches(keras.utils.PyDataset):
    def __init__(self, sizes, steps, seed):
        super().__init__()
        # Under TensorFlow, Keras compiles for any length only if the first two
        # batches differ in length: begin with the longest and the shortest.
        self.sizes = [max(sizes), *sorted(sizes)[:-1]]
        self.steps, self.seed, self.epoch = steps, seed, 0

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        generator = np.random.default_rng([*self.seed, self.epoch, index])
        tokens, answers = draw(generator, self.sizes[index % len(self.sizes)])
        return tokens, answers, (answers != 0).astype("float32")

    def on_epoch_end(self):
        self.epoch += 1


# ## Model: no positions; a short convolution lets a value see its key

inputs = keras.Input((None,), dtype="int32")
options = {"num_heads": 2, "activation": "gelu", "normalize_first": True}
x = keras.layers.Embedding(1 + 2 * SYMBOLS, hidden_dim)(inputs)
for number in range(num_layers):
    near = keras.layers.LayerNormalization(epsilon=1e-5)(x)
    near = keras.layers.Conv1D(hidden_dim, 4, padding="causal")(near)
    block = keras_linattn.LinearTransformerDecoder(
        2 * hidden_dim, mechanism=pattern[number % len(pattern)], **options
    )
    x = block(keras.layers.Add()([x, near]))
x = keras.layers.LayerNormalization(epsilon=1e-5)(x)
model = keras.Model(inputs, keras.layers.Dense(1 + 2 * SYMBOLS)(x))

rate, warmup = args.learning_rate, max(1, steps * epochs // 10)
schedule = keras.optimizers.schedules.CosineDecay(
    0.0, steps * epochs - warmup, warmup_target=rate, warmup_steps=warmup
)
optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05, clipnorm=1.0)
optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
loss = keras.losses.SparseCategoricalCrossentropy(
    from_logits=True, reduction="mean_with_sample_weight"
)
model.compile(optimizer, loss, weighted_metrics=["accuracy"])

# ## Train, and test each size

start = time.perf_counter()
history = model.fit(RecallBatches(sizes, steps, (0, args.seed)), epochs=epochs)
seconds = time.perf_counter() - start
accuracy = {}
for pairs in sizes:
    test = RecallBatches([pairs], test_steps, (2,))
    _, accuracy[pairs] = model.evaluate(test, verbose=0)
    print(f"{pairs} pairs: {accuracy[pairs]:.1%}, a guess: {1 / pairs:.1%}")
print(f"Trained in {seconds:.0f} s.")

axis = plt.figure().subplots()
axis.plot(sizes, accuracy.values(), "o-", label=" + ".join(args.mechanism))
axis.plot(sizes, [1 / pairs for pairs in sizes], "k:", label="guess")
axis.set(xlabel="pairs in the sequence", ylabel="test accuracy", xscale="log")
axis.legend()
plt.savefig(out / "recall.png", dpi=100)

# ## Save and load again

model.save(out / "model.keras")
loaded = keras.saving.load_model(out / "model.keras")
first, again = (m.predict(test[0][0], verbose=0) for m in (model, loaded))
np.testing.assert_allclose(again, first, atol=1e-4)
print(f"Files in {out}")
