"""Segments of visible positions, and blocks of a grid."""

import numpy as np
import pytest
from keras import ops

from keras_linattn.core.segments import check_landmarks
from keras_linattn.core.segments import grid_means
from keras_linattn.core.segments import segment_index
from keras_linattn.core.segments import segment_means
from keras_linattn.testing.references._landmarks import landmark_means


def heads(length, batch=2, dim=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, 2, length, dim)).astype("float32")


def means(x, count, mask=None):
    result, filled = segment_means(ops.convert_to_tensor(x), count, mask)
    if filled is not None:
        filled = ops.convert_to_numpy(filled)
    return ops.convert_to_numpy(result), filled


@pytest.mark.parametrize("length", [1, 3, 7, 12, 13])
@pytest.mark.parametrize("count", [1, 4, 6])
def test_means_are_those_of_the_loop(length, count):
    x = heads(length)
    mask = np.random.default_rng(1).random((2, length)) < 0.6
    for given in (None, mask):
        everywhere = np.ones((2, length), bool)
        expected, exist = landmark_means(
            x.astype("float64"), count, everywhere if given is None else given
        )
        result, filled = means(x, count, given)
        np.testing.assert_allclose(result, expected, atol=1e-6)
        if filled is None:
            assert given is None and exist.all()
        else:
            np.testing.assert_array_equal(
                np.broadcast_to(filled, exist.shape), exist
            )


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(left):
    x, padding = heads(7), np.full((2, 2, 5, 3), np.nan, "float32")
    parts = (padding, x) if left else (x, padding)
    mask = np.arange(12) >= 5 if left else np.arange(12) < 7
    mask = np.stack([mask, mask])
    result, filled = means(np.concatenate(parts, axis=2), 4, mask)
    np.testing.assert_allclose(result, means(x, 4)[0], atol=1e-6)
    assert filled.all()


def test_each_position_is_a_segment_where_there_are_few():
    x = heads(3)
    result, filled = means(x, 8)
    np.testing.assert_array_equal(filled[0].nonzero()[0], [0, 2, 5])
    np.testing.assert_allclose(result[:, :, filled[0]], x, atol=1e-7)


def test_no_visible_position_fills_no_segment():
    mask = np.array([[False] * 6, [True] * 6])
    result, filled = means(heads(6), 3, mask)
    np.testing.assert_array_equal(filled, [[False] * 3, [True] * 3])
    assert not result[0].any()


def test_a_million_positions_do_not_overflow():
    length, count = 2**20, 1024 - 1
    visible = np.arange(length)[None] % 5 != 0
    for mask in (None, visible):
        index = segment_index(length, count, mask)
        index = ops.convert_to_numpy(index)[0][visible[0]]
        assert index[0] == 0 and index[-1] == count - 1
        assert (np.diff(index) >= 0).all()
        sizes = np.bincount(index)
        assert sizes.max() - sizes.min() <= 1


def test_blocks_of_a_grid():
    rows, columns = 4, 6
    x = np.arange(rows * columns, dtype="float32").reshape(1, 1, -1, 1)
    result, filled = grid_means(ops.convert_to_tensor(x), 2, (rows, columns))
    blocks = x.reshape(2, 2, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(
        ops.convert_to_numpy(result).reshape(2, 2), blocks, rtol=1e-6
    )
    assert filled is None


def test_blocks_leave_hidden_positions_out():
    x, mask = heads(15), np.random.default_rng(3).random((2, 15)) < 0.4
    expected, exist = landmark_means(x, 4, mask, (3, 5))
    result, filled = grid_means(ops.convert_to_tensor(x), 2, (3, 5), mask)
    np.testing.assert_allclose(
        ops.convert_to_numpy(result), expected, atol=1e-6
    )
    np.testing.assert_array_equal(ops.convert_to_numpy(filled), exist)


def test_a_grid_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"grid=\(2, 3\), length 7"):
        grid_means(ops.convert_to_tensor(heads(7)), 2, (2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "num_landmarks=0"),
        ((2.5,), r"num_landmarks=2\.5"),
        ((5, (2, 3)), "square"),
        ((4, (2, 0)), r"grid=\(2, 0\)"),
        ((4, 3), "grid=3"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_landmarks(*arguments)


def test_the_grid_comes_back_as_a_tuple():
    assert check_landmarks(4, [2, 3]) == (2, 3)
    assert check_landmarks(5) is None
