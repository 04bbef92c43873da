"""Rotary positions: KerasHub's numbers, and counts of visible positions."""

import numpy as np
import pytest
from keras import ops

from keras_linattn.core.rotary import count_positions
from keras_linattn.core.rotary import rotate

X = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype("float32")
IDS = np.array([[0, 7, 7, 3, 3, 0, 3], [5, 5, 5, 0, 2, 2, 2]])
COUNTS = np.array([[0, 0, 1, 0, 1, 2, 2], [0, 1, 2, 3, 0, 1, 2]])


def test_turns_as_keras_hub_does():
    hub = pytest.importorskip("keras_hub")
    positions = np.array([[0, 1, 2, 3, 4], [900, 901, 902, 903, 904]])
    layer = hub.layers.RotaryEmbedding(max_wavelength=500, scaling_factor=2.0)
    expected = layer(X, positions=ops.convert_to_tensor(positions))
    turned = rotate(ops.convert_to_tensor(X), positions, 500, 2.0)
    np.testing.assert_allclose(turned, expected, atol=1e-5)


def test_turns_the_first_features_only():
    x, positions = ops.convert_to_tensor(X), np.arange(5)[None]
    part = ops.convert_to_numpy(rotate(x, positions, size=4))
    np.testing.assert_array_equal(part[..., 4:], X[..., 4:])
    np.testing.assert_allclose(
        part[..., :4], rotate(x[..., :4], positions), atol=1e-6
    )


@pytest.mark.parametrize("start", [None, [[2], [4]]])
def test_counts_visible_positions(start):
    first = 0 if start is None else np.array(start)
    start = None if start is None else ops.convert_to_tensor(start, "int32")
    x = ops.convert_to_tensor(np.zeros((2, 7, 1), "float32"))
    mask = ops.convert_to_tensor(IDS > 0)
    places, after = count_positions(x, start=start)
    places, after = (ops.convert_to_numpy(x) for x in (places, after))
    np.testing.assert_array_equal(places, np.arange(7)[None] + first)
    assert np.all(after == 7 + first)
    places, after = count_positions(x, mask, start=start)
    expected = np.cumsum(IDS > 0, axis=1) - (IDS > 0)
    np.testing.assert_array_equal(places, expected + first)
    np.testing.assert_array_equal(after, np.array([[5], [6]]) + first)


@pytest.mark.parametrize("start", [None, [[2], [4]]])
def test_counts_each_document_from_0(start):
    """But the first, which goes on."""
    first = 0 if start is None else np.array(start)
    start = None if start is None else ops.convert_to_tensor(start, "int32")
    x = ops.convert_to_tensor(np.zeros((2, 7, 1), "float32"))
    places, after = count_positions(
        x, segment_ids=ops.convert_to_tensor(IDS), start=start
    )
    begun = np.array([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(places, COUNTS + first * begun)
    np.testing.assert_array_equal(after, [[3], [3]])
