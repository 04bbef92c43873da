"""Gated linear attention: each feature forgets at a rate read from the input.

S_t = diag(a_t) S_(t-1) + k_t^T v_t,   o_t = q_t S_t / sqrt D,
a_t = sigmoid(x_t W_1 W_2 + b)^(1 / tau), W_1 `[F, 16]`, tau = 16; each o_t
then divided by its root mean square.

Cost: O(T (C + D) V) time with chunks of C = 16; state D V for each head.
Causal only.
Source: Yang, Wang, Shen, Panda, Kim, "Gated linear attention transformers with
hardware-efficient training", ICML 2024, arXiv 2312.06635, equations 3 and 4.
Differs from the paper: log a_t is held at -4 or above (a_t >= 0.018), so that
a chunk needs no division by an underflowed product; the swish gate is the
layer's `use_gate` (a sigmoid); the normalisation has no weights.
"""

import dataclasses
import math
from typing import Any

from keras import ops

from keras_linattn.core.decay import vector_decay_product
from keras_linattn.core.numerics import matmul
from keras_linattn.mechanisms._chunk_carry import carry_chunks
from keras_linattn.mechanisms._recurrent import RecurrentMechanism
from keras_linattn.mechanisms._registry import register

SMALLEST_LOG_DECAY = -4.0  # times the chunk of 16: exp(64) is a float32


def log_decay(inputs, down, up, bias, temperature):
    """log a: `[B, T, F]` to `[B, H, T, D]`.

    Args:
        inputs: tensor `[B, T, F]`.
        down: tensor `[F, gate_rank]`.
        up: tensor `[gate_rank, H, D]`.
        bias: tensor `[H, 1, D]`.
        temperature: float, tau.
    """
    low = matmul(inputs, down)
    logits = ops.einsum("btr,rhd->bhtd", low, up) + bias
    decay = ops.log_sigmoid(logits) / temperature
    # NaN must stay NaN, which `maximum` does not promise.
    small = decay < SMALLEST_LOG_DECAY
    return ops.where(small, ops.cast(SMALLEST_LOG_DECAY, decay.dtype), decay)


@register("gated_linear")
class GatedLinear(RecurrentMechanism):
    """Causal attention with a forget gate for each feature of the key.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        gate_rank: int > 0, rank of the gate's projection. Defaults to 16.
        temperature: number > 0, tau: the larger, the slower it forgets.
            Defaults to 16.
        output_norm: bool, divide each head's output by its root mean square.
            Defaults to `True`.
        **kwargs: arguments of `Mechanism`.

    Raises:
        ValueError: if an argument is out of range; if called with
            `causal=False`.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> tuple(mechanisms.get("gated_linear")(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Yang et al., 2024, arXiv 2312.06635, equations 3 and 4.
    """

    traits = dataclasses.replace(
        RecurrentMechanism.traits,
        gated=True,
        source="Yang et al. 2024, arXiv 2312.06635",
    )
    chunk_size = 16
    state_fades = True
    head_axes = {"down": None, "up": 1, "bias": 0}

    def __init__(
        self,
        gate_rank: int = 16,
        temperature: float = 16,
        output_norm: bool = True,
        **kwargs: Any,
    ):
        super().__init__(output_norm=output_norm, **kwargs)
        if not isinstance(gate_rank, int) or gate_rank <= 0:
            raise ValueError(
                "`gate_rank` must be a positive integer. "
                f"Received: gate_rank={gate_rank!r}."
            )
        if not isinstance(temperature, (int, float)) or temperature <= 0:
            raise ValueError(
                "`temperature` must be a positive number. "
                f"Received: temperature={temperature!r}."
            )
        self.gate_rank = gate_rank
        self.temperature = temperature

    def build_gates(self, input_dim, heads, key_dim):
        self.down = self.add_weight(
            name="down", shape=(input_dim, self.gate_rank), autocast=False
        )
        self.up = self.add_weight(
            name="up", shape=(self.gate_rank, heads, key_dim), autocast=False
        )
        self.bias = self.add_weight(
            name="bias",
            shape=(heads, 1, key_dim),
            initializer="zeros",
            autocast=False,
        )

    def features(self, query, key):
        return query / math.sqrt(query.shape[-1]), key

    def gates(self, inputs, heads):
        weights = (
            ops.cast(w, inputs.dtype) for w in (self.down, self.up, self.bias)
        )
        return (log_decay(inputs, *weights, self.temperature),)

    def chunked(self, query, key, value, gates, state, chunk_size, starts=None):
        heads = query, key, value
        return vector_decay_product(
            *heads, *gates, state, carry_chunks, chunk_size, starts
        )
