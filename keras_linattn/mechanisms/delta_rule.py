"""Delta rule: a key's old value is taken out before the new one is written.

S_t = S_(t-1) - beta_t k_t^T (k_t S_(t-1) - v_t),   o_t = q_t S_t,
q, k = silu of the projections, each row of length 1; beta_t = sigmoid(x_t w);
each o_t then divided by its root mean square.

Cost: O(T (C log C + D) (C + D + V)) time with chunks of C = 64; state D V
for each head. Causal only.
Source: Schlag, Irie, Schmidhuber, "Linear transformers are secretly fast
weight programmers", ICML 2021, arXiv 2102.11174, equations 24 and 25; Yang,
Wang, Zhang, Shen, Kim, "Parallelizing linear transformers with the delta rule
over sequence length", NeurIPS 2024, arXiv 2406.06484 (silu, rows of length 1,
the chunked form).
Differs from the papers: the triangular matrix of a chunk is inverted by halves
rather than row by row; no short convolution on q, k and v, which the model may
have; the normalisation has no weights.
"""

import dataclasses
from typing import Any

import keras
from keras import ops

from keras_linattn.core.delta import delta_product
from keras_linattn.core.delta import delta_step
from keras_linattn.core.numerics import matmul
from keras_linattn.mechanisms._chunk_carry import loop_over_chunks
from keras_linattn.mechanisms._recurrent import RecurrentMechanism
from keras_linattn.mechanisms._recurrent import unit_rows
from keras_linattn.mechanisms._registry import register


def write_strength(inputs, kernel, bias):
    """beta, `[B, T, F]` to `[B, H, T, 1]`, in (0, 1).

    Args:
        inputs: tensor `[B, T, F]`.
        kernel: tensor `[F, H]`.
        bias: tensor `[H]`.
    """
    logits = ops.transpose(matmul(inputs, kernel) + bias, (0, 2, 1))
    return ops.expand_dims(ops.sigmoid(logits), -1)


@register("delta_rule")
class DeltaRule(RecurrentMechanism):
    """Causal attention that corrects what its state holds for a key.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        output_norm: bool, divide each head's output by its root mean square.
            Defaults to `True`.
        activation: name of a Keras activation of queries and keys, or `None`,
            for layers whose short convolutions have one. Defaults to
            `"silu"`.
        scale: float, by which the rows of the query, of length 1, are
            multiplied. Defaults to 1.
        epsilon: float, added to the squares of these lengths. Defaults to
            1e-5.
        **kwargs: arguments of `Mechanism`.

    Raises:
        ValueError: if `output_norm` is not a bool or the activation not
            known; if called with `causal=False`.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> tuple(mechanisms.get("delta_rule")(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Yang et al., 2024, arXiv 2406.06484.
    """

    traits = dataclasses.replace(
        RecurrentMechanism.traits,
        gated=True,
        tolerance=3e-5,  # a small output is divided by its size, with its error
        cost="T (C + D) (D + V)",
        source="Yang et al. 2024, arXiv 2406.06484",
    )

    state_fades = False  # keys mix its rows
    head_axes = {"beta_kernel": 1, "beta_bias": 0}

    def __init__(
        self,
        output_norm: bool = True,
        activation: str | None = "silu",
        scale: float = 1.0,
        epsilon: float = 1e-5,
        **kwargs: Any,
    ):
        super().__init__(output_norm=output_norm, **kwargs)
        keras.activations.get(activation)  # refuses other names
        self.activation = activation
        self.scale = scale
        self.epsilon = epsilon

    def build_gates(self, input_dim, heads, key_dim):
        self.beta_kernel = self.add_weight(
            name="beta_kernel", shape=(input_dim, heads), autocast=False
        )
        self.beta_bias = self.add_weight(
            name="beta_bias",
            shape=(heads,),
            initializer="zeros",
            autocast=False,
        )

    def features(self, query, key):
        activation = keras.activations.get(self.activation)
        query, key = (
            unit_rows(activation(x), self.epsilon) for x in (query, key)
        )
        return (query if self.scale == 1 else self.scale * query), key

    def gates(self, inputs, heads):
        beta = write_strength(
            inputs,
            ops.cast(self.beta_kernel, inputs.dtype),
            ops.cast(self.beta_bias, inputs.dtype),
        )
        return beta, ops.zeros_like(beta)

    def chunked(self, query, key, value, gates, state, chunk_size, starts=None):
        heads = query, key, value
        return delta_product(
            *heads, *gates, state, loop_over_chunks, chunk_size, starts
        )

    def one_step(self, query, key, value, gates, state):
        return delta_step(query, key, value, *gates, state)
