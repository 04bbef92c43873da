"""RALA: where it is kernel attention, and the rank it adds."""

import numpy as np
import pytest

from keras_linattn.layers import LinearMultiHeadAttention
from keras_linattn.mechanisms.linear_transformer import LinearTransformer
from keras_linattn.mechanisms.rala import RankAugmented
from keras_linattn.testing import compare_with_reference
from keras_linattn.testing import random_inputs
from keras_linattn.testing import subjects
from keras_linattn.testing._backends import quick
from keras_linattn.testing._subject import run

PLAIN = {"output_gate": False, "kernel_size": None}


def test_alike_keys_give_kernel_attention():
    """Their weights alpha are 1 / S; with keys that differ they are not."""
    inputs = random_inputs()
    same = inputs.replace(key=np.ones_like(inputs.key))
    mechanisms = RankAugmented(**PLAIN), LinearTransformer()
    found, expected = (run(m, same) for m in mechanisms)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    found, expected = (run(m, inputs) for m in mechanisms)
    assert np.abs(found - expected).max() > 1e-2


def test_the_gate_raises_the_rank():
    """Kernel attention has the rank of the head, D, and the gate more."""
    inputs = random_inputs(batch=1, queries=24, keys=24, key_dim=2, value_dim=8)
    ranks = [
        np.linalg.matrix_rank(run(m, inputs)[0, 0], tol=1e-4)
        for m in (
            RankAugmented(**PLAIN),
            RankAugmented(kernel_size=None),
        )
    ]
    assert ranks[0] <= 2 < ranks[1]


def test_a_layer_gates_by_its_own_input():
    layer = LinearMultiHeadAttention(2, 4, mechanism="rala")
    x = random_inputs(heads=1, key_dim=6).query[:, 0]
    assert quick(layer, [x, x]).shape == x.shape
    assert layer.mechanism.gate.shape == (6, 2, 4)


def test_images_equal_the_reference():
    configs = [{"grid": (4, 3), "kernel_size": 3}]
    (subject,) = subjects("rala", configs=configs)
    inputs = random_inputs(queries=12, keys=12, visible=0.6)
    compare_with_reference(subject, inputs)


def test_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match="Received: output_gate=1"):
        RankAugmented(output_gate=1)
