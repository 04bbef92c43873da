"""The suite itself: it passes what is right and names what is wrong."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_linattn import mechanisms
from keras_linattn import testing
from keras_linattn.mechanisms import Traits
from keras_linattn.testing.references._common import visible_pairs


@keras.saving.register_keras_serializable("tests")
class MeanOfValues(mechanisms.Mechanism):
    """The mean of the visible values, for every query."""

    def attend(self, query, key, value, *, key_mask, **others):
        if key_mask is None:
            weights = ops.ones_like(value[:, :1, :, :1])
        else:
            weights = ops.cast(key_mask, value.dtype)[:, None, :, None]
        total = ops.maximum(ops.sum(weights, axis=2, keepdims=True), 1)
        mean = ops.sum(value * weights, axis=2, keepdims=True) / total
        return mean + ops.zeros_like(query[..., :1])


def reference(
    mechanism, weights, query, key, value, key_mask, query_mask, causal
):
    pairs = visible_pairs(key_mask, query.shape[2], causal).astype(float)
    pairs = np.broadcast_to(pairs, (*query.shape[:3], key.shape[2]))
    return pairs @ value / np.maximum(pairs.sum(-1, keepdims=True), 1)


class IgnoresMask(MeanOfValues):
    def attend(self, query, key, value, *, key_mask, **others):
        return super().attend(query, key, value, key_mask=None, **others)


class SumsInHalf(MeanOfValues):
    def call(self, query, key, value, key_mask=None, **options):
        mean = ops.sum(100 * value, axis=2, keepdims=True)
        mean = mean / 100 / value.shape[2]
        return mean + ops.zeros_like(query[..., :1])


class IsQuadratic(MeanOfValues):
    def attend(self, query, key, value, **others):
        square = ops.matmul(query, ops.swapaxes(key, -1, -2))
        extra = ops.sum(square, axis=-1, keepdims=True)
        return super().attend(query, key, value, **others) + 0 * extra


class ForgetsItsArgument(MeanOfValues):
    def __init__(self, power=1, **kwargs):
        super().__init__(**kwargs)

    def get_config(self):
        return keras.layers.Layer.get_config(self)


class DetachesValues(MeanOfValues):
    def attend(self, query, key, value, **others):
        return super().attend(query, key, ops.stop_gradient(value), **others)


class ClaimsCausal(MeanOfValues):
    traits = Traits(causal=True)


class OffByLittle(MeanOfValues):
    def attend(self, query, key, value, **others):
        return 1.0001 * super().attend(query, key, value, **others)


def test_a_right_mechanism_of_ones_own_passes():
    testing.check_mechanism(MeanOfValues, reference)


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (IgnoresMask, "check_padding_is_exact"),
        (SumsInHalf, "check_half_precision"),
        (IsQuadratic, "check_no_quadratic_array"),
        (ForgetsItsArgument, "check_config_is_the_constructor"),
        (DetachesValues, "check_gradients_match_reference"),
        (ClaimsCausal, "check_future_is_invisible"),
        (OffByLittle, "check_matches_reference"),
    ],
)
def test_a_wrong_mechanism_is_named(wrong, check):
    # Torch itself objects where no gradient flows at all.
    with pytest.raises((AssertionError, RuntimeError)):
        (subject,) = testing.subjects(wrong, reference)
        (function,) = (
            c for c in testing.checks_for(subject.traits) if c.__name__ == check
        )
        function(subject)


def test_all_failures_are_told_at_once():
    with pytest.raises(AssertionError) as raised:
        testing.check_mechanism(ForgetsItsArgument, reference)
    assert "no config gives a value of its own to ['power']" in str(
        raised.value
    )
    assert "missing from the config: ['power']" in str(raised.value)


def test_an_excused_check_must_fail():
    class Excused(MeanOfValues):
        traits = Traits(
            known_failures=(("check_matches_reference", "not yet"),)
        )

    with pytest.raises(AssertionError, match="excused, but passes"):
        testing.check_mechanism(Excused, reference)


def test_a_mechanism_without_reference_is_refused():
    with pytest.raises(ValueError, match="Pass `reference=`"):
        testing.check_mechanism(MeanOfValues)
