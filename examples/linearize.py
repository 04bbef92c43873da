"""Turn a trained softmax model into a linear one: convert and distil.

You learn how to replace the attention of a model that you have trained already,
and how to win back what the replacement costs, in a tenth of the steps.

    python examples/linearize.py

The teacher is an ordinary model with `keras.layers.MultiHeadAttention`, which
predicts the next byte of 20 Newsgroups. Replace it by your own model:
`linearize` and `distill` need nothing else of this file.

Sources: Zhang et al. 2024, arXiv 2402.04347 (Hedgehog); Zhang et al. 2024,
arXiv 2410.10254 (LoLCATs).
"""

import argparse
import math
import pathlib
import sys
import time

import data
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_linattn

# ## Settings

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--mechanism", default="hedgehog")
parser.add_argument("--window", type=int, help="exact within so many bytes")
parser.add_argument("--steps", type=int, default=300, help="of the teacher")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="out/linearize")
parser.add_argument("--smoke", action="store_true", help="a tiny, quick run")
# A notebook has no command line.
args = parser.parse_args([] if "ipykernel" in sys.modules else None)

length, batch_size, steps, hidden, blocks = 256, 32, args.steps, 128, 2
test_bytes = 1 << 18
if args.smoke:
    length, batch_size, steps, hidden, blocks = 32, 4, 4, 16, 1
    test_bytes = 1024
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(args.seed)

# ## Data: windows of bytes, labels are the next bytes


def windows(text):
    """Returns inputs and labels, `(N, length)`."""
    ids = np.frombuffer(text, "uint8").astype("int32")
    end = (len(ids) - 1) // length * length
    return ids[:end].reshape(-1, length), ids[1 : end + 1].reshape(-1, length)


(train_texts, _), (test_texts, _), _ = data.load_texts("20newsgroups")
train = windows(b"\n".join(train_texts))
test = windows(b"\n".join(test_texts)[:test_bytes])

# ## The teacher: softmax attention, trained as usual

inputs = keras.Input((None,), dtype="int32", name="bytes")
x = keras.layers.Embedding(256, hidden)(inputs)
x = keras.layers.Conv1D(hidden, 4, padding="causal")(x)  # a sense of order
for _ in range(blocks):
    normal = keras.layers.LayerNormalization()(x)
    attention = keras.layers.MultiHeadAttention(4, hidden // 4)
    x = x + attention(normal, normal, use_causal_mask=True)
    normal = keras.layers.LayerNormalization()(x)
    wide = keras.layers.Dense(2 * hidden, activation="gelu")(normal)
    x = x + keras.layers.Dense(hidden)(wide)
logits = keras.layers.Dense(256)(keras.layers.LayerNormalization()(x))
teacher = keras.Model(inputs, logits)

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
optimizer = keras.optimizers.AdamW(2e-3, clipnorm=1.0)
teacher.compile(optimizer, loss)
teacher.fit(*train, batch_size=batch_size, steps_per_epoch=steps)

# ## Convert: the same weights, linear attention


def bits_per_byte(model):
    model.compile(loss=loss)
    options = {"batch_size": batch_size, "verbose": 0}
    return model.evaluate(*test, **options) / math.log(2)


model = keras_linattn.linearize(teacher, args.mechanism, window=args.window)
bits = {"teacher": bits_per_byte(teacher)}
bits["converted"] = bits_per_byte(model)

# ## Distil: first the feature maps, then adapters, each 1/20 of the steps

start = time.perf_counter()
histories = keras_linattn.distill(
    model,
    teacher,
    *train,
    batch_size=batch_size,
    steps_per_epoch=max(1, steps // 20),
    optimizer=keras.optimizers.Adam(5e-3),
    backup_dir=out / "backup",  # go on here after an interruption
)
seconds = time.perf_counter() - start
history = histories["finetune"]
bits["distilled"] = score = bits_per_byte(model)
print(f"Distilled in {seconds:.0f} s. Bits per byte of the test text:")
for name, value in bits.items():
    print(f"{name:>10}: {value:.3f}")

# The error of each layer against the teacher's: 0 is equal, 1 is an output of
# zeros. Layers with high errors can stay exact: `linearize(..., layers=...)`.
errors = keras_linattn.convert.attention_errors(
    model, teacher, test[0][:64], verbose=0
)
print({name: round(error, 3) for name, error in errors.items()})

axis = plt.figure().subplots()
axis.bar(list(bits), list(bits.values()))
axis.set(ylabel="bits per byte of the test text", ylim=(0, None))
plt.savefig(out / "bits_per_byte.png", dpi=100)

# ## Save and load again: an ordinary Keras model

model.save(out / "model.keras")
loaded = keras.saving.load_model(out / "model.keras")
expected = model.predict(test[0][:2], verbose=0)
answer = loaded.predict(test[0][:2], verbose=0)
np.testing.assert_allclose(answer, expected, atol=1e-4)
print(f"Files in {out}")
