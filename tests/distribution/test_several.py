"""Models on 4 virtual devices are those on one, and send what they must."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_linattn
from keras_linattn.core.devices import on_each_device

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="`keras.distribution` is JAX's"
)
SMALLEST = ["packed/data-tensor", "packed/data-sequence"]
MODELS = ("gated_delta", "mixed", "packed", "text")
MODES = (
    "data",
    "tensor",
    "data-tensor",
    "sequence",
    "data-sequence",
    "sequence-tensor",
)
ALL = [f"{model}/{mode}" for model in MODELS for mode in MODES]


def several(*names, **environment):
    """What `several.py` finds, in a process with 4 devices."""
    child = subprocess.run(
        [sys.executable, str(HERE / "several.py"), *names],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=1800,
    )
    assert child.returncode == 0, child.stderr[-4000:]
    return json.loads(child.stdout.splitlines()[-1])


def check(report):
    """In float64: in float32 rounding alone reaches 2e-5 of a gradient."""
    for name, found in report.items():
        assert found["loss"] < 1e-12, name
        assert found["gradients"] < 1e-11, name
        check_sent(name, found["sent"])


def check_sent(name, sent):
    """No device gets a whole sequence of activations of its neighbours."""
    features, embedded = 16, 64
    for kind, shapes, *_ in sent:
        # Three numbers for each row say where packed documents go on.
        shapes = [s for s in shapes if not (len(s) == 3 and s[-1] == 3)]
        if "sequence" in name and kind in ("all-gather", "all-to-all"):
            for shape in shapes:
                # Behind its embedding a text is merged, two tokens to one.
                merged = name.startswith("text") and shape[-1] != embedded
                length = 16 if merged else 32
                assert length not in shape[1:], (name, kind, shape)
                assert not {length // 4, features} <= set(shape), (name, shape)
    kinds = [kind for kind, *_ in sent]
    if name in ("gated_delta/sequence", "gated_delta/data-sequence"):
        # One for each block, and their gradients.
        assert kinds.count("all-gather") == kinds.count("reduce-scatter") == 2
    if name == "gated_delta/tensor":
        # The embedding's, its bias' and its kernel's: none in the blocks.
        assert kinds.count("all-gather") <= 3


def test_data_and_tensor_data_and_sequence():
    report = several("files", *SMALLEST, FLOAT64="1")
    check(report)
    assert report["packed/data-tensor"]["weights"] < 0.75
    assert report["packed/data-sequence"]["temporary"] < 0.5


@pytest.mark.release
def test_all_splits_of_all_models():
    check(several(*ALL, FLOAT64="1"))


@pytest.mark.release
def test_the_guide_runs_on_4_devices():
    code = """
import sys
sys.path.insert(0, "tests")
import several, pathlib, test_docs
names = {}
for block in test_docs.python_blocks(pathlib.Path("docs/several_devices.md")):
    exec(block, names)
assert len(names["devices"]) == 4
"""
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{ROOT}"}
    subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, cwd=ROOT
    )


@pytest.mark.release
def test_mechanisms_in_pieces():
    names = {
        name for name in keras_linattn.mechanisms.available() if splits(name)
    }
    assert {"gated_delta", "linear_transformer", "local"} <= names
    for name, far in several("mechanisms", *sorted(names)).items():
        assert far < 2e-5, name


@pytest.mark.release
@pytest.mark.parametrize("model", ["gated_delta", "mixed", "text"])
def test_a_quarter_of_a_long_sequence_is_a_third_of_the_memory(model):
    assert several("memory", f"{model}/sequence", LENGTH="65536") <= 0.35


@pytest.mark.release
def test_the_plan_says_what_is_sent():
    child = subprocess.run(
        [sys.executable, "-m", "tools.scaling_plan", "--check"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    lines = child.stdout.splitlines()
    assert len(lines) == 7
    for line in lines:
        ratio = float(line.removesuffix(" of it").rpartition(" ")[2])
        assert abs(ratio - 1) < 0.01, line


@pytest.mark.filterwarnings("ignore:jax.experimental.shard_map")
def test_a_jax_before_0_6(monkeypatch):
    """Its `shard_map` has another place and another argument."""
    import jax

    monkeypatch.delattr(jax, "shard_map")
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "sequence"))
    x = np.arange(6, dtype="float32").reshape(2, 3)
    double = on_each_device(
        lambda x: 2 * x, [x], [("batch", "sequence")], ("batch",), mesh
    )
    np.testing.assert_array_equal(double, 2 * x)


def splits(name):
    config = {"name": name}
    if name == "linformer":
        config["sequence_length"] = 16
    return keras_linattn.mechanisms.get(config).traits.splits
