"""Two processes train as one does, and one that is killed can go on."""

import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import numpy
from helpers import random

import keras_linattn
from keras_linattn import mechanisms

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
BACKEND = keras.backend.backend()
two_processes = pytest.mark.skipif(
    BACKEND == "tensorflow",
    reason="several workers under TensorFlow: keras-team/keras#20585",
)


def start(folder, *more):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    # What another process compiled for both of them, neither may take alone.
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return [
        subprocess.Popen(
            [sys.executable, HERE / "processes.py", str(port), str(rank)]
            + [folder, *more],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        for rank in range(2)
    ]


def finish(processes, timeout=300):
    printed = []
    try:
        for process in processes:
            printed.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in processes:
            process.kill()
    return printed


def wanted():
    sys.argv[1:4] = ["0", "0", "."]
    sys.path.insert(0, str(HERE))
    import processes

    return [numpy(v) for v in processes.train_alone().weights]


def assert_trained(folder):
    for rank in range(2):
        found = np.load(folder / f"{rank}.npz")
        for name, weights in zip(found.files, wanted_once()):
            np.testing.assert_allclose(found[name], weights, atol=1e-5)


_WANTED = []


def wanted_once():
    if not _WANTED:
        _WANTED.append(wanted())
    return _WANTED[0]


@two_processes
@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(
            False,
            marks=[pytest.mark.release] * (BACKEND == "jax"),
            id="whole",
        ),
        pytest.param(True, marks=pytest.mark.release, id="killed"),
    ],
)
def test_two_processes_train_as_one(tmp_path, monkeypatch, killed):
    monkeypatch.setattr(sys, "argv", [*sys.argv[:1]])
    if killed:  # in the second epoch; the first one is on the disk
        processes = start(tmp_path, "3")
        processes[1].wait(timeout=300)
        printed = finish(processes)
        assert [p.returncode != 0 for p in processes] == [True, True]
        assert "onnection" in printed[0] or "peer" in printed[0], printed[0]
    processes = start(tmp_path)
    printed = finish(processes)
    assert [p.returncode for p in processes] == [0, 0], printed
    assert_trained(tmp_path)


@pytest.mark.skipif(BACKEND != "torch", reason="DDP is torch's")
def test_every_weight_of_every_mechanism_is_used():
    """DDP stops at a weight without a gradient, one of 0 is none."""
    import torch

    x = torch.as_tensor(random(2, 16, 8))
    for name in mechanisms.available():
        config = {"name": name}
        if name == "linformer":
            config["sequence_length"] = 16
        causal = mechanisms.get(config).traits.forms[-1]
        layer = keras_linattn.LinearSelfAttention(
            2, 4, mechanism=config, causal=causal, use_gate=True
        )
        layer(x, training=True).square().sum().backward()
        unused = [
            v.path for v in layer.trainable_weights if v.value.grad is None
        ]
        assert not unused, name


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute")
def test_mirrored_strategy_trains_as_one_device(tmp_path):
    """In a process of its own: logical devices are made before all else."""
    code = f"""
import sys
sys.argv[1:] = ["0", "0", {str(tmp_path)!r}]
sys.path.insert(0, {str(HERE)!r})
import keras, processes, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
logical = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, logical)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    model = processes.make_model()
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
dataset = tf.data.Dataset.from_tensor_slices(processes.data()).batch(4)
model.fit(dataset, epochs=processes.EPOCHS, verbose=0)
processes.save(model)
processes.RANK = 1
processes.save(processes.train_alone())
"""
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=300,
    )
    found, alone = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    for name in found.files:
        np.testing.assert_allclose(found[name], alone[name], atol=1e-5)
