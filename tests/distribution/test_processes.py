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


def start(folder, *more, ranks=(0, 1)):
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
        for rank in ranks
    ]


def finish(processes, timeout=300):
    """What each printed. Those after one that failed are killed."""
    printed = []
    try:
        for number, process in enumerate(processes):
            if any(earlier.returncode for earlier in processes[:number]):
                process.kill()  # it would wait for the failed one in vain
            printed.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return printed


def wanted():
    sys.argv[1:4] = ["0", "0", "."]
    sys.path.insert(0, str(HERE))
    import processes

    return [numpy(v) for v in processes.train_alone().weights]


def assert_trained(folder, ranks=(0, 1)):
    for rank in ranks:
        found = np.load(folder / f"{rank}.npz")
        for name, weights in zip(found.files, wanted_once()):
            np.testing.assert_allclose(found[name], weights, atol=1e-5)


_WANTED = []


def wanted_once():
    if not _WANTED:
        _WANTED.append(wanted())
    return _WANTED[0]


@pytest.mark.release  # one process: the example distributed_training.py
@two_processes
@pytest.mark.parametrize("killed", [False, True], ids=["whole", "killed"])
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
@pytest.mark.parametrize("name", mechanisms.available())
def test_every_weight_of_every_mechanism_is_used(name):
    """DDP stops at a weight without a gradient; a gradient of 0 is one."""
    import torch

    x = torch.as_tensor(random(2, 16, 8))
    config = {"name": name}
    if mechanisms.get(name).traits.needs_length:
        config["sequence_length"] = 16
    for causal in mechanisms.get(config).traits.forms:
        layer = keras_linattn.LinearSelfAttention(
            2, 4, mechanism=config, causal=causal, use_gate=True
        )
        layer(x, training=True).square().sum().backward()
        unused = [
            v.path for v in layer.trainable_weights if v.value.grad is None
        ]
        assert not unused, causal
        if name == "modified_linformer":
            # It shifts the keys of all positions alike, as in softmax.
            gradient = layer.key_dense.bias.value.grad
            np.testing.assert_allclose(numpy(gradient), 0, atol=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute")
@pytest.mark.parametrize(
    "killed", [False, pytest.param(True, marks=pytest.mark.release)]
)
def test_mirrored_strategy_trains_as_one_device(tmp_path, monkeypatch, killed):
    """In a process of its own: logical devices are made before all else."""
    monkeypatch.setattr(sys, "argv", [*sys.argv[:1]])
    if killed:  # in the second epoch
        finish(dying := start(tmp_path, "3", ranks=[1]))
        assert dying[0].returncode < 0
        assert not (tmp_path / "1.npz").exists()
    printed = finish(processes := start(tmp_path, ranks=[1]))
    assert processes[0].returncode == 0, printed
    assert_trained(tmp_path, ranks=[1])
