"""Stems stop at the boundaries of packed documents."""

import keras
import numpy as np
import pytest
from helpers import SEGMENT_IDS
from helpers import alone
from helpers import assert_same_documents
from helpers import documents
from helpers import numpy
from helpers import random
from helpers import slow_to_compile

import keras_linattn as kl

# Documents that begin at multiples of 4; the last one ends with the row.
ALIGNED = np.array([[1] * 5 + [0] * 3 + [2] * 2, [0] * 4 + [7] * 6], "int32")


def functional(layer, shape, dtype="float32"):
    """A model of inputs and ids, whose lengths it does not know."""
    x = keras.Input(shape, dtype=dtype)
    ids = keras.Input((None,), dtype="int32")
    return keras.Model([x, ids], layer(x, segment_ids=ids))


# --- CausalConvolution


def test_convolution_starts_each_document_from_zeros():
    layer = kl.layers.CausalConvolution(4)
    x = random(*SEGMENT_IDS.shape, 3)
    model = functional(layer, (None, 3))
    expected = numpy(layer(alone(x)))
    x[SEGMENT_IDS == 0] = np.nan
    together = model.predict_on_batch([x, SEGMENT_IDS])
    assert_same_documents(together, expected, atol=1e-6)
    x[0, 1:4] = np.nan
    altered = model.predict_on_batch([x, SEGMENT_IDS])
    for place in documents()[1:]:
        np.testing.assert_array_equal(altered[place], together[place])


@slow_to_compile
def test_convolution_goes_on_from_a_state_and_keeps_the_last_document():
    layer = kl.layers.CausalConvolution(4)
    x, start = random(*SEGMENT_IDS.shape, 3), random(2, 3, 3, seed=1)

    def feed(x, ids, state):
        options = {"initial_state": state, "return_state": True}
        return map(numpy, layer(x, segment_ids=ids, **options))

    # Padding before, between and after documents, beside a state.
    whole, state = feed(x, SEGMENT_IDS, start)
    first, between = feed(x[:, :3], SEGMENT_IDS[:, :3], start)
    second, after = feed(x[:, 3:], SEGMENT_IDS[:, 3:], between)
    pieces = np.concatenate([first, second], axis=1)
    np.testing.assert_allclose(pieces, whole, atol=1e-6)
    np.testing.assert_allclose(after, state, atol=1e-6)
    for row, place in dict(documents()).items():  # the last of each row
        own = x[row : row + 1, place]
        _, separate = layer(own, return_state=True)
        np.testing.assert_allclose(state[row], numpy(separate)[0], atol=1e-6)
    row, place = documents()[0]
    own, _ = layer(
        x[row : row + 1, place],
        initial_state=start[row : row + 1],
        return_state=True,
    )
    np.testing.assert_allclose(whole[row, place], numpy(own)[0], atol=1e-6)


def test_a_gap_changes_its_own_document_only():
    ids = np.array([[1, 1, 1, 1, 2, 2, 2, 0]])
    mask = np.array([[1, 0, 1, 1, 0, 1, 1, 1]], bool)  # in 1, at the start of 2
    layer = kl.layers.CausalConvolution(3)
    y, state = layer(
        random(1, 8, 2), mask=mask, segment_ids=ids, return_state=True
    )
    nan = np.isnan(numpy(y))[0, :, 0]
    assert nan.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert np.isfinite(numpy(state)).all()


# --- NGramEmbedding


def test_ngrams_do_not_reach_into_the_document_before():
    layer = kl.layers.NGramEmbedding(20, 4, orders=(1, 2, 3), num_buckets=97)
    tokens = np.random.default_rng(0).integers(1, 20, SEGMENT_IDS.shape)
    tokens = tokens.astype("int32")
    model = functional(layer, (None,), "int32")
    expected = numpy(layer(alone(tokens)))
    # Also where there are tokens in what the ids call padding.
    together = model.predict_on_batch([tokens, SEGMENT_IDS])
    assert_same_documents(together, expected)


# --- MaskedAveragePooling


