"""cosFormer: distances, positions, the limit M."""

import numpy as np
import pytest
from keras import ops

from keras_linattn.mechanisms.cosformer import CosFormer
from keras_linattn.mechanisms.cosformer import feature_map
from keras_linattn.testing import random_inputs
from keras_linattn.testing._backends import gradients
from keras_linattn.testing._subject import run
from keras_linattn.testing.references._common import transpose


def features(x, start=0, sequence_length=16):
    position = ops.arange(start, start + x.shape[2])
    x = feature_map(ops.convert_to_tensor(x), position, sequence_length)
    return ops.convert_to_numpy(x)


def test_features_give_the_cosine_of_the_distance():
    x = np.ones((1, 1, 16, 1), "float32")
    product = (features(x) @ transpose(features(x)))[0, 0]
    distance = np.subtract.outer(np.arange(16), np.arange(16))
    np.testing.assert_allclose(
        product, np.cos(np.pi * distance / 32), atol=1e-6
    )
    assert product.min() > 0


def test_far_weights_keep_their_digits():
    """cos near pi / 2, as 1 - sin would not give it."""
    x = np.ones((1, 1, 1, 1), "float32")
    far = features(x, start=99_999, sequence_length=100_000)
    expected = np.cos(np.pi / 2 * 99_999 / 100_000)
    np.testing.assert_allclose(far[0, 0, 0, 0], expected, rtol=1e-6)


def test_only_differences_of_positions_count():
    """What stands before the sequence, behind a mask, moves nothing."""
    inputs = random_inputs(queries=9, keys=9)
    mechanism = CosFormer(sequence_length=20)
    shifted = [
        np.concatenate([np.full_like(x, 7.0), x], axis=2)
        for x in (inputs.query, inputs.key, inputs.value)
    ]
    mask = np.repeat([[False] * 9 + [True] * 9], 2, axis=0)
    padded = inputs.replace(
        query=shifted[0],
        key=shifted[1],
        value=shifted[2],
        key_mask=mask,
        query_mask=mask,
    )
    for causal in (False, True):
        np.testing.assert_allclose(
            run(mechanism, padded, causal)[:, :, 9:],
            run(mechanism, inputs, causal),
            atol=1e-5,
        )


def test_a_large_limit_forgets_positions():
    inputs = random_inputs()
    similarity = np.maximum(inputs.query, 0) @ transpose(
        np.maximum(inputs.key, 0)
    )
    total = similarity.sum(axis=-1, keepdims=True)
    expected = similarity / np.where(total == 0, 1, total) @ inputs.value
    output = run(CosFormer(sequence_length=10**6), inputs)
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_limit_is_the_length_it_is_built_with():
    mechanism = CosFormer()
    run(mechanism, random_inputs(queries=3, keys=11))
    assert mechanism.sequence_length == 11


def test_needs_a_limit():
    with pytest.raises(ValueError, match="sequence_length=None"):
        CosFormer().build((None, 2, None, 4), *[(None, 2, None, 4)] * 2)
    with pytest.raises(ValueError, match="Received: sequence_length=0"):
        CosFormer(sequence_length=0)


def test_positions_past_the_limit_are_not_plausible():
    x = np.ones((1, 1, 2, 1), "float32")
    assert np.isnan(features(x, start=15)[0, 0]).any(axis=1).tolist() == [
        False,
        True,
    ]


def test_state_holds_the_position():
    inputs = random_inputs()
    mechanism = CosFormer(sequence_length=20)
    heads = [
        ops.convert_to_tensor(x)
        for x in (inputs.query, inputs.key, inputs.value)
    ]
    state = mechanism.initial_state(2, 2, 4, 4)
    _, state = mechanism.step(state, *heads)
    _, state = mechanism.step(state, *heads)
    assert ops.convert_to_numpy(state["position"]).tolist() == [12, 12]


@pytest.mark.parametrize("causal", [False, True])
def test_documents_are_bounded_and_not_rows(causal):
    """Padding behind a document may be longer than that."""
    ids = np.repeat([[1, 0, 2, 3]], [8, 12, 9, 6], axis=1).astype("int32")
    inputs = random_inputs(batch=1, queries=35, keys=35)
    heads = [inputs.query, inputs.key, inputs.value]
    mechanism = CosFormer(sequence_length=8)
    packed = run(mechanism, inputs, causal, segment_ids=ids)
    places = slice(29, 35)
    alone = inputs.replace(
        **{
            name: getattr(inputs, name)[:, :, places]
            for name in ("query", "key", "value")
        }
    )
    np.testing.assert_allclose(
        packed[:, :, places], run(mechanism, alone, causal), atol=1e-5
    )
    too_long = np.isnan(packed).any(axis=(0, 1, 3))
    # Without a causal mask the whole document sees the ninth key.
    np.testing.assert_array_equal(
        np.flatnonzero(too_long), [28] if causal else np.arange(20, 29)
    )
    shown = ops.convert_to_tensor(ids[:, None, :, None] != 2)

    def total(query, key, value):
        output = mechanism(query, key, value, causal=causal, segment_ids=ids)
        return ops.sum(ops.where(shown, output, 0))

    found, _ = gradients(total, heads, [])
    finite = np.isfinite(np.concatenate(found, axis=-1)).all(axis=(0, 1, 3))
    assert finite[ids[0] != 2].all()
