"""Every fast form equals its portable form, and one switch turns all off."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_linattn import config
from keras_linattn import mechanisms
from keras_linattn.core import backends
from keras_linattn.core.backends import thresholds
from keras_linattn.core.chunks import looped_sums
from keras_linattn.core.documents import Documents
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.numerics import LOWEST
from keras_linattn.core.products import attend_within
from keras_linattn.core.products import causal_product
from keras_linattn.core.products import kernel_attention
from keras_linattn.core.windows import near_by_place
from keras_linattn.mechanisms._chunk_carry import loop_over_chunks

LONG = thresholds.SHORTEST + 65


def normal(*shape):
    rng = np.random.default_rng(sum(shape))
    return ops.convert_to_tensor(rng.standard_normal(shape, dtype="float32"))


def positive(*shape):
    return ops.exp(normal(*shape))


def summed_up(state, query, key, value):
    output, state = causal_product(query, key, value, state)
    return output, state


def fading(inputs, state):
    """One chunk of `loop_over_chunks`: its output and the next state."""
    update, decay = inputs
    return ops.sum(state, axis=-1, keepdims=True), decay * state + update


def with_state(key, value):
    """A causal function for `run_sanitized`."""
    return key + value, ops.sum(key, axis=2, keepdims=True)


def documents(*starts):
    """`Documents` of two rows alike, with the starts that are given."""
    number = np.searchsorted(starts, np.arange(LONG), side="right") - 1
    number = np.broadcast_to(number, (2, LONG)).astype("int32")
    number = ops.convert_to_tensor(number)
    return Documents(number, number)


# By name of the function: arguments that the fast forms take.
ARGUMENTS = {
    "attend_blocks": lambda: (
        normal(2, 3, 4, 5, 6),
        normal(2, 3, 4, 9, 6),
        normal(2, 3, 4, 9, 7),
        normal(2, 1, 4, 5, 9) > 0,
    ),
    "attend_causally": lambda: (
        positive(1, 2, LONG, 5),
        positive(1, 2, LONG, 5) + 1,
        normal(1, 2, LONG, 3),
        positive(1, 2, 5, 4),
    ),
    "attend_documents": lambda: (
        attend_within,
        kernel_attention,
        positive(2, 2, LONG, 5),
        positive(2, 2, LONG, 5) + 1,
        normal(2, 2, LONG, 3),
        documents(0, 130, 131, 500),
    ),
    "attend_earlier": lambda: (
        normal(2, 3, LONG, 6),
        normal(2, 3, LONG, 6),
        apply_mask(normal(2, 3, LONG, 7), normal(2, LONG) > 0),
        normal(2, LONG) > 0,
        documents(0, 130, 131, 500),
    ),
    "attend_near": lambda: (
        normal(2, 3, 70, 6),
        normal(2, 3, 70, 6),
        normal(2, 3, 70, 7),
        near_by_place(70, 40, True, normal(2, 70) > 0),
    ),
    "convolve_channels": lambda: (
        normal(2, 3, 12, 4),
        normal(3, 3, 3, 4),
        (3, 4),
    ),
    "cumulative_sums": lambda: (normal(1, 2, 19, 3, 4), normal(1, 2, 3, 4)),
    "dense_product": lambda: (
        normal(2, 5, 3, 4),
        normal(3, 4, 2, 6),
        normal(2, 6),
    ),
    "divide_by_size": lambda: (normal(2, 9, 4), 4, 1e-5),
    "exp_of_logs": lambda: (
        ops.convert_to_tensor([2.0, 0.0, -30.0, LOWEST, 2 * LOWEST, -np.inf]),
    ),
    "largest_rows": lambda: (
        normal(9, 4),
        ops.convert_to_tensor([0, 1, 1, 2, 2, 2, 3, 4, 4], dtype="int32"),
    ),
    "loop_over_chunks": lambda: (
        fading,
        (normal(2, 3, 7, 4, 5), positive(2, 3, 7, 1, 1) / 9),
        normal(2, 3, 4, 5),
        (4, 1),
    ),
    "overlapping_blocks": lambda: (normal(2, 3, 12, 5), 2, 4, 2),
    "product_plus": lambda: (normal(4), normal(2, 3, 5), normal(2, 5, 4)),
    "read_chunks": lambda: (
        (
            normal(2, 3, 9, 5, 3),  # U
            normal(2, 3, 9, 10, 4) / 9,
            normal(2, 3, 9, 5, 5) / 9,
            normal(2, 3, 9, 4, 5) / 9,
            positive(2, 3, 9, 1, 1) / 9,
        ),
        normal(2, 3, 4, 3),
        loop_over_chunks,
    ),
    "run_sanitized": lambda: (
        with_state,
        normal(2, 3, 9, 4),
        normal(2, 3, 9, 4),
    ),
    "run_in_segments": lambda: (
        summed_up,
        normal(1, 2, 5, 3),
        (normal(1, 2, LONG, 5), normal(1, 2, LONG, 5), normal(1, 2, LONG, 3)),
    ),
    "run_fused": lambda: (
        lambda *heads: sum(heads),
        None,  # only its gradients are asked for
        *(normal(4), normal(4), normal(4)),
    ),
    "softmax_parts": lambda: (normal(2, 3, 9, 4), None, 2),
    "sum_over_positions": lambda: (normal(2, 9, 6), normal(2, 9, 5)),
}

# torch: kernels for a GPU, see `tests/gpu`; JAX: segments, see below.
ON_CUDA = (
    "delta_product",
    "scalar_decay_product",
    "vector_decay_product",
    "vector_delta_product",
)


def of_parts(result, name):
    """The tensors to compare: parts of a softmax have a factor free."""
    if name == "softmax_parts":
        weights, total = result
        result = weights / ops.expand_dims(total, 2)
    return [ops.convert_to_numpy(x) for x in keras.tree.flatten(result)]


def call(function, arguments, **options):
    """`function(*arguments)` without gradients, as for inference."""
    if keras.backend.backend() != "torch":
        return function(*arguments, **options)
    import torch

    with torch.no_grad():
        return function(*arguments, **options)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    """Segments are shorter than the inputs of these tests."""
    for name in ("SEGMENT", "SEGMENT_OF_TORCH"):
        monkeypatch.setattr(backends.current(), name, 1024, raising=False)


def has_fast_form(name):
    return hasattr(backends.current(), name)


@pytest.mark.every_case
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_fast_form_equals_the_portable_one(name):
    function, arguments = backends.DISPATCHED[name], ARGUMENTS[name]()
    if has_fast_form(name):
        fast = call(getattr(backends.current(), name), arguments)
        assert fast is not NotImplemented, "these arguments test nothing"
    found = call(function, arguments)
    wanted = call(function.portable, arguments)
    for one, other in zip(
        of_parts(found, name), of_parts(wanted, name), strict=True
    ):
        # Sums over hundreds of positions, in another order.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def test_a_backend_s_own_loop_equals_the_portable_doublings():
    arguments = (
        normal(1, 2, 19, 3, 4),
        normal(1, 2, 3, 4),
        normal(1, 1, 19, 1, 1) > 0.5,
    )
    for one, other in zip(
        looped_sums(*arguments), looped_sums.portable(*arguments), strict=True
    ):
        one, other = map(ops.convert_to_numpy, (one, other))
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["gated_delta", "gated_linear"])
def test_recurrences_in_segments_equal_the_whole(name):
    mechanism = mechanisms.get(name)
    heads = [normal(1, 2, LONG, size) for size in (4, 4, 3)]
    found = call(mechanism, heads, causal=True)
    config.set_fast_forms(False)
    try:
        wanted = call(mechanism, heads, causal=True)
    finally:
        config.set_fast_forms(True)
    found, wanted = (ops.convert_to_numpy(x) for x in (found, wanted))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_an_empty_batch_has_no_segments():
    heads = normal(0, 2, LONG, 4)
    mechanism = mechanisms.get("gated_delta")
    assert mechanism(heads, heads, heads, causal=True).shape == (0, 2, LONG, 4)


def test_every_dispatched_function_is_compared():
    assert sorted(backends.DISPATCHED) == sorted({*ARGUMENTS, *ON_CUDA})


def test_the_switch_turns_fast_forms_off(monkeypatch):
    called = []
    for name in ARGUMENTS:
        if has_fast_form(name):
            monkeypatch.setattr(
                backends.current(), name, lambda *_: called.append(name)
            )
    config.set_fast_forms(False)
    try:
        assert not config.fast_forms()
        for name, arguments in ARGUMENTS.items():
            call(backends.DISPATCHED[name], arguments())
    finally:
        config.set_fast_forms(True)
    assert not called


@pytest.mark.once
def test_the_environment_turns_fast_forms_off():
    assert config.fast_forms()
    code = "from keras_linattn import config; print(config.fast_forms())"
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_LINATTN_FAST_FORMS": "0"},
        capture_output=True,
        encoding="utf-8",
    )
    assert child.stdout.strip() == "False", child.stderr
