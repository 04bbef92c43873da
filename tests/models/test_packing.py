"""A language model of packed documents is that of each document alone."""

import keras
import numpy as np
import pytest
from helpers import PACKING
from helpers import SEGMENT_IDS
from helpers import DocumentSums
from helpers import alone
from helpers import assert_same_documents
from helpers import documents
from helpers import slow_under_jax
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.export import export_saved_model
from keras_linattn.models import CausalLM
from keras_linattn.models import TextClassifier
from keras_linattn.models import next_token_targets

CAUSAL = [name for name in PACKING if mechanisms.get(name).traits.causal]
TOKENS = np.random.default_rng(0).integers(1, 20, SEGMENT_IDS.shape)
TOKENS = (TOKENS * (SEGMENT_IDS > 0)).astype("int32")
INPUTS = {"tokens": TOKENS, "segment_ids": SEGMENT_IDS}


def made(mechanism, packed=True, **options):
    """Three blocks, of which two share a state."""
    keras.utils.set_random_seed(0)
    return CausalLM(
        vocabulary_size=20,
        hidden_dim=8,
        num_layers=3,
        num_heads=2,
        mechanism=mechanism,
        layers_per_state=2,
        packed=packed,
        **options,
    )


@pytest.mark.parametrize("mechanism", CAUSAL)
def test_outputs_and_gradients_are_those_of_each_document(mechanism):
    """A step of gradient descent leaves the same weights."""
    packed = made(mechanism, remat=True)
    separate = made(mechanism, packed=False)
    rows = alone(TOKENS)
    assert_same_documents(
        packed.predict_on_batch(INPUTS),
        separate.predict_on_batch(rows),
        atol=1e-5,
    )
    before = packed.get_weights()
    losses = []
    for model, inputs, targets in (
        (packed, INPUTS, next_token_targets(TOKENS, SEGMENT_IDS)),
        (separate, rows, next_token_targets(rows)),
    ):
        model.compile(keras.optimizers.SGD(1.0), weighted_metrics=[])
        losses.append(model.train_on_batch(inputs, *targets))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for old, one, other in zip(
        before, packed.get_weights(), separate.get_weights(), strict=True
    ):
        gradient = other - old
        # Three blocks deep, rounding grows with the gradient.
        atol = 3e-5 * max(1, np.abs(gradient).max())
        np.testing.assert_allclose(one - old, gradient, atol=atol)


def test_a_packed_model_comes_back_from_its_file(tmp_path):
    model = made("softmax")
    expected = model.predict_on_batch(INPUTS)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.packed and [x.name for x in loaded.inputs] == [*INPUTS]
    # As a list, too.
    answer = loaded.predict_on_batch([TOKENS, SEGMENT_IDS])
    np.testing.assert_allclose(answer, expected, atol=1e-6)


@slow_under_jax
def test_tokens_and_ids_have_one_free_length_in_an_export(tmp_path):
    tf = pytest.importorskip("tensorflow")
    model = made("softmax")
    if keras.backend.backend() == "torch":
        pytest.skip("exports through TensorFlow, which is tested there")
    export_saved_model(model, tmp_path / "packed")
    serve = tf.saved_model.load(str(tmp_path / "packed")).signatures["serve"]
    for length in (11, 7):
        inputs = {name: x[:, :length] for name, x in INPUTS.items()}
        answer = serve(**{k: tf.constant(x) for k, x in inputs.items()})
        expected = model.predict_on_batch(inputs)
        (logits,) = answer.values()
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_state_is_that_of_the_last_document():
    model = made(DocumentSums())
    whole = ops.convert_to_numpy(model([TOKENS, SEGMENT_IDS]))
    state, parts = model.get_initial_state(2), []
    for now in (slice(0, 3), slice(3, 11)):
        logits, _, state = model.call_with_state(
            TOKENS[:, now], state, segment_ids=SEGMENT_IDS[:, now]
        )
        parts.append(ops.convert_to_numpy(logits))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)
    for row, place in dict(documents()).items():  # the last of each row
        _, _, own = model.call_with_state(
            TOKENS[row : row + 1, place], model.get_initial_state(1)
        )
        for after, separate in zip(*map(keras.tree.flatten, (state, own))):
            np.testing.assert_allclose(
                ops.convert_to_numpy(after)[row],
                ops.convert_to_numpy(separate)[0],
                atol=1e-5,
            )


def test_ids_that_would_be_ignored_are_refused():
    model = made("softmax", packed=False)
    classifier = TextClassifier(2, hidden_dim=8, num_layers=1, num_buckets=9)
    for other in (model, classifier):
        with pytest.raises(ValueError, match=r"expected inputs \['tokens'\]"):
            other(INPUTS)
        with pytest.raises(ValueError, match=r"`CausalLM\(packed=True\)`"):
            other(TOKENS, segment_ids=SEGMENT_IDS)
    with pytest.raises(ValueError, match="cannot keep the documents"):
        CausalLM(mechanism=Mixing(), packed=True)


class Mixing(DocumentSums):
    """Knows of one document a row."""

    traits = mechanisms.Traits(causal=True, recurrent=True)


# --- Targets


def test_targets_end_with_their_document():
    targets, weights = next_token_targets(TOKENS, SEGMENT_IDS)
    assert targets.dtype == TOKENS.dtype and weights.dtype == "float32"
    expected = np.zeros_like(TOKENS)
    learnt = np.zeros(TOKENS.shape)
    for row, place in documents():
        now = slice(place.start, place.stop - 1)
        expected[row, now] = TOKENS[row, place][1:]
        learnt[row, now] = 1
    np.testing.assert_array_equal(targets, expected)
    np.testing.assert_array_equal(weights, learnt)
    tensors = next_token_targets(
        ops.convert_to_tensor(TOKENS), ops.convert_to_tensor(SEGMENT_IDS)
    )
    for tensor, array in zip(tensors, (targets, weights)):
        np.testing.assert_array_equal(ops.convert_to_numpy(tensor), array)


def test_targets_without_ids_are_those_of_one_document():
    targets, weights = next_token_targets(np.array([5, 6, 7, 0, 0]))
    assert targets.tolist() == [6, 7, 0, 0, 0]
    assert weights.tolist() == [1, 1, 0, 0, 0]
