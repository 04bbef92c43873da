"""The core functions at their edges."""

import keras
import numpy as np
import pytest
from helpers import numpy
from keras import ops

from keras_linattn.core import chunks
from keras_linattn.core import masks
from keras_linattn.core import numerics
from keras_linattn.core import products
from keras_linattn.core import shapes
from keras_linattn.testing._backends import largest_intermediate
from keras_linattn.testing._backends import quick


def test_combine_masks():
    one = np.array([[1, 1, 0]], "int32")
    other = np.array([[True, False, True]])
    assert masks.combine_masks(None, None) is None
    np.testing.assert_array_equal(
        numpy(masks.combine_masks(one, None, other)), [[True, False, False]]
    )


def test_apply_mask_selects_rather_than_multiplies():
    x = np.array([[[np.nan], [2.0]]], "float32")
    hidden = masks.apply_mask(x, np.array([[False, True]]))
    np.testing.assert_array_equal(numpy(hidden), [[[0.0], [2.0]]])
    assert masks.apply_mask(x, None) is x


def test_spread():
    mask = np.ones((2, 5), bool)
    assert masks.expand_to_rank(mask, 4, 2).shape == (2, 1, 5, 1)
    assert masks.expand_to_rank(mask, 4, -1).shape == (2, 1, 1, 5)


@pytest.mark.parametrize("shape", [(2, 5, 5), (2, 4, 1, 5), (5,)])
def test_key_mask_refuses(shape):
    with pytest.raises(ValueError, match="must not depend on the query"):
        masks.key_mask_from_attention_mask(np.ones(shape, bool))


def test_accumulation_dtype():
    assert numerics.accumulation_dtype("float16") == "float32"
    assert numerics.accumulation_dtype("bfloat16") == "float32"
    assert numerics.accumulation_dtype("float64") == "float64"


def test_masked_softmax():
    x = np.array([[1e30, 0.0, np.log(3.0)], [1.0, 2.0, 3.0]], "float32")
    visible = np.array([[False, True, True], [False, False, False]])
    np.testing.assert_allclose(
        numpy(numerics.masked_softmax(x, visible)),
        [[0, 0.25, 0.75], [0, 0, 0]],
        atol=1e-6,
    )


@pytest.mark.parametrize("visible", [None, np.ones((1, 3), bool)])
def test_masked_exp_takes_the_largest_away(visible):
    x = ops.convert_to_tensor([[1e4, 1e4 - 2, -1e4]])
    found = numpy(numerics.masked_exp(x, visible))
    np.testing.assert_allclose(found, [[1, np.exp(-2), 0]], rtol=1e-3)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("masked", [False, True])
def test_softmax_parts_give_the_softmax(axis, masked):
    x = np.random.default_rng(0).normal(0, 30, (2, 3, 4)).astype("float32")
    x = ops.convert_to_tensor(x)
    visible = np.arange(24).reshape(2, 3, 4) % 5 > 0 if masked else None
    weights, total = numerics.softmax_parts(x, visible, axis)
    assert tuple(total.shape) == ((2, 4) if axis == 1 else (2, 3))
    found = numpy(weights / ops.expand_dims(total, axis))
    expected = numpy(numerics.masked_softmax(x, visible, axis))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_safe_divide():
    quotient = numerics.safe_divide(
        ops.convert_to_tensor([0.0, 6.0]), ops.convert_to_tensor([0.0, 3.0])
    )
    np.testing.assert_array_equal(numpy(quotient), [0, 2])


def test_safe_divide_adds_nothing_to_small_sums():
    denominator = np.float32([1e-34, 1e-20, 1e-12, 1e-7, 1e-3, 1, 1e20])
    given = (3 * denominator, denominator)
    quotient = numerics.safe_divide(*map(ops.convert_to_tensor, given))
    np.testing.assert_allclose(numpy(quotient), 3, rtol=1e-6)


def test_append_ones_and_divide_by_last():
    value = np.array([[2.0, 4.0]], "float32")
    np.testing.assert_array_equal(
        numpy(products.divide_by_last(3 * products.append_ones(value))), value
    )


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def grouped(x, start):
    return chunks.grouped_sums(x, start, chunks.cumulative_sums.portable)


SUMS = (chunks.running_sums, chunks.cumulative_sums.portable, grouped)


@pytest.mark.parametrize("count", [1, 5, 8, 19, 150])
def test_running_sums_agree(count):
    x, start = normal(2, 1, count, 2, 3), normal(2, 1, 2, 3, seed=1)
    running = start[:, :, None] + np.cumsum(x, axis=2)
    before = np.concatenate([start[:, :, None], running[:, :, :-1]], axis=2)
    for form in SUMS:
        sums = quick(lambda x, start: form(x, start)[0], [x, start])
        last = quick(lambda x, start: form(x, start)[1], [x, start])
        np.testing.assert_allclose(sums, before, atol=1e-5)
        np.testing.assert_allclose(last, running[:, :, -1], atol=1e-5)


