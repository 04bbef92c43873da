"""MALA: the weights of the paper, and how they follow the query's size."""

import numpy as np

from keras_linattn.mechanisms.linear_transformer import LinearTransformer
from keras_linattn.mechanisms.mala import MagnitudeAware
from keras_linattn.testing import compare_with_reference
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._backends import quick
from keras_linattn.testing._subject import run
from keras_linattn.testing.references.mala import features

PLAIN = {"kernel_size": None}


def weights_of(inputs):
    """beta_t s_ts - c_t / S, as the paper writes it."""
    scores = features(inputs.query) @ features(inputs.key).swapaxes(-1, -2)
    count, dim = inputs.key.shape[2:]
    scores = scores / (count * np.sqrt(dim))
    total = scores.sum(axis=-1, keepdims=True)
    return (1 + 1 / total) * scores - total / count


def test_weights_are_those_of_the_paper():
    inputs = random_inputs(queries=5, keys=7)
    found = run(MagnitudeAware(**PLAIN), inputs)
    weights = weights_of(inputs)
    np.testing.assert_allclose(found, weights @ inputs.value, atol=2e-5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    heads = [inputs.query, inputs.key]
    scores = quick(MagnitudeAware(**PLAIN).attention_scores, heads)
    np.testing.assert_allclose(scores, weights, atol=2e-5)


def test_alike_keys_give_kernel_attention():
    """Then the covariance is 0, whatever the query's size."""
    inputs = random_inputs()
    inputs = inputs.replace(
        query=10 * inputs.query, key=np.ones_like(inputs.key)
    )
    np.testing.assert_allclose(
        run(MagnitudeAware(**PLAIN), inputs),
        run(LinearTransformer(), inputs),
        atol=1e-4,
    )


def test_larger_queries_are_sharper_where_kernel_attention_is_not():
    """Past the kink of elu, phi(c q) is about c phi(q)."""
    inputs = random_inputs(queries=5, keys=7)
    small = inputs.replace(query=5 + np.abs(inputs.query))
    large = small.replace(query=4 * small.query)
    spread = [weights_of(x).std(axis=-1) for x in (small, large)]
    assert (spread[1] > 3 * spread[0]).all()
    outputs = [run(LinearTransformer(), x) for x in (small, large)]
    np.testing.assert_allclose(*outputs, atol=0.1)


def test_images_equal_the_reference():
    configs = [{"grid": (4, 3), "kernel_size": 3}]
    (subject,) = subjects("mala", configs=configs)
    inputs = random_inputs(queries=12, keys=12, visible=0.6)
    compare_with_reference(subject, inputs)
