"""Mechanisms with a state that fades or is corrected."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_linattn import LinearSelfAttention
from keras_linattn import mechanisms
from keras_linattn.core.decay import decay_between
from keras_linattn.core.decay import running_decay
from keras_linattn.core.decay import scalar_decay_product
from keras_linattn.core.decay import vector_decay_product
from keras_linattn.core.delta import delta_product
from keras_linattn.core.delta import inverse_unit_lower
from keras_linattn.core.vector_delta import vector_delta_product
from keras_linattn.mechanisms._chunk_carry import carry_chunks
from keras_linattn.mechanisms._chunk_carry import loop_over_chunks
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._backends import gradients
from keras_linattn.testing._backends import quick
from keras_linattn.testing._subject import run
from keras_linattn.testing.references import _state

NAMES = (
    "retention",
    "gated_linear",
    "delta_rule",
    "gated_delta",
    "kda",
    "mamba2",
)


@pytest.mark.parametrize("log_decay", [0.0, -0.5, -1000.0])
def test_decay_between_is_0_for_the_future(log_decay):
    """Where the past vanishes at once, too: exp(1000) is infinite."""
    log_decay = np.full((1, 1, 2, 4, 1), log_decay, "float32")
    log_decay *= np.array([1, 2, 0.5, 3], "float32")[:, None]
    running = np.cumsum(log_decay.astype("float64"), axis=-2)
    difference = np.tril(running - np.swapaxes(running, -1, -2))
    expected = np.tril(np.exp(difference))
    found = decay_between(running_decay(ops.convert_to_tensor(log_decay)))
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), expected, rtol=1e-5, atol=1e-30
    )
    (gradient,), _ = gradients(
        lambda x: ops.sum(decay_between(running_decay(x))), [log_decay], []
    )
    assert np.isfinite(gradient).all()


LENGTH, FEATURES = 150, 8
# By name: the product, whether it is a delta rule, decays of a position, and
# the strongest decay that it takes, with the chunk for it.
PRODUCTS = {
    "delta": (delta_product, True, 1, -np.inf, 64),
    "scalar": (scalar_decay_product, False, 1, -np.inf, 64),
    "vector_delta": (vector_delta_product, True, FEATURES, -np.inf, 64),
    "vector": (vector_decay_product, False, FEATURES, -4, 16),
}


def decays(features):
    """Logarithms `[T, features]`, by their way to fade."""
    rng = np.random.default_rng(0)
    shape = (LENGTH, features)
    sizes = rng.uniform(np.log(1e-7), np.log(1e3), shape)
    return {
        "50 at each step": np.full(shape, -50.0),
        "hardly": -1e-6 * rng.random(shape),
        "all sizes": -np.exp(sizes),
        "each feature its own": np.broadcast_to(
            -np.geomspace(1e-7, 50, features), shape
        ),
        # A difference of sums has lost the digits of 0.01 after the first.
        "now and then": np.where(rng.random(shape) < 0.1, -1e3, -1e-2),
        "often": np.where(rng.random(shape) < 0.5, -90.3, -1e-2),
        "more than float32 adds up": np.where(
            rng.random(shape) < 0.3, -1e37, -0.1
        ),
    }


@pytest.mark.parametrize("name", PRODUCTS)
def test_decays_of_any_strength_match_float64(name):
    """Outputs, and gradients by some of the keys and decays."""
    product, corrects, features, strongest, chunk_size = PRODUCTS[name]
    ways, log_decay = zip(*decays(features).items(), strict=True)
    sizes = (len(ways), 1, LENGTH, LENGTH, FEATURES, 5)
    inputs = random_inputs(*sizes, seed=1)
    heads = [inputs.query, inputs.key, inputs.value]
    for i in range(2):
        heads[i] = heads[i] / np.linalg.norm(heads[i], axis=-1, keepdims=True)
    strong = np.maximum(np.stack(log_decay)[:, None], strongest)
    heads.append(strong.astype("float32"))
    rng = np.random.default_rng(2)
    beta = rng.random((*strong.shape[:-1], 1)).astype("float32")
    cotangent = rng.standard_normal(inputs.value.shape).astype("float32")

    def found(*heads):
        *heads, log_decay = heads
        state = ops.zeros((*sizes[:2], FEATURES, 5))
        if corrects:
            heads.append(ops.convert_to_tensor(beta))
        carry = loop_over_chunks if corrects else carry_chunks
        return product(*heads, log_decay, state, carry, chunk_size)[0]

    def expected(query, key, value, log_decay):
        write = _state.delta(beta[..., 0]) if corrects else _state.add
        visible = np.ones((sizes[0], LENGTH), bool)
        return _state.loop(query, key, value, np.exp(log_decay), write, visible)

    exact = [x.astype("float64") for x in heads]
    for way, one, other in zip(
        ways, quick(found, heads), expected(*exact), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=5e-6, err_msg=way)
    by_head, _ = gradients(
        lambda *heads: ops.sum(found(*heads) * ops.array(cotangent)), heads, []
    )
    for place in (0, 40, 70, 149):
        for argument in (1, 3):
            totals = []
            for step in (1e-6, -1e-6):
                moved = [x.copy() for x in exact]
                moved[argument][:, :, place, 0] += step
                output = expected(*moved) * cotangent
                totals.append(output.sum((2, 3)))
            np.testing.assert_allclose(
                by_head[argument][:, :, place, 0],
                (totals[0] - totals[1]) / 2e-6,
                atol=2e-5,
                rtol=2e-5,
                err_msg=f"{argument} at {place}",
            )


def forced_gates(name, inputs, strength, policy="float32"):
    """A function of the heads whose gates are all shut, open, or between.

    One row of the batch for each `strength`, which the gates are fed with.
    """
    mechanism = mechanisms.get(name, dtype=policy)
    mechanism.build(*inputs.shapes)
    for weight in mechanism.trainable_variables:
        if "kernel" in weight.path or weight.name in ("down", "up"):
            weight.assign(np.ones(weight.shape))
    features = inputs.query.shape[1] * inputs.query.shape[3]
    shape = (*inputs.query.shape[:1], inputs.query.shape[2], features)
    noise = np.random.default_rng(1).standard_normal(shape)
    gated = (noise + np.float32(strength)[:, None, None]).astype("float32")

    def call(*heads):
        heads = (ops.cast(x, mechanism.compute_dtype) for x in heads)
        options = {"inputs": gated} if mechanism.traits.gated else {}
        return ops.cast(mechanism(*heads, causal=True, **options), "float32")

    return call


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        *((name, "float32") for name in NAMES),
        ("gated_delta", "mixed_bfloat16"),
    ],
)
def test_finite_at_65536_positions(name, policy):
    length = 65_536
    inputs = random_inputs(
        batch=3, heads=1, queries=length, keys=length, key_dim=4, value_dim=2
    )
    call = forced_gates(name, inputs, (-40, 40, 0), policy)
    output = quick(call, [inputs.query, inputs.key, inputs.value])
    assert np.isfinite(output).all()
    # A delta rule whose gates are shut writes nothing; all others do.
    assert (np.abs(output[1:, :, -1]).max(axis=(1, 2)) > 1e-3).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_where_the_past_vanishes(name):
    """Gates shut, or open, for more than a chunk."""
    inputs = random_inputs(queries=80, keys=80)
    call = forced_gates(name, inputs, (-60, 60))
    heads = (inputs.query, inputs.key, inputs.value)
    found, _ = gradients(lambda *heads: ops.sum(call(*heads)), heads, [])
    assert all(np.isfinite(gradient).all() for gradient in found)


def test_delta_rule_recalls_every_value_under_orthogonal_keys():
    """And forgets the old value of a key that comes again."""
    eye = np.eye(4, dtype="float32")
    key = np.concatenate([eye, eye[:1], eye])[None, None]
    value = random_inputs(1, 1, 9, 9, 4, 3, seed=4).value

    def recall(key, value):
        beta = ops.ones_like(key[..., :1])
        start = ops.zeros((1, 1, 4, 3))
        log_decay = ops.zeros_like(beta)
        heads = (key, key, value, beta, log_decay, start)
        return delta_product(*heads, loop_over_chunks, 4)[0]

    np.testing.assert_allclose(quick(recall, [key, value]), value, atol=1e-6)


@pytest.mark.parametrize("size", [1, 5, 64])
def test_a_chunk_s_inverse_is_exact_where_all_keys_are_equal(size):
    """The worst case: powers of the matrix reach 1e18 at 64 positions."""
    ones = np.ones((1, size, size), "float32")
    found = quick(inverse_unit_lower, [ones])[0]
    np.testing.assert_allclose(
        found, np.eye(size) - np.eye(size, k=-1), atol=1e-6
    )


def test_gated_delta_without_decay_is_the_delta_rule():
    inputs = random_inputs(queries=70, keys=70)
    mechanism = subjects("gated_delta")[0].build(inputs)
    mechanism.log_rate.assign([-60, -60])
    plain = subjects("delta_rule")[0].build(inputs)
    plain.beta_kernel.assign(mechanism.beta_kernel)
    plain.beta_bias.assign(mechanism.beta_bias)
    np.testing.assert_allclose(
        run(mechanism, inputs), run(plain, inputs), atol=1e-5
    )


def test_gated_linear_with_open_gates_sums_up():
    inputs = random_inputs(queries=40, keys=40)
    mechanism = mechanisms.get("gated_linear", output_norm=False)
    mechanism.build(*inputs.shapes)
    mechanism.down.assign(np.zeros(mechanism.down.shape))
    mechanism.bias.assign(np.full(mechanism.bias.shape, 40))
    scores = np.tril(inputs.query @ np.swapaxes(inputs.key, -1, -2)) / 2
    np.testing.assert_allclose(
        run(mechanism, inputs), scores @ inputs.value, rtol=1e-4, atol=1e-4
    )


def test_mamba2_with_steps_of_one_size_fades_at_a_fixed_rate():
    """As retention does, with the step in the keys and the skipped value."""
    inputs = random_inputs(queries=70, keys=70)
    mechanism = subjects("mamba2")[1].build(inputs)
    mechanism.step_kernel.assign(np.zeros(mechanism.step_kernel.shape))
    bias, log_rate, skip = (
        ops.convert_to_numpy(w)[:, None, None]
        for w in (mechanism.step_bias, mechanism.log_rate, mechanism.skip)
    )
    step = np.logaddexp(0, bias)
    age = np.arange(70)[:, None] - np.arange(70)
    fading = np.exp(-np.exp(log_rate) * step * np.maximum(age, 0))
    scores = inputs.query @ np.swapaxes(inputs.key, -1, -2)
    scores = np.tril(scores * fading * step)
    np.testing.assert_allclose(
        run(mechanism, inputs),
        scores @ inputs.value + skip * inputs.value,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", ["retention", "gated_linear"])
def test_normalised_rows_have_length_one(name):
    inputs = random_inputs(queries=9, keys=9)
    outputs = []
    for output_norm in (False, True):
        keras.utils.set_random_seed(0)
        mechanism = mechanisms.get(name, output_norm=output_norm)
        outputs.append(run(mechanism, inputs))
    plain, normalised = outputs
    expected = plain / np.sqrt((plain**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(normalised, expected, atol=1e-5)


def test_gates_read_the_input_of_the_layer():
    """Not the heads: an input that no projection passes on is felt."""
    layer = LinearSelfAttention(2, 4, mechanism="gated_delta", causal=True)
    layer.build((None, None, 5))
    layer.built = True
    x = np.random.default_rng(0).standard_normal((1, 6, 5)).astype("float32")
    x[..., 4] = 0
    before = quick(layer, [x])
    for dense in (layer.query_dense, layer.key_dense, layer.value_dense):
        kernel = ops.convert_to_numpy(dense.kernel)
        kernel[4] = 0
        dense.kernel.assign(kernel)
    assert tuple(layer.mechanism.beta_kernel.shape) == (5, 2)
    x[..., 4] = 3
    assert np.abs(quick(layer, [x]) - before).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "rule"),
    [
        ("retention", {"output_norm": 1}, "`output_norm` must be"),
        ("gated_linear", {"gate_rank": 0}, "`gate_rank` must be"),
        ("gated_linear", {"temperature": 0}, "`temperature` must be"),
    ],
)
def test_refuses_arguments_out_of_range(name, options, rule):
    with pytest.raises(ValueError, match=rule):
        mechanisms.get(name, **options)


def test_a_layer_that_is_not_causal_is_refused_when_it_is_built():
    with pytest.raises(ValueError, match="attends causally only"):
        LinearSelfAttention(2, 4, mechanism="retention").build((None, None, 6))
