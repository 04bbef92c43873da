"""Depthwise convolutions against a loop, and against each other's forms."""

import numpy as np
import pytest
from keras import ops

from keras_linattn.core import convolutions
from keras_linattn.core.convolutions import check_kernel
from keras_linattn.core.convolutions import depthwise_convolution
from keras_linattn.core.convolutions import kernel_initializer
from keras_linattn.testing._backends import compiled
from keras_linattn.testing._backends import gradients
from keras_linattn.testing._backends import with_free_sizes
from keras_linattn.testing.references._landmarks import convolve

# K, S, grid, heads and channels of the kernel (1 = shared).
CASES = [
    (5, 7, None, 2, 3),
    (33, 7, None, 2, 1),
    (1, 1, None, 1, 3),
    (3, 12, (3, 4), 2, 3),
    (5, 12, (4, 3), 1, 3),
    (7, 6, (2, 3), 1, 1),
]


def arrays(size, length, grid, heads, dim):
    rng = np.random.default_rng(0)
    sides = (size,) * (1 if grid is None else 2)
    value = rng.standard_normal((2, 2, length, 3), dtype="float32")
    return value, rng.standard_normal((*sides, heads, dim), dtype="float32")


@pytest.mark.parametrize("case", CASES)
def test_equals_a_loop(case):
    value, kernel = arrays(*case)
    expected = convolve(value, kernel, case[2])

    def function(value, kernel):
        return depthwise_convolution(value, kernel, case[2])

    for output in (
        ops.convert_to_numpy(
            function(*map(ops.convert_to_tensor, (value, kernel)))
        ),
        compiled(function, [value, kernel]),
    ):
        np.testing.assert_allclose(output, expected, atol=1e-5)


@pytest.mark.every_case
@pytest.mark.parametrize("case", CASES)
def test_the_fast_form_equals_the_portable_one(case):
    inputs = (*map(ops.convert_to_tensor, arrays(*case)), case[2])
    convolve_channels = convolutions.convolve_channels
    np.testing.assert_allclose(
        ops.convert_to_numpy(convolve_channels(*inputs)),
        ops.convert_to_numpy(convolve_channels.portable(*inputs)),
        atol=1e-5,
    )


@pytest.mark.parametrize("case", [CASES[0], CASES[4]])
def test_gradients(case):
    """It is bilinear: a gradient is the output along each unit kernel."""
    value, kernel = arrays(*case)
    cotangent = np.random.default_rng(1).standard_normal(value.shape)
    cotangent = ops.convert_to_tensor(cotangent.astype("float32"))

    def total(value, kernel):
        output = depthwise_convolution(value, kernel, case[2])
        return ops.sum(output * cotangent)

    found, _ = gradients(total, [value, kernel], [])
    cotangent = ops.convert_to_numpy(cotangent)
    for place in np.ndindex(kernel.shape):
        unit = np.zeros_like(kernel)
        unit[place] = 1
        expected = np.sum(convolve(value, unit, case[2]) * cotangent)
        assert abs(found[1][place] - expected) < 3e-5
    flat = kernel[::-1] if case[2] is None else kernel[::-1, ::-1]
    expected = convolve(cotangent, flat, case[2])
    np.testing.assert_allclose(found[0], expected, atol=3e-5)


def test_one_trace_serves_every_length():
    kernel = arrays(*CASES[0])[1]
    traced = with_free_sizes(
        lambda v: depthwise_convolution(v, ops.convert_to_tensor(kernel)),
        [("b", 2, "t", 3)],
        ["float32"],
    )
    for length in (1, 4, 9):
        value = arrays(5, length, None, 2, 3)[0]
        np.testing.assert_allclose(
            traced(value), convolve(value, kernel), atol=1e-5
        )


def test_refuses_a_length_that_is_not_the_grids():
    with pytest.raises(ValueError, match=r"Received: grid=\(2, 3\), 6 cells"):
        depthwise_convolution(ops.zeros((1, 1, 5, 2)), None, (2, 3))


@pytest.mark.parametrize("size", [0, -1, 4, 3.0, "3"])
def test_refuses_kernels_without_a_middle(size):
    with pytest.raises(ValueError, match="Received: kernel_size="):
        check_kernel(size)


@pytest.mark.parametrize("grid", [(2,), (2, 0), (2, 2.0), 4, "ab"])
def test_refuses_grids_that_are_none(grid):
    with pytest.raises(ValueError, match="Received: grid="):
        check_kernel(3, grid)


def test_initial_kernels_keep_the_scale():
    drawn = ops.convert_to_numpy(kernel_initializer(25)((5, 5, 40, 40)))
    assert np.abs(drawn).max() <= 0.2
    assert abs(drawn.std() - 0.2 / np.sqrt(3)) < 2e-3
