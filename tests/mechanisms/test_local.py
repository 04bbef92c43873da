"""Local: Keras' band, softmax as its limit, prompts that go on, NaN."""

import numpy as np
import pytest
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.mechanisms.local import Local
from keras_linattn.testing import random_inputs
from keras_linattn.testing._backends import gradients
from keras_linattn.testing._subject import run
from keras_linattn.testing._subject import visible_rows
from keras_linattn.testing.references import softmax


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("visible", [None, 0.7])
def test_a_window_of_the_length_is_softmax_attention(causal, visible):
    inputs = random_inputs(queries=70, keys=70, visible=visible)
    heads = (inputs.query, inputs.key, inputs.value)
    expected = softmax.attend(None, {}, *heads, *inputs.masks(), causal)
    for skip_hidden in (False, True):
        output = run(Local(70, skip_hidden), inputs, causal)
        np.testing.assert_allclose(
            visible_rows(output, inputs),
            visible_rows(expected, inputs),
            atol=1e-5,
        )


def test_a_window_of_one_gives_each_position_its_value():
    inputs = random_inputs(queries=40, keys=40)
    for causal in (False, True):
        output = run(Local(1), inputs, causal)
        np.testing.assert_allclose(output, inputs.value, atol=1e-6)
    state = Local(1).initial_state(2, 2, 4, 4)
    heads = [
        ops.convert_to_tensor(x)
        for x in (inputs.query, inputs.key, inputs.value)
    ]
    output, state = Local(1).step(state, *heads)
    assert tuple(state.shape) == (2, 2, 0, 9)
    np.testing.assert_allclose(
        ops.convert_to_numpy(output), inputs.value, atol=1e-6
    )


@pytest.mark.parametrize("name", ["local", "hybrid_window", "softmax"])
@pytest.mark.parametrize("left", [False, True])
def test_padded_prompts_go_on_as_each_alone(name, left):
    """Two pieces, each padded to one length; hidden ones do not count."""
    arguments = {"cache_length": 20} if name == "softmax" else {"window": 4}
    mechanism = mechanisms.get({"name": name, **arguments})
    inputs = random_inputs(queries=16, keys=16)
    heads = (inputs.query, inputs.key, inputs.value)
    mechanism.build(*inputs.shapes)
    place = np.arange(8)[::-1] if left else np.arange(8)
    lengths = np.array([[3, 8], [6, 2]])  # of each row, of each piece
    mask = np.concatenate(
        [place < lengths[:, i : i + 1] for i in range(2)], axis=1
    )
    together, state = [], mechanism.initial_state(2, 2, 4, 4)
    for piece in (slice(0, 8), slice(8, 16)):
        output, state = mechanism.step(
            state,
            *(ops.convert_to_tensor(x[:, :, piece]) for x in heads),
            key_mask=ops.convert_to_tensor(mask[:, piece]),
        )
        together.append(ops.convert_to_numpy(output))
    together = np.concatenate(together, axis=2)
    for row in range(2):
        one = (x[row : row + 1][:, :, mask[row]] for x in heads)
        query, key, value = one
        alone = inputs.replace(query=query, key=key, value=value)
        np.testing.assert_allclose(
            together[row : row + 1][:, :, mask[row]],
            run(mechanism, alone, causal=True),
            atol=1e-5,
        )


@pytest.mark.parametrize("causal", [False, True])
def test_nan_outside_the_window_is_invisible(causal):
    """Bit for bit, in gradients too. Inside, NaN reaches what sees it."""
    inputs = random_inputs(queries=80, keys=80)
    mechanism, bad = Local(5), 37
    expected = run(mechanism, inputs, causal)
    near = np.abs(np.arange(80) - bad) < 5
    near &= (np.arange(80) >= bad) | (not causal)

    def total(*heads):
        output = mechanism(*heads, causal=causal)
        clean = ops.convert_to_tensor(~near[None, None, :, None])
        return ops.sum(ops.where(clean, output, ops.zeros_like(output)))

    for names in (("key",), ("value",), ("key", "value")):
        changed = {x: getattr(inputs, x).copy() for x in names}
        for array in changed.values():
            array[:, :, bad] = np.nan
        altered = inputs.replace(**changed)
        output = run(mechanism, altered, causal)
        np.testing.assert_array_equal(
            output[:, :, ~near], expected[:, :, ~near]
        )
        assert np.isnan(output[:, :, near]).all()
        heads = (altered.query, altered.key, altered.value)
        found, _ = gradients(total, heads, [])
        assert all(np.isfinite(gradient).all() for gradient in found)


@pytest.mark.parametrize("causal", [False, True])
def test_documents_stay_apart(causal):
    """Packed, with padding between: what each gives alone."""
    inputs = random_inputs(batch=1, queries=80, keys=80)
    ids = np.repeat([0, 1, 0, 2, 3, 0], [3, 40, 2, 1, 30, 4])[None]
    heads = (inputs.query, inputs.key, inputs.value)
    packed = run(Local(6), inputs, causal, segment_ids=ids)
    for number in (1, 2, 3):
        own = ids[0] == number
        query, key, value = (x[:, :, own] for x in heads)
        alone = inputs.replace(query=query, key=key, value=value)
        np.testing.assert_allclose(
            packed[:, :, own], run(Local(6), alone, causal), atol=1e-5
        )
    if causal:
        _check_packed_pieces(heads, ids, packed)


def _check_packed_pieces(heads, ids, packed):
    for mechanism, expected in (
        (Local(6), packed),
        (mechanisms.get({"name": "softmax", "cache_length": 50}), None),
    ):
        if expected is None:
            expected = mechanism(*heads, causal=True, segment_ids=ids)
            expected = ops.convert_to_numpy(expected)
        state, outputs = mechanism.initial_state(1, 2, 4, 4), []
        for piece in (slice(0, 20), slice(20, 41), slice(41, 60)):
            numbers = ids[:, piece]
            output, state = mechanism.step(
                state,
                *(ops.convert_to_tensor(x[:, :, piece]) for x in heads),
                segment_ids=ops.convert_to_tensor(numbers),
            )
            shown = numbers[:, None, :, None] != 0
            outputs.append(np.where(shown, ops.convert_to_numpy(output), 0))
        np.testing.assert_allclose(
            np.concatenate(outputs, axis=2), expected[:, :, :60], atol=1e-5
        )


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"window": 0}, "`window` must be a positive"),
        ({"window": 2.0}, "`window` must be a positive"),
        ({"skip_hidden": 1}, "`skip_hidden` must be"),
    ],
)
def test_refuses_arguments_out_of_range(options, rule):
    for name in ("local", "hybrid_window"):
        with pytest.raises(ValueError, match=rule):
            mechanisms.get(name, **options)
