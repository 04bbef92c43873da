"""Tell languages apart in raw waveforms, with attention in linear time.

You learn how to train an `AudioClassifier` on samples (no spectrogram), see its
errors, save it and export it.

    bash tools/speech_prompts.sh  # fetches the recordings, 98 MB
    python examples/audio_classification.py

Telephone prompts in five languages at 8 kHz. Training reads random parts of a
second; the test reads up to four seconds, which are 2,048 frames. Each language
has one voice, so the model tells speakers apart as much as languages. Training
takes about 7 minutes on two CPU cores; expect 97 % of the test recordings
right. In a notebook, put data.py beside it.
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
parser.add_argument("--mechanism", default="modified_linformer")
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default="out/audio_classification")
parser.add_argument("--smoke", action="store_true", help="a tiny, quick run")
# A notebook has no command line.
args = parser.parse_args([] if "ipykernel" in sys.modules else None)

train_length, test_length, batch_size, epochs = 8192, 32768, 16, args.epochs
model_sizes = {}
if args.smoke:
    train_length, test_length, batch_size, epochs = 4096, 8192, 8, 1
    model_sizes = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2}
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(args.seed)

# ## Data: waveforms of any length; zeros at the end are padding

(train_x, train_y), (test_x, test_y), class_names = data.load_speech_prompts()
if args.smoke:
    train_x, train_y = train_x[:40], train_y[:40]
    test_x, test_y = test_x[:8], test_y[:8]
held_out = len(train_x) // 10  # for validation


def batches(waveforms, labels, length, **options):
    labels = keras.utils.to_categorical(labels, len(class_names))
    return data.LengthBatches(
        waveforms, labels, batch_size, 4096, length, **options
    )


train = batches(
    train_x[held_out:],
    train_y[held_out:],
    train_length,
    seed=args.seed,
    random_parts=True,
)
validation = batches(train_x[:held_out], train_y[:held_out], test_length)
test = batches(test_x, test_y, test_length)
print(f"{len(train_x):,} recordings to train on, {len(test_x):,} to test on")

# ## Model: strided convolutions make frames, then linear attention blocks

model = keras_linattn.models.AudioClassifier(
    len(class_names), mechanism=args.mechanism, **model_sizes
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
score = model.evaluate(test, verbose=0, return_dict=True)
print(f"Trained in {seconds:.0f} s. Test accuracy: {score['accuracy']:.2%}")

# ## Which languages does it confuse?

order = np.concatenate(test.batches)  # `test` is sorted by length
predicted = np.empty(len(order), "int32")
predicted[order] = model.predict(test, verbose=0).argmax(axis=-1)
sklearn.metrics.ConfusionMatrixDisplay.from_predictions(
    test_y,
    predicted,
    labels=range(len(class_names)),
    display_labels=class_names,
)
plt.savefig(out / "confusion.png", dpi=100)

# ## Save, load again, export

model.save(out / "model.keras")
loaded = keras.saving.load_model(out / "model.keras")
waveform = test_x[0][None, :test_length]
expected = model.predict(waveform, verbose=0)
answer = loaded.predict(waveform, verbose=0)
np.testing.assert_allclose(answer, expected, atol=1e-5)

# The SavedModel needs neither Keras nor this package, only TensorFlow.
path = out / "saved_model"
keras_linattn.export.export_saved_model(model, path, overwrite=True)
served = tf.saved_model.load(str(path)).signatures["serving_default"]
answer = served(waveforms=tf.constant(waveform))["output_0"].numpy()
np.testing.assert_allclose(answer, expected, atol=1e-4)
print(f"The export hears {class_names[answer[0].argmax()]}. Files in {out}")
