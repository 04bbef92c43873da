"""Chunks in parallel, as on a GPU, give what they give one by one."""

import numpy as np
import pytest
from helpers import numpy
from keras import ops

from keras_linattn.mechanisms import _chunk_carry
from keras_linattn.mechanisms.modified_linformer import add_chunk

BREAKS = np.array([[0, 0, 1, 0, 1], [1, 0, 0, 0, 0]], "bool")


def tensors(count, last):
    rng = np.random.default_rng(count)
    shapes = (2, 3, count, *last), (2, 3, count, 4, 6), (2, 3, 4, 6)
    arrays = (rng.uniform(0.1, 1, shape) for shape in shapes)
    return [ops.convert_to_tensor(x.astype("float32")) for x in arrays]


def breaks_of(count, broken):
    if not broken:
        return None
    return ops.convert_to_tensor(BREAKS[:, None, :count, None, None])


def compare(function, monkeypatch):
    wanted = function()
    monkeypatch.setattr(_chunk_carry, "scans_in_parallel", lambda x: True)
    for one, other in zip(function(), wanted, strict=True):
        np.testing.assert_allclose(numpy(one), numpy(other), rtol=1e-5)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("last", [(1, 1), (4, 1)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_transitions(count, last, broken, monkeypatch):
    inputs = *tensors(count, last), breaks_of(count, broken)
    compare(lambda: _chunk_carry.carry_chunks(*inputs), monkeypatch)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("count", [1, 5])
def test_running_maxima(count, broken, monkeypatch):
    _, chunks, start = tensors(count, (1, 1))
    inputs = add_chunk, chunks, start, breaks_of(count, broken)
    compare(lambda: _chunk_carry.merge_chunks(*inputs), monkeypatch)
