"""Child: one of two processes that train together, of torch or JAX.

    python processes.py PORT RANK FOLDER [STEP]

Under TensorFlow it is one process, of RANK 1, with two devices. `KERAS_BACKEND`
says which. Writes `FOLDER/RANK.npz`, the weights at the end.
With STEP, process 1 kills itself at the start of that step. An interrupted
run goes on from its last whole epoch, if `FOLDER` has one.
"""

import faulthandler
import os
import pathlib
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
PORT, RANK, FOLDER = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
DEADLY_STEP = int(sys.argv[4]) if len(sys.argv) > 4 else None

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_linattn  # noqa: E402

EPOCHS = 2
HANGS = 240  # seconds; less than the test waits


def make_model():
    keras.utils.set_random_seed(0)
    return keras_linattn.models.TextClassifier(
        num_classes=3,
        hidden_dim=8,
        num_layers=1,
        num_heads=2,
        num_buckets=16,
        dropout=0.0,
        merge_factor=2,
    )


def data():
    rng = np.random.default_rng(0)
    x = rng.integers(1, 200, (8, 16)).astype("int32")
    return x, np.arange(8) % 3


def train_alone():
    """What two processes must arrive at: two steps an epoch."""
    model = make_model()
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    for _ in range(EPOCHS):
        for start in (0, 4):
            batch = [x[start : start + 4] for x in data()]
            model.train_on_batch(*batch)
    return model


def save(model):
    values = [keras.ops.convert_to_numpy(v) for v in model.weights]
    np.savez(FOLDER / f"{RANK}.npz", *values)


def die_at(step):
    if RANK == 1 and step == DEADLY_STEP:
        os.kill(os.getpid(), signal.SIGKILL)


def train_with_torch():
    import torch
    from torch.nn.parallel import DistributedDataParallel

    # In a file: no process serves it, so that either may leave first.
    store = torch.distributed.FileStore(str(FOLDER / f"store_{PORT}"), 2)
    torch.distributed.init_process_group(
        "gloo", store=store, rank=RANK, world_size=2
    )
    model = make_model()
    # It refuses a weight that no path uses.
    parallel = DistributedDataParallel(model, find_unused_parameters=False)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
    path, first = FOLDER / "epoch.weights.h5", 0
    if path.exists():
        model.load_weights(path)
        first = int((FOLDER / "epoch.txt").read_text())
    for epoch in range(first, EPOCHS):
        for step, start in enumerate((0, 4)):
            die_at(2 * epoch + step)
            place = slice(start + 2 * RANK, start + 2 * RANK + 2)
            x, y = (torch.as_tensor(x[place]) for x in data())
            optimizer.zero_grad()
            loss = torch.nn.functional.nll_loss(torch.log(parallel(x)), y)
            loss.backward()
            optimizer.step()
        if RANK == 0:
            model.save_weights(path)
            (FOLDER / "epoch.txt").write_text(str(epoch + 1))
    # Who leaves may cut off what the other one still receives.
    store.set(f"done {RANK}", "")
    store.wait(["done 0", "done 1"])
    torch.distributed.destroy_process_group()
    return model


class Dying(keras.callbacks.Callback):
    steps = 0

    def on_train_batch_begin(self, batch, logs=None):
        die_at(2 * self.first + self.steps)
        self.steps += 1

    def on_epoch_begin(self, epoch, logs=None):
        self.first = epoch
        self.steps = 0


def train_with_jax():
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    keras.distribution.initialize(f"127.0.0.1:{PORT}", 2, RANK)
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    model = make_model()
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    fit(model)
    return model


def fit(model):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(data()).batch(4)
    # The lost connection is noticed while the next backup is written, which
    # is not whole then: the one before it must be kept.
    backup = keras.callbacks.BackupAndRestore(
        FOLDER / f"backup_{RANK}", double_checkpoint=True
    )
    model.fit(dataset, epochs=EPOCHS, callbacks=[backup, Dying()], verbose=0)


def train_with_tensorflow():
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, logical)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = make_model()
        model.compile(
            keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy"
        )
    fit(model)
    return model


if __name__ == "__main__":
    faulthandler.dump_traceback_later(HANGS, exit=True)  # says where
    train = {
        "torch": train_with_torch,
        "jax": train_with_jax,
        "tensorflow": train_with_tensorflow,
    }
    save(train[keras.backend.backend()]())
