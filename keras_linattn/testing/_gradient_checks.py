"""Checks of gradients, of the heads and of all trainable weights."""

import dataclasses
import functools

import numpy as np
from keras import ops

from keras_linattn.testing._backends import gradients
from keras_linattn.testing._mask_checks import fill_masked
from keras_linattn.testing._subject import always
from keras_linattn.testing._subject import assert_close
from keras_linattn.testing._subject import path_within
from keras_linattn.testing._subject import require
from keras_linattn.testing._subject import weights_of

HEADS = ("query", "key", "value")
STEP = 1e-6
SPLIT = 3  # positions in the first of two pieces
MANY = 500  # entries; of more, those whose gradient is 0 are moved together


def whole(mechanism, heads, key_mask, query_mask, causal):
    """The output for tensors."""
    return mechanism(
        *heads, key_mask=key_mask, query_mask=query_mask, causal=causal
    )


def in_two_pieces(mechanism, heads, key_mask, query_mask, causal):
    """`whole`, in which the second piece knows the first by its state only."""
    state = mechanism.initial_state_for(heads[0], heads[2])
    outputs = []
    for piece in (slice(None, SPLIT), slice(SPLIT, None)):
        output, state = mechanism.step(
            state,
            *(x[:, :, piece] for x in heads),
            key_mask=None if key_mask is None else key_mask[:, piece],
        )
        outputs.append(output)
    return ops.concatenate(outputs, axis=2)


def fast_gradients(mechanism, inputs, cotangent, causal=None, attend=whole):
    """The backend's gradients of sum(output * cotangent), by name."""
    if causal is None:
        causal = mechanism.traits.forms[0]
    variables = mechanism.trainable_variables
    by_head, by_weight = gradients(
        _total_of(mechanism, attend, causal),
        [getattr(inputs, name) for name in HEADS],
        variables,
        (cotangent, inputs.key_mask, inputs.query_mask),
    )
    names = [path_within(mechanism, v) for v in variables]
    return dict(zip([*HEADS, *names], [*by_head, *by_weight], strict=True))


# One object for each, so that JAX compiles its gradients once.
@functools.lru_cache(maxsize=8)
def _total_of(mechanism, attend, causal):
    def total(*tensors):
        *heads, cotangent, key_mask, query_mask = tensors
        output = attend(mechanism, heads, key_mask, query_mask, causal)
        if query_mask is not None:
            # Rows of hidden queries mean nothing, and may be NaN.
            visible = query_mask[:, None, :, None]
            output = ops.where(visible, output, ops.zeros_like(output))
        return ops.sum(output * cotangent)

    return total


def slow_gradient(subject, mechanism, inputs, cotangent, name, causal, along):
    """Central differences of the float64 reference along each direction."""
    weights = weights_of(mechanism)
    cotangent = np.where(inputs.masks()[1][:, None, :, None], cotangent, 0)

    def totals(inputs, weights):
        output = subject.expected(mechanism, inputs, causal, weights)
        # Rows whose queries are hidden may be NaN.
        terms = np.where(
            cotangent == 0, 0, output.reshape(-1, *cotangent.shape) * cotangent
        )
        return terms.sum(axis=(1, 2, 3, 4))

    def moved(start):
        steps = STEP * np.stack([along, -along])
        return start.astype("float64") + steps  # [2, directions, ...]

    if name in HEADS:
        # All at once: a batch of copies.
        arrays = moved(getattr(inputs, name))
        copies = _copies(inputs, 2 * len(along))
        arrays = arrays.reshape(-1, *arrays.shape[3:])
        found = totals(copies.replace(**{name: arrays}), weights)
    else:
        arrays = moved(weights[name])
        arrays = arrays.reshape(-1, *arrays.shape[2:])
        found = [totals(inputs, {**weights, name: array}) for array in arrays]
    ahead, behind = np.reshape(found, (2, -1))
    return (ahead - behind) / (2 * STEP)


def _copies(inputs, count):
    """The batch `count` times, one after the other."""
    arrays = {
        field.name: getattr(inputs, field.name)
        for field in dataclasses.fields(inputs)
    }
    return inputs.replace(
        **{
            name: None if x is None else np.concatenate([x] * count)
            for name, x in arrays.items()
        }
    )


def directions_of(gradient):
    """Each entry by itself, and those that are 0 of many all at once."""
    alone = (gradient.ravel() != 0) | (gradient.size <= MANY)
    places = np.flatnonzero(alone)
    units = np.zeros((len(places), gradient.size))
    units[np.arange(len(places)), places] = 1
    rest = ~alone * np.random.default_rng(8).standard_normal(gradient.size)
    return np.stack([*units, rest]).reshape(-1, *gradient.shape)


