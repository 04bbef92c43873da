"""The layers around the attention: patches, n-grams, merging, waveforms."""

import keras
import numpy as np
import pytest
from helpers import numpy
from helpers import random
from helpers import slow_to_compile
from keras import ops

from keras_linattn.layers import MaskedAveragePooling
from keras_linattn.layers import NGramEmbedding
from keras_linattn.layers import PatchEmbedding
from keras_linattn.layers import StridedConvolution
from keras_linattn.layers import TokenExtension
from keras_linattn.layers import TokenMerging
from keras_linattn.layers import WaveformMasking
from keras_linattn.layers.stems.ngram_embedding import ngram_buckets

# --- PatchEmbedding


@pytest.mark.parametrize("patch", [1, 2, (4, 2)], ids=str)
def test_patches_are_projected_pixels_and_positions(patch):
    images = random(2, 8, 4, 3)
    layer = PatchEmbedding(patch, 5)
    output = numpy(layer(images))
    kernel, bias, positions = (
        numpy(w) for w in (*layer._projection.weights, layer.positions)
    )
    height, width = (patch, patch) if isinstance(patch, int) else patch
    for number in range(output.shape[1]):
        row, column = divmod(number, 4 // width)
        block = images[
            :,
            row * height : (row + 1) * height,
            column * width : (column + 1) * width,
        ]
        expected = np.einsum("bhwc,hwcf->bf", block, kernel) + bias
        np.testing.assert_allclose(
            output[:, number], expected + positions[number], atol=1e-5
        )
    assert layer.compute_output_shape(images.shape) == output.shape


def test_patches_without_positions():
    layer = PatchEmbedding(2, 5, use_positions=False)
    layer(random(1, 4, 4, 1))
    assert len(layer.weights) == 2


@pytest.mark.parametrize("shape", [(2, 7, 8, 3), (2, None, 8, 3), (2, 8, 8)])
def test_patches_refuse_images(shape):
    with pytest.raises(ValueError, match="multiples of the patch size"):
        PatchEmbedding(4, 5).build(shape)


def test_patches_refuse_size():
    with pytest.raises(ValueError, match="patch_size=0"):
        PatchEmbedding(0, 5)
    with pytest.raises(ValueError, match="patch_size="):
        PatchEmbedding((2, 2, 2), 5)


# --- NGramEmbedding


def test_ngrams_look_back_only_and_padding_changes_nothing():
    layer = NGramEmbedding(10, 4, orders=(1, 2, 3), num_buckets=50)
    tokens = np.array([[1, 2, 3, 4, 5]])
    output = numpy(layer(tokens))
    padded = np.pad(tokens, [(0, 0), (0, 3)])
    np.testing.assert_array_equal(numpy(layer(padded))[:, :5], output)
    changed = np.array([[1, 2, 3, 4, 9]])
    np.testing.assert_array_equal(numpy(layer(changed))[:, :4], output[:, :4])
    np.testing.assert_array_equal(
        numpy(layer.compute_mask(padded)), padded != 0
    )


def test_ngrams_are_told_apart_by_order_and_place():
    layer = NGramEmbedding(10, 4, orders=(2,), num_buckets=1000)
    output = numpy(layer(np.array([[1, 2, 1, 2, 2, 1]])))[0]
    np.testing.assert_array_equal(output[1], output[3])  # "12" twice
    assert np.abs(output[1] - output[5]).max() > 1e-4  # "12" and "21"


def buckets(ngrams, num_buckets):
    """Bucket of each row."""
    order = ngrams.shape[1]
    tokens = ops.convert_to_tensor(ngrams.astype("int32"))
    return numpy(ngram_buckets(tokens, (order,), num_buckets)[order])[:, -1]


def test_ngrams_have_the_same_bucket_on_every_backend():
    """Numbers of Python's exact integers; large tokens overflow nothing."""
    largest = 2**31 - 1
    tokens = np.array([[1, 2, 300, 46337, largest, largest]])
    expected = {
        2: [324775, 154210, 210283, 581294, 842472, 835019],
        6: [324775, 154210, 452365, 620577, 22099, 888670],
    }
    for order, wanted in expected.items():
        found = ngram_buckets(
            ops.convert_to_tensor(tokens.astype("int32")), (order,), 2**20
        )
        assert numpy(found[order])[0].tolist() == wanted


def shapes_of_ngrams(vocabulary, order, count):
    """Random n-grams, and such that differ in one place or by steps."""
    rng = np.random.default_rng(0)
    free = rng.integers(1, vocabulary, (count, order))
    yield free
    for place in (0, order - 1):
        some = np.tile(free[:1], (min(vocabulary, count), 1))
        some[:, place] = np.arange(len(some))
        yield some
    yield (np.arange(count)[:, None] + np.arange(order)) % vocabulary
    some, steps = free * 0, np.arange(count)
    some[:, 0], some[:, -1] = steps // 64 * 4, steps % 64 * 4
    yield some % vocabulary


@pytest.mark.parametrize(
    ("vocabulary", "num_buckets"),
    [
        (8192, 8192),
        (32768, 8192),
        (256, 256),
        (257, 8192),
        (250_000, 2**16),
        (2**30, 1000),
    ],
)
@pytest.mark.parametrize("order", [2, 5])
def test_ngrams_spread_as_random_numbers_do(vocabulary, num_buckets, order):
    for some in shapes_of_ngrams(vocabulary, order, 2000):
        some = np.unique(some, axis=0)
        empty = (1 - 1 / num_buckets) ** len(some)
        two_empty = (1 - 2 / num_buckets) ** len(some)
        variance = num_buckets * (
            (num_buckets - 1) * two_empty + empty - num_buckets * empty**2
        )
        distinct = len(np.unique(buckets(some, num_buckets)))
        ideal = num_buckets * (1 - empty)
        assert distinct >= ideal - 4 * variance**0.5 - 1


def test_ngrams_refuse_sizes():
    NGramEmbedding(2**16, 4, num_buckets=2**16)
    with pytest.raises(ValueError, match="orders="):
        NGramEmbedding(257, 4, orders=(0, 1))
    for name in ("vocabulary_size", "embed_dim", "num_buckets"):
        sizes = {"vocabulary_size": 9, "embed_dim": 2, name: 0}
        with pytest.raises(ValueError, match=f"{name}=0"):
            NGramEmbedding(**sizes)


# --- TokenMerging


def test_merging_projects_groups():
    x = random(2, 7, 3)
    layer = TokenMerging(3, 5)
    output = numpy(layer(x))
    kernel, bias = map(numpy, layer._projection.weights)
    padded = np.pad(x, [(0, 0), (0, 2), (0, 0)])
    expected = padded.reshape(2, 3, 9) @ kernel + bias
    np.testing.assert_allclose(output, expected, atol=1e-5)
    assert layer.compute_output_shape((2, 7, 3)) == (2, 3, 5)
    assert layer.compute_output_shape((None, None, 3)) == (None, None, 5)


def test_merging_masks():
    x = random(2, 7, 3)
    layer = TokenMerging(3, 5)
    mask = np.arange(7) < np.array([[2], [4]])
    altered = np.where(mask[..., None], x, np.float32("nan"))
    output = numpy(layer(altered, mask=mask))
    zeroed = np.where(mask[..., None], x, 0)
    np.testing.assert_allclose(output, numpy(layer(zeroed)), atol=1e-6)
    np.testing.assert_array_equal(
        numpy(layer.compute_mask(x, mask)),
        [[True, False, False], [True, True, False]],
    )
    assert layer.compute_mask(x) is None


def test_merging_refuses_factor():
    with pytest.raises(ValueError, match="factor=0"):
        TokenMerging(0, 5)


# --- StridedConvolution and WaveformMasking


@pytest.mark.parametrize(("kernel_size", "strides"), [(6, 3), (9, 3), (4, 1)])
def test_convolution_is_that_of_keras(kernel_size, strides):
    x = random(2, 10, 3)
    layer = StridedConvolution(5, kernel_size, strides)
    output = numpy(layer(x))
    kernel, bias = map(numpy, layer._projection.weights)
    end = -10 % strides
    padded = np.pad(x, [(0, 0), (kernel_size - strides, end), (0, 0)])
    theirs = ops.conv(
        padded,
        kernel.reshape(kernel_size, 3, 5),
        strides,
        padding="valid",
        data_format="channels_last",
    )
    np.testing.assert_allclose(output, numpy(theirs) + bias, atol=1e-5)
    assert layer.compute_output_shape(x.shape) == output.shape
    assert layer.compute_output_shape((None, None, 3)) == (None, None, 5)


def test_convolution_of_a_window_of_strides_is_merging():
    x, mask = random(2, 7, 3), np.arange(7) < np.array([[2], [4]])
    merging, layer = TokenMerging(3, 5), StridedConvolution(5, 3, 3)
    merging.build(x.shape)
    layer.build(x.shape)
    layer.set_weights(merging.get_weights())
    np.testing.assert_allclose(
        numpy(layer(x, mask=mask)), numpy(merging(x, mask=mask)), atol=1e-6
    )
    np.testing.assert_array_equal(
        numpy(layer.compute_mask(x, mask)), numpy(merging.compute_mask(x, mask))
    )
    assert layer.compute_mask(x) is None


def test_convolution_hides_what_is_masked():
    x, mask = random(2, 7, 3), np.arange(7) < np.array([[2], [4]])
    layer = StridedConvolution(5, 6, 3)
    altered = np.where(mask[..., None], x, np.float32("nan"))
    zeroed = np.where(mask[..., None], x, 0)
    np.testing.assert_allclose(
        numpy(layer(altered, mask=mask)), numpy(layer(zeroed)), atol=1e-6
    )


def test_waveform_zeros_at_the_end_are_hidden():
    x = np.array([[0, 1, 0, 0], [0, 0, 0, -1], [0] * 4], "float32")
    layer = WaveformMasking()
    np.testing.assert_array_equal(
        numpy(layer.compute_mask(x)),
        [[True, True, False, False], [True] * 4, [False] * 4],
    )
    given = np.array([[True] * 4, [False] * 4, [True] * 4])
    assert layer.compute_mask(x, given) is given
    np.testing.assert_array_equal(numpy(layer(x)), x[..., None])


# --- TokenExtension


@pytest.mark.parametrize("length", [1, 6, 7])
def test_extension_adds_projected_parts(length):
    count = -(-length // 3)
    x, merged = random(2, length, 4), random(2, count, 5)
    layer = TokenExtension(3)
    output = numpy(layer(x, merged))
    kernel, bias = map(numpy, layer._projection.weights)
    for place in range(length):
        part = slice(4 * (place % 3), 4 * (place % 3) + 4)
        added = merged[:, place // 3] @ kernel[:, part] + bias[part]
        np.testing.assert_allclose(
            output[:, place], x[:, place] + added, atol=1e-5
        )
    assert layer.compute_output_shape(x.shape, merged.shape) == x.shape


def test_extension_keeps_hidden_tokens_apart():
    x = random(1, 7, 3)
    x[:, 2:] = np.nan
    merged = random(1, 3, 4)
    merged[:, 1:] = np.nan
    assert np.isfinite(numpy(TokenExtension(3)(x, merged))[:, :2]).all()


@slow_to_compile
def test_extension_has_the_mask_of_the_tokens():
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(9, 4, mask_zero=True)(tokens)
    x = TokenExtension(3)(x, TokenMerging(3, 5)(x))
    x = MaskedAveragePooling()(x)
    model = keras.Model(tokens, x)
    alone = np.array([[1, 2, 3, 4, 5]])
    expected = numpy(model(alone))
    for more in (1, 2, 4):
        padded = np.pad(alone, [(0, 0), (0, more)])
        np.testing.assert_allclose(numpy(model(padded)), expected, atol=1e-5)


def test_extension_refuses():
    with pytest.raises(ValueError, match="factor=0"):
        TokenExtension(0)
    with pytest.raises(ValueError, match="Received: 7 and 2 tokens, factor=3"):
        TokenExtension(3)(random(1, 7, 4), random(1, 2, 4))


# --- MaskedAveragePooling


def test_pooling_is_keras_own_where_that_is_defined():
    x = random(2, 7, 3)
    mask = np.arange(7) < np.array([[2], [4]])
    ours, theirs = MaskedAveragePooling(), keras.layers.GlobalAveragePooling1D()
    np.testing.assert_allclose(numpy(ours(x)), numpy(theirs(x)), atol=1e-6)
    np.testing.assert_allclose(
        numpy(ours(x, mask=mask)), numpy(theirs(x, mask=mask)), atol=1e-6
    )


def test_pooling_of_nothing_is_zero():
    x = np.full((1, 4, 3), np.nan, "float32")
    output = numpy(MaskedAveragePooling()(x, mask=np.zeros((1, 4), bool)))
    np.testing.assert_array_equal(output, np.zeros((1, 3)))


def test_pooling_sums_half_precision_in_float32():
    x = np.full((1, 4096, 1), 20.0, "float16")
    output = numpy(MaskedAveragePooling(dtype="float16")(x))
    assert output.dtype == np.float16 and output[0, 0] == 20.0