@pytest.mark.parametrize("form", SUMS)
def test_running_sums_do_not_look_ahead(form):
    x, start = normal(1, 1, 19, 2, 3), np.zeros((1, 1, 2, 3), "float32")

    def before(x):
        return quick(lambda x, start: form(x, start)[0], [x, start])

    expected = before(x)
    for first, value in ((3, np.nan), (12, np.inf)):
        altered = x.copy()
        altered[:, :, first:] = value
        sums = before(altered)
        np.testing.assert_array_equal(
            sums[:, :, : first + 1], expected[:, :, : first + 1]
        )
        assert not np.isfinite(sums[:, :, first + 1 :]).any()


def causal_product(query, key, value, state=None, chunk_size=64):
    """Output and state in one array, `[B, H, T + R, V]`."""

    def both(*arrays):
        result = products.causal_product(*arrays, chunk_size=chunk_size)
        return ops.concatenate(result, axis=2)

    states = [] if state is None else [state]
    return quick(both, [query, key, value, *states])


@pytest.mark.parametrize(
    ("length", "chunk_size"), [(1, 64), (7, 64), (23, 4), (24, 1)]
)
def test_causal_product(length, chunk_size):
    query, key, value = (normal(2, 2, length, 3, seed=i) for i in range(3))
    start = normal(2, 2, 3, 3, seed=3)
    scores = np.tril(query @ key.swapaxes(-1, -2))
    update = key.swapaxes(-1, -2) @ value
    for state in (None, start):
        before = np.zeros_like(start) if state is None else state
        expected = [scores @ value + query @ before, before + update]
        np.testing.assert_allclose(
            causal_product(query, key, value, state, chunk_size),
            np.concatenate(expected, axis=2),
            atol=1e-4,
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_the_future(bad):
    heads = [normal(1, 1, 23, 3, seed=i) for i in range(3)]
    expected = causal_product(*heads, chunk_size=4)
    for name in range(3):  # query, key, value
        for first in (1, 6, 22):
            altered = [x.copy() for x in heads]
            altered[name][:, :, first, 1] = bad
            output = causal_product(*altered, chunk_size=4)
            np.testing.assert_array_equal(
                output[:, :, :first], expected[:, :, :first]
            )
            later = output[:, :, first:23]
            seen = later[:, :, :1] if name == 0 else later
            assert not np.isfinite(seen).all(-1).any()


def test_move_nan_to_keys_changes_nothing_that_is_finite():
    key, value = normal(1, 1, 5, 2), -1e30 * np.ones((1, 1, 5, 4), "float32")
    for index, given in enumerate((key, value)):
        result = quick(
            lambda *x: products.move_nan_to_keys(*x)[index], [key, value]
        )
        np.testing.assert_array_equal(result, given)


def test_one_position_is_not_padded_to_a_chunk():
    one = [normal(1, 1, 1, 8, seed=i) for i in range(3)]
    size = largest_intermediate(
        lambda *heads: products.causal_product(*heads)[0], one
    )
    assert size <= 8 * 8


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2), (-2,), None])
def test_folding_unfolds(axes):
    x = np.arange(720, dtype="float32").reshape(2, 3, 4, 5, 6)
    folding = shapes.AxisFolding(4, axes)
    folded = folding.fold(x)
    assert tuple(folded.shape) == folding.folded_shape(x.shape)
    np.testing.assert_array_equal(numpy(folding.unfold(folded, like=x)), x)
    assert folding.folded_shape((None, 3, 4, 5, 6))[1::2] == (5, 6)


@pytest.mark.parametrize("axes", [(0,), (3,), (1, 1), ()])
def test_folding_refuses(axes):
    with pytest.raises(ValueError, match="`attention_axes` must name axes"):
        shapes.AxisFolding(4, axes)


@pytest.mark.parametrize("name", ["matmul", "cumsum", "mean", "maximum"])
def test_float64_is_not_rounded(name):
    x = np.random.default_rng(0).standard_normal((3, 3))
    others = {"matmul": x, "cumsum": 0, "mean": 0, "maximum": 0.1}
    wanted = {
        "matmul": x @ x,
        "cumsum": x.cumsum(0),
        "mean": x.mean(0),
        "maximum": np.maximum(x, 0.1),
    }[name]
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is told to")
    other = others[name]
    if name == "matmul":
        other = ops.convert_to_tensor(x, dtype="float64")
    x = ops.convert_to_tensor(x, dtype="float64")
    found = getattr(numerics, name)(x, other)
    np.testing.assert_allclose(numpy(found), wanted, rtol=1e-14)
