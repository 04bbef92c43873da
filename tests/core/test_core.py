"""The core functions at their edges."""

import numpy as np
import pytest
from keras import ops

from keras_linattn.core import masks
from keras_linattn.core import numerics
from keras_linattn.core import products
from keras_linattn.core import shapes


def numpy(x):
    return ops.convert_to_numpy(x)


def test_combine_masks():
    one = np.array([[1, 1, 0]], "int32")
    other = np.array([[True, False, True]])
    assert masks.combine_masks(None, None) is None
    np.testing.assert_array_equal(
        numpy(masks.combine_masks(one, None, other)), [[True, False, False]]
    )


def test_hide_selects_rather_than_multiplies():
    x = np.array([[[np.nan], [2.0]]], "float32")
    hidden = masks.hide(x, np.array([[False, True]]))
    np.testing.assert_array_equal(numpy(hidden), [[[0.0], [2.0]]])
    assert masks.hide(x, None) is x


def test_spread():
    mask = np.ones((2, 5), bool)
    assert masks.spread(mask, 4, 2).shape == (2, 1, 5, 1)
    assert masks.spread(mask, 4, -1).shape == (2, 1, 1, 5)


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


def test_safe_divide():
    quotient = numerics.safe_divide(
        ops.convert_to_tensor([0.0, 6.0]), ops.convert_to_tensor([0.0, 3.0])
    )
    np.testing.assert_array_equal(numpy(quotient), [0, 2])


def test_append_ones_and_divide_by_last():
    value = np.array([[2.0, 4.0]], "float32")
    np.testing.assert_array_equal(
        numpy(products.divide_by_last(3 * products.append_ones(value))), value
    )


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
