"""Each backend's fast form of causal kernel attention is the portable one."""

import keras
import numpy as np
import pytest
from helpers import numpy
from keras import ops

from keras_linattn import config
from keras_linattn.core import backends
from keras_linattn.core import causal
from keras_linattn.core.documents import Documents
from keras_linattn.testing import timing
from tools.bench import runtime

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.every_case
SHAPES = [(1, 2, 512), (2, 3, 700), (3, 1, 577)]  # B, H, T
RANK, DIM = 5, 3


def heads(batch, heads, length, with_state=True):
    rng = np.random.default_rng(length)
    place = (batch, heads, length)
    query = np.exp(rng.normal(size=(*place, RANK)))
    key = np.exp(rng.normal(size=(*place, RANK)))
    value = rng.normal(size=(*place, DIM))
    state = np.exp(rng.normal(size=(batch, heads, RANK, DIM + 1)))
    tensors = [query, key, value] + [state] * with_state
    return [x.astype("float32") for x in tensors]


def run(function, arrays):
    """`function(*arrays)` as for inference, in arrays."""
    results = runtime.stepper(function)(*map(ops.convert_to_tensor, arrays))
    return tuple(map(numpy, results))


def portable(*arguments):
    """`attend_causally` with all fast forms off."""
    config.set_fast_forms(False)
    try:
        return causal.attend_causally(*arguments)
    finally:
        config.set_fast_forms(True)


class Attention(keras.layers.Layer):
    """Heads `[B, H, T, V]` to what attends to them, as queries and keys too."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend
        self.built = True

    def call(self, x):
        output, state = self.attend(ops.exp(x), ops.exp(-x), x)
        output, _ = self.attend(ops.exp(x), ops.exp(-x), output, state)
        return output


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_state", [False, True])
def test_is_the_portable_form(shape, with_state):
    arrays = heads(*shape, with_state)
    found = run(causal.attend_causally, arrays)
    wanted = run(portable, arrays)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_documents_are_those_of_the_portable_form():
    """Documents of 1 to 520 positions; the first ones go on from the state."""
    arrays = heads(2, 2, 700)
    numbers = np.repeat([[0, 1, 2, 3], [0, 1, 2, 2]], (3, 520, 1, 176), axis=1)
    numbers = ops.convert_to_tensor(numbers.astype("int32"))
    found, wanted = (
        run(lambda *x: attend(*x, Documents(numbers, numbers)), arrays)
        for attend in (causal.attend_causally, portable)
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_portable_form(shape):
    x = ops.convert_to_tensor(heads(*shape)[2])
    found, wanted = (
        keras.tree.flatten(timing.training_step(Attention(attend))(x))
        for attend in (causal.attend_causally, portable)
    )
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(
            numpy(one), numpy(other), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("altered", [1, 2])
def test_the_past_does_not_see_what_is_not_finite(altered):
    arrays = heads(2, 2, 700)
    clean, _ = run(causal.attend_causally, arrays)
    arrays[altered][0, 1, 600] = np.nan
    found, state = run(causal.attend_causally, arrays)
    np.testing.assert_array_equal(found[0, 1, :600], clean[0, 1, :600])
    assert np.isnan(found[0, 1, 600:]).all() and np.isnan(state[0, 1]).any()
    found[0, 1] = clean[0, 1]
    np.testing.assert_array_equal(found, clean)


def test_a_row_that_sees_no_key_is_0():
    query, key, value, _ = heads(1, 2, 600)
    key[:, :, :550] = 0
    output, _ = run(causal.attend_causally, [query, key, value])
    assert np.all(output[:, :, :550] == 0) and np.all(output[:, :, 550] != 0)


@pytest.mark.skipif(BACKEND != "torch", reason="torch alone computes in place")
def test_in_place_only_where_nothing_else_follows():
    import torch

    def is_in_place(*tensors):
        found = backends.current().attend_causally(*tensors)
        return found is not NotImplemented

    tensors = [torch.from_numpy(x) for x in heads(1, 2, 512)]
    assert not is_in_place(*tensors)
    with torch.no_grad():
        assert is_in_place(*tensors)
        assert not is_in_place(*(x[:, :, :511] for x in tensors[:3]))
        assert not is_in_place(*(x.half() for x in tensors))
        assert not is_in_place(tensors[0].double(), *tensors[1:])
        each = [torch.stack([x, x]) for x in tensors]
        output, _ = torch.vmap(causal.attend_causally)(*each)
        wanted, _ = causal.attend_causally(*tensors)
    assert output.shape == (2, *wanted.shape)
    torch.testing.assert_close(output[1], wanted)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX alone exports symbols")
def test_a_batch_that_is_a_symbol():
    import jax
    from jax import export

    (batch,) = export.symbolic_shape("batch")
    arguments = [
        jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
        for x in heads(1, 2, 600)
    ]
    exported = export.export(jax.jit(causal.attend_causally))(*arguments)
    arrays = heads(3, 2, 600)
    found, _ = exported.call(*arrays)
    wanted, _ = run(causal.attend_causally, arrays)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