def compare_gradients(subject, inputs, causal=None, attend=whole, start=0):
    """Raises an `AssertionError` unless gradients and reference agree.

    Args:
        subject: `Subject`.
        inputs: `Inputs`.
        causal: bool or `None`, see `compare_with_reference`.
        attend: callable, `whole` or another way to the same output.
        start: int, the first position whose output counts. Defaults to 0.
    """
    mechanism = subject.shared(inputs)
    cotangent = _cotangent(inputs)
    cotangent[:, :, :start] = 0
    fast = fast_gradients(mechanism, inputs, cotangent, causal, attend)
    for name, gradient in fast.items():
        along = directions_of(gradient)
        slow = slow_gradient(
            subject, mechanism, inputs, cotangent, name, causal, along
        )
        # The forward error, once more through the derivative.
        tolerance = 10 * subject.traits.tolerance * max(1, np.abs(slow).max())
        found = np.tensordot(along, gradient, gradient.ndim)
        assert_close(found, slow, tolerance, f"gradient of {name}")


def _cotangent(inputs):
    """Of an output: normal numbers."""
    shape = (*inputs.query.shape[:3], inputs.value.shape[3])
    return np.random.default_rng(9).standard_normal(shape).astype("float32")


def check_gradients_match_reference(subject):
    compare_gradients(subject, _inputs(subject, visible=0.6, seed=2))


def check_gradients_without_masks(subject):
    compare_gradients(subject, _inputs(subject))


def _inputs(subject, **options):
    queries = 4 if subject.traits.cross else 5
    shape = {"keys": 5, "key_dim": 3, "value_dim": 2, "queries": queries}
    return subject.inputs(**shape, **options)


def check_causal_gradients_match_reference(subject):
    shape = {"queries": 5, "keys": 5, "key_dim": 3, "value_dim": 2}
    compare_gradients(subject, subject.inputs(**shape, visible=0.6), True)


def check_gradients_pass_through_states(subject):
    """Of a second piece's outputs, by what the first one left in its state."""
    shape = {"queries": 5, "keys": 5, "key_dim": 3, "value_dim": 2}
    inputs = subject.inputs(**shape, batch=1)
    compare_gradients(subject, inputs, True, in_two_pieces, start=SPLIT)


def check_gradients_are_finite(subject):
    """Where nothing is visible, where heads are 0, behind the mask."""
    inputs = _masked_inputs(subject)
    mask = inputs.key_mask.copy()
    mask[0] = False
    zero = np.arange(len(mask))[:, None, None, None] < 2
    inputs = inputs.replace(
        query=np.where(zero, np.float32(0), inputs.query),
        key=np.where(zero, np.float32(0), inputs.key),
        key_mask=mask,
        query_mask=mask,
    )
    inputs = fill_masked(inputs, 1e30)
    ones = np.ones((*inputs.query.shape[:3], inputs.value.shape[3]), "float32")
    mechanism = subject.shared(inputs)
    for name, gradient in fast_gradients(mechanism, inputs, ones).items():
        require(np.isfinite(gradient).all(), f"gradient of {name}")
        if name in ("key", "value"):
            behind = gradient * ~mask[:, None, :, None]
            require(not behind.any(), f"gradient of {name} leaks")


def check_nan_behind_the_mask_reaches_no_gradient(subject):
    """Bit for bit the gradients of 0 behind the mask, in each form."""
    inputs = _masked_inputs(subject)
    cotangent = _cotangent(inputs)
    mechanism = subject.shared(inputs)
    for causal in subject.traits.forms:
        expected, found = (
            fast_gradients(mechanism, fill_masked(inputs, x), cotangent, causal)
            for x in (0.0, np.nan)
        )
        for name, gradient in found.items():
            np.testing.assert_array_equal(
                gradient, expected[name], f"gradient of {name}"
            )


def _masked_inputs(subject):
    """In the shapes of `check_every_size_is_finite`: compiled once for all."""
    return subject.inputs(batch=24, queries=9, keys=9, visible=0.6)


CHECKS = {
    check_gradients_match_reference: always,
    check_gradients_without_masks: always,
    check_causal_gradients_match_reference: lambda t: len(t.forms) == 2,
    check_gradients_pass_through_states: lambda t: t.recurrent,
    check_gradients_are_finite: always,
    check_nan_behind_the_mask_reaches_no_gradient: always,
}
