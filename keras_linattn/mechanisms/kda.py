"""Kimi delta attention: the delta rule, each feature fading at its own rate.

S'_t = diag(a_t) S_(t-1),   S_t = S'_t - beta_t k_t^T (k_t S'_t - v_t),
o_t = q_t S_t, q, k, beta as in `delta_rule`;
log a_t = -exp(A_h) softplus(x_t W_1 W_2 + b), W_1 `[F, D]`, one number for each
feature of the key; each o_t then divided by its root mean square.

Cost and state: those of `delta_rule`. Causal only.
Source: Kimi Team, "Kimi Linear: an expressive, efficient attention
architecture", 2025, arXiv 2510.26692 (the recurrence, its chunks, the low-rank
map of the decay); exp(A) and softplus(b) start as in `gated_delta`.
Differs from the paper: the decays within a chunk are split at its middle, then
at the middles of its halves, and so on; softplus(b) starts spread evenly over
the features of each head; no short convolution on q, k and v, and no silu on
v, which the model may have; the layer's gate is `use_gate`, whose projection
has full rank; the normalisation has no weights; q is multiplied by `scale`,
not divided by sqrt D, which the normalisation undoes.
"""

import dataclasses
from typing import Any

from keras import ops

from keras_linattn.core.numerics import matmul
from keras_linattn.core.vector_delta import vector_delta_product
from keras_linattn.core.vector_delta import vector_delta_step
from keras_linattn.mechanisms._chunk_carry import loop_over_chunks
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms.delta_rule import DeltaRule
from keras_linattn.mechanisms.gated_delta import add_step_weights
from keras_linattn.mechanisms.gated_delta import log_decay


def step_sizes(inputs, down, up, bias):
    """softplus(x_t W_1 W_2 + b) >= 0: `[B, T, F]` to `[B, H, T, D]`.

    Args:
        inputs: tensor `[B, T, F]`.
        down: tensor `[F, gate_rank]`, W_1.
        up: tensor `[gate_rank, H, D]`, W_2.
        bias: tensor `[H, D]`, b.
    """
    logits = ops.einsum("btr,rhd->bhtd", matmul(inputs, down), up)
    return ops.softplus(logits + ops.expand_dims(bias, 1))


@register("kda")
class KDA(DeltaRule):
    """Causal attention with the delta rule and a decay for each feature.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        gate_rank: int > 0 or `None`, rank of the decay's projection. Defaults
            to `None`: D, the dimension of a head.
        output_norm: bool, divide each head's output by its root mean square.
            Defaults to `True`.
        activation: see `DeltaRule`. Defaults to `"silu"`.
        scale: likewise. Defaults to 1.
        epsilon: likewise. Defaults to 1e-5.
        **kwargs: arguments of `Mechanism`.

    Raises:
        ValueError: if an argument is out of range; if called with
            `causal=False`.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> tuple(mechanisms.get("kda")(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Kimi Team, 2025, arXiv 2510.26692.
    """

    traits = dataclasses.replace(
        DeltaRule.traits, source="Kimi Team 2025, arXiv 2510.26692"
    )

    state_fades = False
    head_axes = {
        **DeltaRule.head_axes,
        "down": None,
        "up": 1,
        "decay_bias": 0,
        "log_rate": 0,
    }

    def __init__(self, gate_rank: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if gate_rank is not None and (
            not isinstance(gate_rank, int) or gate_rank <= 0
        ):
            raise ValueError(
                "`gate_rank` must be a positive integer or `None`. "
                f"Received: gate_rank={gate_rank!r}."
            )
        self.gate_rank = gate_rank

    def build_gates(self, input_dim, heads, key_dim):
        super().build_gates(input_dim, heads, key_dim)
        rank = key_dim if self.gate_rank is None else self.gate_rank
        self.down = self.add_weight(
            name="down", shape=(input_dim, rank), autocast=False
        )
        self.up = self.add_weight(
            name="up", shape=(rank, heads, key_dim), autocast=False
        )
        self.decay_bias, self.log_rate = add_step_weights(
            self, "decay_bias", (heads, key_dim)
        )

    def gates(self, inputs, heads):
        beta, _ = super().gates(inputs, heads)
        down, up, bias, log_rate = (
            ops.cast(w, inputs.dtype)
            for w in (self.down, self.up, self.decay_bias, self.log_rate)
        )
        return beta, log_decay(step_sizes(inputs, down, up, bias), log_rate)

    def chunked(self, query, key, value, gates, state, chunk_size, starts=None):
        heads = query, key, value
        return vector_delta_product(
            *heads, *gates, state, loop_over_chunks, chunk_size, starts
        )

    def one_step(self, query, key, value, gates, state):
        return vector_delta_step(query, key, value, *gates, state)
