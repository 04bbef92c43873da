"""Any shape and any mask: mechanisms, layers and arithmetic (hypothesis)."""

import keras
import numpy as np
import pytest
from helpers import cases_of
from helpers import numpy
from helpers import slow_to_compile
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import ops

from keras_linattn import LinearSelfAttention
from keras_linattn import mechanisms
from keras_linattn.core import chunks
from keras_linattn.core import products
from keras_linattn.testing import compare_with_reference
from keras_linattn.testing import subjects

# Each new shape is compiled anew under JAX: few examples, small sizes.
few = settings(
    max_examples=3 if keras.backend.backend() == "jax" else 6,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
sizes = st.integers(1, 9)


@pytest.mark.parametrize("name", cases_of(mechanisms.available()))
@few
@given(data=st.data())
def test_mechanisms_match_their_reference(name, data):
    subject = data.draw(st.sampled_from(subjects(name)), "subject")
    queries, keys = data.draw(sizes, "T"), data.draw(sizes, "S")
    causal = data.draw(st.sampled_from(subject.traits.forms), "causal")
    if causal or not subject.traits.cross:
        keys = queries
    inputs = subject.inputs(
        batch=data.draw(st.integers(1, 3), "B"),
        queries=queries,
        keys=keys,
        key_dim=4,
        value_dim=data.draw(st.integers(1, 5), "V"),
        visible=data.draw(st.sampled_from([None, 0.0, 0.4, 0.8]), "visible"),
        seed=data.draw(st.integers(0, 99), "seed"),
    )
    compare_with_reference(subject, inputs, causal)


@slow_to_compile
@few
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    left=st.booleans(),
)
def test_layer_gives_padded_rows_what_they_get_alone(lengths, left):
    keras.utils.set_random_seed(0)
    layer = LinearSelfAttention(2, 4)
    position = np.arange(9)[::-1] if left else np.arange(9)
    mask = position < np.array(lengths)[:, None]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((len(lengths), 9, 6)).astype("float32")
    x[~mask] = np.nan
    output = numpy(layer(x, mask=mask))
    for row, visible in enumerate(mask):
        if visible.any():
            alone = numpy(layer(x[row : row + 1, visible]))
            np.testing.assert_allclose(
                output[row, visible], alone[0], atol=1e-5
            )


@few
@given(length=st.integers(1, 40), size=st.integers(1, 12))
def test_chunks_split_and_join(length, size):
    x = np.arange(2 * 3 * length * 2, dtype="float32")
    x = x.reshape(2, 3, length, 2)
    split = chunks.split_chunks(ops.convert_to_tensor(x), size)
    assert split.shape == (2, 3, -(-length // size), size, 2)
    np.testing.assert_array_equal(numpy(chunks.join_chunks(split, length)), x)


@slow_to_compile
@few
@given(
    length=st.integers(1, 30),
    size=st.integers(1, 12),
    cut=st.integers(1, 30),
)
def test_causal_product_is_free_of_chunks_and_cuts(length, size, cut):
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.standard_normal((1, 2, length, 3)).astype("float32")
        for _ in range(3)
    )
    expected = np.tril(q @ k.swapaxes(2, 3)) @ v
    heads = [ops.convert_to_tensor(x) for x in (q, k, v)]
    output, state = products.causal_product(*heads, chunk_size=size)
    np.testing.assert_allclose(numpy(output), expected, atol=1e-4)
    np.testing.assert_allclose(numpy(state), k.swapaxes(2, 3) @ v, atol=1e-4)
    if cut < length:
        _, middle = products.causal_product(
            *(x[:, :, :cut] for x in heads), chunk_size=size
        )
        later, _ = products.causal_product(
            *(x[:, :, cut:] for x in heads), middle, chunk_size=size
        )
        np.testing.assert_allclose(
            numpy(later), expected[:, :, cut:], atol=1e-4
        )
