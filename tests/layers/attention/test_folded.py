"""Attention folded into its projections is the attention beside them."""

import types

import keras
import numpy as np
import pytest
from helpers import numpy
from helpers import slow_to_compile
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies
from keras import ops

from keras_linattn import LinearMultiHeadAttention
from keras_linattn import LinearSelfAttention
from keras_linattn import config
from keras_linattn import mechanisms
from keras_linattn.core.folded import folding_pays
from keras_linattn.testing import timing

SEPARABLE = ("modified_linformer", "linear_transformer")
# JAX compiles each operation anew for each shape.
EXAMPLES = 3 if keras.backend.backend() == "jax" else 20
every = pytest.mark.parametrize("name", SEPARABLE)


def random(seed, *shape):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype("float32")


def built(layer, *inputs):
    layer(*inputs)
    for number, weight in enumerate(layer.weights):  # biases too
        weight.assign(0.5 * random(number, *weight.shape))
    return layer


def outputs(layer, folded, *inputs, **masks):
    """The layer's output on one of the two paths, which must be taken."""
    taken = []

    def decide(*arguments):
        taken.append(folded)
        return folded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LinearMultiHeadAttention, "_folds", decide)
        result = numpy(layer(*inputs, **masks))
    assert taken == [folded]
    return result


@pytest.mark.once
def test_those_that_say_so_are_separable():
    found = [
        name
        for name in mechanisms.available()
        if mechanisms.get(name).traits.separable
    ]
    assert set(found) == set(SEPARABLE)


@every
@given(
    seed=strategies.integers(0, 99),
    # Of heads of one feature, Keras' own projection is wrong under TensorFlow
    # where there are as many heads as positions: `ops.add` takes these for
    # the channels of the bias.
    sizes=strategies.tuples(
        strategies.integers(1, 4), *[strategies.integers(2, 4)] * 2
    ),
    lengths=strategies.tuples(*[strategies.integers(1, 9)] * 2),
    use_bias=strategies.booleans(),
    masked=strategies.booleans(),
    wide=strategies.booleans(),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_folded_is_unfolded(name, seed, sizes, lengths, use_bias, masked, wide):
    heads, key_dim, value_dim = sizes
    query, value, key = (
        random(seed + i, 2, length, features)
        for i, (length, features) in enumerate(
            zip((lengths[0], lengths[1], lengths[1]), (5, 3, 4))
        )
    )
    layer = LinearMultiHeadAttention(
        heads,
        key_dim,
        value_dim,
        use_bias=use_bias,
        output_shape=7 if wide else None,
        mechanism=name,
    )
    built(layer, query, value, key)
    masks = {}
    if masked:
        rng = np.random.default_rng(seed)
        masks = {
            "query_mask": rng.random((2, lengths[0])) < 0.7,
            "value_mask": rng.random((2, lengths[1])) < 0.7,
        }
        query[~masks["query_mask"]] = np.nan
        key[~masks["value_mask"]] = np.inf
        value[~masks["value_mask"]] = np.nan
    expected = outputs(layer, False, query, value, key, **masks)
    received = outputs(layer, True, query, value, key, **masks)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)


@every
def test_a_row_that_sees_no_key_is_the_bias(name):
    x = random(0, 2, 40, 8)
    layer = built(LinearSelfAttention(2, 4, mechanism=name), x)
    mask = np.zeros((2, 40), "bool")
    mask[1, 3] = True
    received = outputs(layer, True, x, mask=mask)  # of queries and keys
    hidden = received[~mask]
    bias = numpy(layer.output_dense.bias)
    np.testing.assert_array_equal(hidden, np.broadcast_to(bias, hidden.shape))
    assert np.abs(received[1, 3] - bias).max() > 1e-4


@every
def test_gradients_of_input_and_weights(name, monkeypatch):
    x = random(0, 2, 40, 8)
    layer = built(LinearSelfAttention(2, 4, mechanism=name), x)
    found = []
    for folded in (False, True):
        monkeypatch.setattr(
            LinearMultiHeadAttention, "_folds", lambda *_, on=folded: on
        )
        gradients = timing.training_step(layer)(ops.convert_to_tensor(x))
        found.append([numpy(g) for g in keras.tree.flatten(gradients)])
    assert len(found[0]) == 1 + len(layer.trainable_variables)
    for expected, received in zip(*found):
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)


# --- When


def folds(layer, length=40, features=8, training=None, **others):
    x = keras.KerasTensor((2, length, features))
    return layer._folds(
        others.get("query", x), others.get("key", x), x, training
    )


