"""Packed documents: any length in one graph, linear time, any size of heads."""

import keras
import numpy as np
import pytest
from helpers import slow_to_compile
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.core import backends
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._backends import compiled
from keras_linattn.testing._backends import largest_intermediate
from keras_linattn.testing._backends import with_free_sizes
from keras_linattn.testing._packing_checks import IDS
from keras_linattn.testing._packing_checks import PAIR
from keras_linattn.testing._subject import run

# One of each kind of sums: kernels, running maxima, decays.
FORMS = (
    ("linear_transformer", False),
    ("modified_linformer", False),
    ("linear_transformer", True),
    ("modified_linformer", True),
    ("gated_delta", True),
)
LENGTH = IDS.shape[1]


def packed(name, causal):
    """A mechanism, and a function of heads and ids."""
    mechanism = mechanisms.get(name)
    shape = (2, 2, LENGTH, 4)
    mechanism.build(shape, shape, shape)
    mechanism.built = True

    def attend(query, key, value, ids):
        return mechanism(query, key, value, causal=causal, segment_ids=ids)

    return mechanism, attend


def heads_of(inputs):
    return [inputs.query, inputs.key, inputs.value]


@pytest.mark.parametrize(("name", "causal"), FORMS)
def test_one_graph_serves_every_length(name, causal):
    mechanism, attend = packed(name, causal)
    heads = ("b", 2, "t", 4)
    traced = with_free_sizes(
        attend, [heads, heads, heads, ("b", "t")], ["float32"] * 3 + ["int32"]
    )
    for ids in (IDS, IDS[:, :70], np.ones((2, 1), "int32")):
        inputs = random_inputs(queries=ids.shape[1], keys=ids.shape[1])
        np.testing.assert_allclose(
            traced(*heads_of(inputs), ids),
            run(mechanism, inputs, causal, segment_ids=ids),
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize(("name", "causal"), FORMS)
def test_xla_gives_the_same(name, causal):
    mechanism, attend = packed(name, causal)
    inputs = random_inputs(queries=LENGTH, keys=LENGTH)
    np.testing.assert_allclose(
        compiled(attend, [*heads_of(inputs), IDS]),
        run(mechanism, inputs, causal, segment_ids=IDS),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize(("name", "causal"), FORMS)
def test_no_quadratic_array(name, causal):
    _, attend = packed(name, causal)
    sizes = []
    for length in (1024, 2048):
        inputs = random_inputs(batch=1, queries=length, keys=length)
        ids = np.arange(length, dtype="int32")[None] // 100 + 1
        sizes.append(largest_intermediate(attend, [*heads_of(inputs), ids]))
    assert sizes[1] <= 2 * sizes[0] < 2048**2


@pytest.mark.parametrize(
    "name", ["linear_transformer", "modified_linformer", "performer"]
)
def test_documents_of_very_different_sizes(name):
    """Weights are relative to the largest key of the document itself."""
    (subject, *_) = subjects(name)
    inputs = random_inputs(batch=1, queries=12, keys=12)
    ids = np.repeat([[1, 2, 3]], 4, axis=1)
    shift = np.repeat([[30.0, -60.0, 0.0]], 4, axis=1)[:, None, :, None]
    if name == "performer":  # |k|^2 is in its exponents
        shift = shift / 10
    inputs = inputs.replace(key=(inputs.key + shift).astype("float32"))
    mechanism = subject.build(inputs)
    output = run(mechanism, inputs, False, segment_ids=ids)
    for number in (1, 2, 3):
        place = ids[0] == number
        alone = inputs.replace(
            **{
                head: getattr(inputs, head)[:, :, place]
                for head in ("query", "key", "value")
            }
        )
        np.testing.assert_allclose(
            output[:, :, place],
            subject.expected(mechanism, alone, False),
            atol=1e-4,
        )


class Halving(mechanisms.RecurrentMechanism):
    """As on the page for authors: `one_step` and nothing else."""

    def gates(self, inputs, heads):
        return (ops.full((1, heads, 1, 1), 0.5, dtype=inputs.dtype),)

    def one_step(self, query, key, value, gates, state):
        state = gates[0] * state + ops.swapaxes(key, -1, -2) * value
        return ops.matmul(query, state), state


class HalvingInChunks(Halving):
    """Its `chunked` knows of no documents."""

    def chunked(self, query, key, value, gates, state, chunk_size):
        raise AssertionError("not for several documents")


@slow_to_compile
@pytest.mark.parametrize("cls", [Halving, HalvingInChunks])
def test_a_recurrence_of_ones_own_packs(cls):
    inputs = random_inputs(queries=9, keys=9)
    ids = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 0], [0, 4, 4, 4, 4, 5, 5, 5, 5]])
    output = run(cls(), inputs, True, segment_ids=ids)
    for row, number in ((0, 1), (0, 2), (0, 3), (1, 4), (1, 5)):
        place = ids[row] == number
        alone = [x[row : row + 1, :, place] for x in heads_of(inputs)]
        expected = Halving()(*map(ops.convert_to_tensor, alone), causal=True)
        np.testing.assert_allclose(
            output[row : row + 1, :, place],
            ops.convert_to_numpy(expected),
            atol=1e-6,
        )


def test_self_attention_takes_one_tensor():
    keys = PAIR[1].shape[1]
    x = np.ones((2, 2, keys, 4), "float32")
    with pytest.raises(ValueError, match="self-attention only"):
        mechanisms.get("focused")(x, x, x, segment_ids=(PAIR[1], PAIR[1]))


def test_documents_refused_on_a_grid():
    x = np.ones((1, 2, 6, 4), "float32")
    mechanism = mechanisms.get("focused", grid=(2, 3))
    with pytest.raises(ValueError, match="documents of a row"):
        mechanism(x, x, x, segment_ids=np.ones((1, 6), "int32"))


@pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="XLA compiles the portable form for minutes",
)
def test_portable_forms(monkeypatch):
    """Without fast forms a graph of any length doubles its sums."""
    monkeypatch.setattr(backends, "_FAST_FORMS", False)
    test_one_graph_serves_every_length("linear_transformer", True)


@pytest.mark.parametrize("name", ["modified_linformer", "taylor"])
def test_fast_forms_of_few_documents_give_the_same(monkeypatch, name):
    length = 700  # the fast forms take documents of 64 positions and more
    ids = np.repeat([[0, 1, 2, 0, 3], [4, 5, 6, 7, 0]], (3, 520, 1, 2, 174), 1)
    inputs = random_inputs(queries=length, keys=length, visible=0.8)
    mechanism = mechanisms.get(name)
    mechanism.build(*inputs.shapes)
    mechanism.built = True
    outputs = []
    for fast in (True, False):
        monkeypatch.setattr(backends, "_FAST_FORMS", fast)
        outputs.append(run(mechanism, inputs, False, segment_ids=ids))
    np.testing.assert_allclose(*outputs, atol=1e-5, rtol=1e-4)
