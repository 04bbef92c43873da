"""Projections in fewer passes are the layers' own calls, and so gradients."""

import keras
import numpy as np
import pytest
from helpers import numpy
from keras import ops

from keras_linattn import LinearSelfAttention
from keras_linattn.core.products import product_plus
from keras_linattn.layers.attention.linear_multi_head_attention import is_plain
from keras_linattn.layers.attention.linear_multi_head_attention import project
from keras_linattn.testing import timing


def random(*shape):
    rng = np.random.default_rng(sum(shape))
    return rng.normal(size=shape).astype("float32")


CASES = {  # equation, axes of the bias, kernel, input
    "heads": ("abc,cde->abde", "de", (6, 2, 3), (2, 5, 6)),
    "output": ("abcd,cde->abe", "e", (2, 3, 4), (2, 5, 2, 3)),
    "axes": ("abcd,def->abcef", "ef", (6, 2, 3), (2, 5, 4, 6)),
}


def dense(name, **options):
    equation, bias, kernel, shape = CASES[name]
    layer = keras.layers.EinsumDense(
        equation,
        output_shape=[None, *([None] if name == "axes" else [])]
        + list(kernel[-len(bias) :]),
        bias_axes=bias,
        bias_initializer="random_normal",
        **options,
    )
    layer.build(shape)
    return layer, ops.convert_to_tensor(random(*shape))


class Through(keras.layers.Layer):
    """`call(dense, x)` as a layer."""

    def __init__(self, dense, call):
        super().__init__()
        self.dense, self.through = dense, call
        self.built = True

    def call(self, x):
        return self.through(self.dense, x)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_is_the_layers_call(name, dtype):
    layer, x = dense(name, dtype=dtype)
    calls = [lambda d, x: d(x), project]
    outputs = [call(layer, x) for call in calls]
    assert outputs[0].dtype == outputs[1].dtype
    assert outputs[0].shape == outputs[1].shape
    steps = [timing.training_step(Through(layer, call))(x) for call in calls]
    for pair in (outputs, map(keras.tree.flatten, steps)):
        for one, other in zip(*map(keras.tree.flatten, pair), strict=True):
            one, other = (numpy(ops.cast(a, "float32")) for a in (one, other))
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("equation", ["abc,cde->abde", "abcd,def->abcef"])
def test_bias_of_as_many_heads_as_positions(equation, dtype):
    """Of one feature each; TensorFlow's Keras adds such a bias to axis 1."""
    shape = (2, 3, 5) if equation.startswith("abc,") else (2, 3, 4, 5)
    layer = keras.layers.EinsumDense(
        equation,
        output_shape=(*(None,) * (len(shape) - 2), 3, 1),
        bias_axes=equation[-2:],
        bias_initializer="random_normal",
        activity_regularizer="l2",
        dtype=dtype,
    )
    layer.build(shape)
    x, through = (
        random(*shape),
        Through(layer, project),
    )
    found = numpy(ops.cast(through(x), "float32"))
    expected = x @ numpy(layer.kernel)[..., 0] + numpy(layer.bias)[..., 0]
    np.testing.assert_allclose(found[..., 0], expected, atol=0.05)
    loss = ops.cast(ops.stop_gradient(sum(through.losses)), "float32")
    np.testing.assert_allclose(
        numpy(loss), 0.005 * np.sum(expected**2), rtol=0.02
    )


def test_all_else_is_left_to_the_layer():
    assert is_plain(dense("heads")[0])
    for options in (
        {"activation": "sigmoid"},
        {"dtype": "mixed_float16"},
        {"activity_regularizer": "l2"},
    ):
        assert not is_plain(dense("heads", **options)[0]), options
    quantized, _ = dense("heads")
    quantized.quantize("int8")
    assert not is_plain(quantized)


def count(function, calls):
    """`function` that notes each call, as calibration for GPTQ does."""

    def wrapped(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    return wrapped


def attention(length):
    """A layer, an input that it folds if long, and the output."""
    layer, x = LinearSelfAttention(2, 4), random(2, length, 8)
    y = numpy(layer(x))
    assert layer._folds(x, x, x, None) == (length >= 8)
    return layer, x, y


PROJECTIONS = ("query", "key", "value", "output")


@pytest.mark.parametrize("length", [5, 40])
@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_wrapped_projection_is_called(name, length):
    layer, x, expected = attention(length)
    projection, calls = getattr(layer, f"{name}_dense"), []
    projection.call = count(projection.call, calls)
    found = numpy(layer(x))
    assert calls == [1]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("length", [5, 40])
def test_a_call_wrapped_in_the_class_is_called(length, monkeypatch):
    layer, x, _ = attention(length)
    wrapped = count(keras.layers.EinsumDense.call, calls := [])
    monkeypatch.setattr(keras.layers.EinsumDense, "call", wrapped)
    layer(x)
    assert len(calls) == len(PROJECTIONS)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="only torch has hooks"
)
@pytest.mark.parametrize("length", [5, 40])
@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook"]
)
def test_a_projection_with_a_hook_is_called(register, length):
    layer, x, _ = attention(length)
    calls = []
    for name in PROJECTIONS:
        projection = getattr(layer, f"{name}_dense")
        getattr(projection, register)(lambda *_: calls.append(1))
    layer(x)
    assert len(calls) == len(PROJECTIONS)


def test_adapters_are_part_of_it():
    layer, x = dense("heads")
    before = numpy(project(layer, x))
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.ones((2, 3)))
    after = numpy(project(layer, x))
    np.testing.assert_allclose(after, numpy(layer(x)), atol=1e-5)
    assert abs(after - before).max() > 0.1


@pytest.mark.parametrize(
    "shapes",
    [
        ((4,), (5, 3), (3, 4)),
        ((4,), (2, 5, 3), (2, 3, 4)),
        ((2, 7, 5, 4), (2, 7, 5, 3), (2, 7, 3, 4)),
        ((2, 1, 5, 4), (2, 7, 5, 3), (2, 7, 3, 4)),
    ],
)
def test_product_plus_is_its_portable_form(shapes):
    addend, x, y = (random(*shape) for shape in shapes)
    found = product_plus(*map(ops.convert_to_tensor, (addend, x, y)))
    np.testing.assert_allclose(numpy(found), addend + x @ y, atol=1e-5)
