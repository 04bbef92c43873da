"""Train a language model on several devices, each with a piece of the text.

You learn how to split the batch, the heads or the length of sequences over
devices, that the loss is that of one device, and how to go on after a stop.

    KERAS_BACKEND=jax python examples/distributed_training.py --split length

Without accelerators it runs on 4 virtual devices of your CPU; with them, on
all there are, unchanged. The text is the source of some modules of Python.
"""

import argparse
import os
import pathlib
import sys
import time

# Before JAX is imported. Only the CPU platform looks at this.
flags = os.environ.get("XLA_FLAGS", "")
if "device_count" not in flags:
    flags += " --xla_force_host_platform_device_count=4"
os.environ["XLA_FLAGS"] = flags
os.environ.setdefault("KERAS_BACKEND", "jax")

import keras  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

import keras_linattn  # noqa: E402

# ## Settings

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument(
    "--split", default="length", choices=["batch", "heads", "length"]
)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--out", default="out/distributed_training")
parser.add_argument("--smoke", action="store_true", help="a tiny, quick run")
# A notebook has no command line.
args = parser.parse_args([] if "ipykernel" in sys.modules else None)

length, batch_size, epochs = 1024, 8, args.epochs
sizes = {"hidden_dim": 64, "num_layers": 2, "num_heads": 4}
if args.smoke:
    length, epochs = 64, 1
    sizes = {"hidden_dim": 16, "num_layers": 1, "num_heads": 4}
out = pathlib.Path(args.out)
out.mkdir(parents=True, exist_ok=True)

# ## Devices: a mesh, and the axis of arrays that its second axis splits

distribution = None
if keras.backend.backend() == "jax":
    devices = keras.distribution.list_devices()
    names = {"batch": "unused", "heads": "model", "length": "sequence"}
    shape = (len(devices), 1) if args.split == "batch" else (1, len(devices))
    mesh = keras.distribution.DeviceMesh(
        shape, ("batch", names[args.split]), devices
    )
    if args.split == "length":
        distribution = keras_linattn.distribution.SequenceParallel(mesh)
    elif args.split == "heads":
        layouts = keras_linattn.distribution.layout_map(mesh)
        distribution = keras.distribution.ModelParallel(layout_map=layouts)
    else:
        layouts = keras.distribution.LayoutMap(mesh)
        distribution = keras.distribution.ModelParallel(layout_map=layouts)
    print(f"{len(devices)} devices, which split the {args.split}")

# ## Data: windows of bytes; byte b becomes id b + 1

text = b"".join(
    pathlib.Path(module.__file__).read_bytes()
    for module in (argparse, os, pathlib)
)
ids = np.frombuffer(text, "uint8").astype("int32") + 1
rows = (len(ids) - 1) // length // batch_size * batch_size
rows = min(rows, 2 * batch_size) if args.smoke else rows
x = ids[: rows * length].reshape(rows, length)
y = ids[1 : rows * length + 1].reshape(rows, length)


# ## Model: made after the distribution is set, from the same seed


def make_model():
    keras.utils.set_random_seed(0)
    model = keras_linattn.models.CausalLM(mechanism="gated_delta", **sizes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(2e-3), loss)
    return model


def loss_of(model):
    batch = x[:batch_size], y[:batch_size]
    score = model.evaluate(*batch, batch_size, verbose=0, return_dict=True)
    return score["loss"]


alone = loss_of(make_model())
keras.distribution.set_distribution(distribution)
model = make_model()
loss = loss_of(model)
print(f"Loss before training, on one device and on all: {alone:.6f} {loss:.6f}")
np.testing.assert_allclose(loss, alone, rtol=1e-5)

# ## Train: a stopped run goes on from its last epoch

# A run that dies while it writes a backup goes on from the one before it.
backup = keras.callbacks.BackupAndRestore(
    out / "backup", double_checkpoint=True
)
start = time.perf_counter()
history = model.fit(
    x, y, batch_size=batch_size, epochs=epochs, callbacks=[backup]
)
seconds = time.perf_counter() - start

figure, axis = plt.subplots()
axis.plot(history.history["loss"], "o-")
axis.set(xlabel="epoch", ylabel="loss")
figure.savefig(out / "loss.png", dpi=100)

# ## A file holds whole arrays: it loads on any number of devices

model.save(out / "model.keras")
expected = loss_of(model)
keras.distribution.set_distribution(None)
loaded = keras.saving.load_model(out / "model.keras")
loss = loss_of(loaded)
np.testing.assert_allclose(loss, expected, rtol=1e-4)
print(f"{seconds:.0f} s. Files in {out}")