def test_pooling_has_a_mean_for_each_document():
    layer = kl.layers.MaskedAveragePooling(num_segments=3)
    x = random(*SEGMENT_IDS.shape, 3)
    x[0, 2] = x[SEGMENT_IDS == 0] = np.nan
    model = functional(layer, (None, 3))
    means = model.predict_on_batch([x, SEGMENT_IDS])
    assert means.shape == (2, 3, 3)
    assert np.isnan(means[0, 0]).all() and not means[1, 2].any()
    seen = [means[0, 1], means[0, 2], means[1, 0], means[1, 1]]
    for mean, place in zip(seen, documents()[1:]):
        np.testing.assert_allclose(mean, x[place].mean(axis=0), atol=1e-6)
    mask = np.ones(SEGMENT_IDS.shape, bool)
    mask[0, 2] = False
    masked = numpy(layer(x, mask=mask, segment_ids=SEGMENT_IDS))
    expected = x[0, [1, 3]].mean(axis=0)
    np.testing.assert_allclose(masked[0, 0], expected, atol=1e-6)
    # A document that is hidden as a whole keeps its place.
    mask[0, 1:4] = False
    masked = numpy(layer(x, mask=mask, segment_ids=SEGMENT_IDS))
    np.testing.assert_array_equal(masked[0, 1:], means[0, 1:])
    assert not masked[0, 0].any()
    few = kl.layers.MaskedAveragePooling(num_segments=1)
    first = numpy(few(x, mask=mask, segment_ids=SEGMENT_IDS))
    np.testing.assert_array_equal(first, masked[:, :1])


def test_pooling_needs_the_number_of_documents():
    x, ids = random(1, 4, 2), np.ones((1, 4), "int32")
    with pytest.raises(ValueError, match="num_segments=None"):
        kl.layers.MaskedAveragePooling()(x, segment_ids=ids)
    with pytest.raises(ValueError, match="segment_ids=None"):
        kl.layers.MaskedAveragePooling(num_segments=2)(x)
    with pytest.raises(ValueError, match="`num_segments` must be a positive"):
        kl.layers.MaskedAveragePooling(num_segments=0)


# --- TokenMerging, StridedConvolution, TokenExtension


def groups(size):
    if size == 4:
        return kl.layers.TokenMerging(4, 5)
    return kl.layers.StridedConvolution(5, kernel_size=size, strides=4)


@pytest.mark.parametrize("size", [4, 8])
def test_groups_of_aligned_documents_are_those_of_each_alone(size):
    layer = groups(size)
    x = random(*ALIGNED.shape, 3)
    expected = numpy(layer(alone(x, ALIGNED)))
    x[ALIGNED == 0] = np.nan
    model = functional(layer, (None, 3))
    together = model.predict_on_batch([x, ALIGNED])
    assert together.shape == (2, 3, 5)
    places = [(0, slice(0, 2)), (0, slice(2, 3)), (1, slice(1, 3))]
    for place, row in zip(places, expected, strict=True):
        part = together[place]
        np.testing.assert_allclose(part, row[: len(part)], atol=1e-6)
    x[0, 0] = np.nan
    altered = model.predict_on_batch([x, ALIGNED])
    for place in places[1:]:
        np.testing.assert_array_equal(altered[place], together[place])


def test_a_document_that_begins_inside_a_group_is_found():
    y = groups(4)(random(*SEGMENT_IDS.shape, 3), segment_ids=SEGMENT_IDS)
    nan = np.isnan(numpy(y))[..., 0].astype(int)
    assert nan.tolist() == [[1, 1, 0], [0, 1, 0]]


@slow_to_compile
def test_an_hourglass_of_packed_documents():
    """Merged, attended, extended: as each document alone."""
    merge, extend = kl.layers.TokenMerging(4, 6), kl.layers.TokenExtension(4)
    block = kl.LinearTransformerEncoder(8, 2, mechanism="softmax")
    x = random(*ALIGNED.shape, 6)
    merged = merge(x, segment_ids=ALIGNED)
    merged = block(merged, segment_ids=ALIGNED[:, ::4])
    together = numpy(extend(x, merged))
    for row, place in documents(ALIGNED):
        own = x[row : row + 1, place]
        separate = numpy(extend(own, block(merge(own))))
        np.testing.assert_allclose(together[row, place], separate[0], atol=1e-5)