def make(mechanism="modified_linformer", **options):
    layer = LinearSelfAttention(2, 4, mechanism=mechanism, **options)
    return built(layer, random(0, 2, 40, 8))


@every
def test_long_sequences_fold(name):
    layer = make(name)
    assert folds(layer)
    assert folds(layer, length=8) and not folds(layer, length=7)
    assert not folds(layer, length=None)  # whether it pays is not known


class Symbol:
    """A size that JAX exports: it cannot be compared."""

    __hash__ = None

    def __eq__(self, other):
        raise TypeError("inconclusive")

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__


def test_symbols_are_not_compared():
    layer = make()
    for shape, folded in (
        ((Symbol(), Symbol(), 8), False),
        ((2, Symbol(), 8), False),
        ((Symbol(), 40, 8), True),
    ):
        x = types.SimpleNamespace(shape=shape)
        assert layer._folds(x, x, x, None) == folded


def test_folding_is_fewer_multiplications():
    # With T = S, D = V and F = O = H D: where 2 F <= S + T.
    assert folding_pays((512, 512, 512, 64, 64, 512))
    assert not folding_pays((511, 511, 512, 64, 64, 512))
    assert folding_pays((1, 1023, 512, 64, 64, 512))


@slow_to_compile
def test_what_cannot_fold_does_not():
    assert not folds(make(use_gate=True))
    assert not folds(make(dtype="mixed_bfloat16"))
    assert not folds(make(activity_regularizer="l2"))
    assert not folds(make("focused"))
    assert not folds(make({"name": SEPARABLE[0], "reading": "projected"}))
    with_dropout = make(dropout=0.1)
    assert not folds(with_dropout, training=True)
    assert folds(with_dropout) and folds(with_dropout, training=False)
    half = mechanisms.get(SEPARABLE[0], dtype="float16")
    assert not folds(make(half))
    other = keras.KerasTensor((3, 40, 8))
    assert not folds(make(), query=other) and not folds(make(), key=other)
    quantized = make()
    quantized.value_dense.quantize("int8")
    assert not folds(quantized)


def test_low_rank_adapters_fold():
    layer = make()
    layer.value_dense.enable_lora(2)
    layer.output_dense.enable_lora(2)
    for weight in layer.trainable_weights:
        weight.assign(random(1, *weight.shape))
    x = random(0, 2, 40, 8)
    assert folds(layer)
    expected = outputs(layer, False, x)
    np.testing.assert_allclose(
        outputs(layer, True, x), expected, rtol=1e-4, atol=1e-4
    )


def test_inputs_of_another_type_are_cast():
    layer, x = make(), random(0, 2, 40, 8)
    whole = np.round(3 * x)
    expected = outputs(layer, True, whole)
    received = outputs(layer, True, ops.cast(whole, "float16"))
    np.testing.assert_allclose(received, expected, atol=1e-5)


def test_a_wrapped_mechanism_is_called():
    layer, calls = make(), []
    call = layer.mechanism.call
    layer.mechanism.call = lambda *x, **o: calls.append(1) or call(*x, **o)
    layer(random(0, 2, 40, 8))
    assert calls == [1]


def test_the_switch_turns_folding_off():
    layer = make()
    config.set_fast_forms(False)
    try:
        assert not folds(layer)
    finally:
        config.set_fast_forms(True)


class Doubled(mechanisms.ModifiedLinformer):
    """Says nothing of factors: those that it inherits are not its own."""

    def attend(self, *heads, **options):
        return 2 * super().attend(*heads, **options)


def test_a_subclass_is_not_bypassed():
    x = random(0, 2, 40, 8)
    layer = make(Doubled())
    assert not folds(layer)
    plain = make()
    bias = numpy(plain.output_dense.bias)
    np.testing.assert_allclose(
        numpy(layer(x)) - bias,
        2 * (numpy(plain(x)) - bias),
        rtol=1e-4,
        atol=1e-4,
    )


@slow_to_compile
def test_causal_calls_and_scores_do_not_fold(monkeypatch):
    x = random(0, 2, 40, 8)
    causal, layer = make(causal=True), make()
    monkeypatch.setattr(LinearMultiHeadAttention, "_folds", lambda *_: 1 / 0)
    causal(x)
    causal(x, return_state=True)
    layer(x, return_attention_scores=True)
    with pytest.raises(ZeroDivisionError):
        layer(x)
