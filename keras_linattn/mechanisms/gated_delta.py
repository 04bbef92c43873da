"""Gated delta rule: the state fades, then what a key holds is corrected.

S'_t = a_t S_(t-1),   S_t = S'_t - beta_t k_t^T (k_t S'_t - v_t),
o_t = q_t S_t, q, k, beta as in `delta_rule`;
log a_t = -exp(A_h) softplus(x_t w_h + b_h), one number for each head; each o_t
then divided by its root mean square.

Cost and state: those of `delta_rule`. Causal only.
Source: Yang, Kautz, Hatamizadeh, "Gated delta networks: improving Mamba2 with
delta rule", ICLR 2025, arXiv 2412.06464, equation 10; the decay's form and
initial range from Dao, Gu, "Transformers are SSMs", ICML 2024, arXiv
2405.21060.
Differs from the papers: exp(A) and softplus(b) start spread evenly over the
heads (1 to 16; 0.001 to 0.1, geometrically) rather than at random in those
ranges; no short convolution; the layer's gate is `use_gate` (a sigmoid).
"""

import dataclasses

import numpy as np
from keras import ops

from keras_linattn.core.numerics import matmul
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms.delta_rule import DeltaRule

RATES = (1.0, 16.0)  # exp(A)
STEPS = (0.001, 0.1)  # softplus(b)


def step_sizes(inputs, kernel, bias):
    """softplus(x_t w_h + b_h) >= 0: `[B, T, F]` to `[B, H, T, 1]`.

    Args:
        inputs: tensor `[B, T, F]`.
        kernel: tensor `[F, H]`, w.
        bias: tensor `[H]`, b.
    """
    steps = ops.softplus(matmul(inputs, kernel) + bias)
    return ops.expand_dims(ops.transpose(steps, (0, 2, 1)), -1)


def log_decay(steps, log_rate):
    """log a = -exp(A) steps: `[B, H, T, 1 or D]`, from A `[H]`."""
    return -ops.reshape(ops.exp(log_rate), (-1, 1, 1)) * steps


def spread_rates(shape, dtype=None):
    """Initial A `[H]`: exp(A) evenly from 1 to 16 over the heads."""
    return ops.cast(np.log(np.linspace(*RATES, *shape)), dtype or "float32")


def spread_steps(shape, dtype=None):
    """Initial b: softplus(b) from 0.001 to 0.1 over the last axis."""
    steps = np.broadcast_to(np.geomspace(*STEPS, shape[-1]), shape)
    return ops.cast(np.log(np.expm1(steps)), dtype or "float32")


def add_step_weights(mechanism, bias_name, shape):
    """Adds b, of a shape that begins with H, and A `[H]` to a mechanism."""
    bias = mechanism.add_weight(
        name=bias_name, shape=shape, initializer=spread_steps, autocast=False
    )
    log_rate = mechanism.add_weight(
        name="log_rate",
        shape=shape[:1],
        initializer=spread_rates,
        autocast=False,
    )
    return bias, log_rate


@register("gated_delta")
class GatedDelta(DeltaRule):
    """Causal attention with the delta rule and a forget gate for each head.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        output_norm: bool, divide each head's output by its root mean square.
            Defaults to `True`.
        activation: see `DeltaRule`. Defaults to `"silu"`.
        scale: see `DeltaRule`. Defaults to 1.
        epsilon: see `DeltaRule`. Defaults to 1e-5.
        **kwargs: arguments of `Mechanism`.

    Raises:
        ValueError: if `output_norm` is not a bool or the activation not
            known; if called with `causal=False`.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> tuple(mechanisms.get("gated_delta")(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Yang et al., 2025, arXiv 2412.06464, equation 10.
    """

    traits = dataclasses.replace(
        DeltaRule.traits, source="Yang et al. 2025, arXiv 2412.06464"
    )

    head_axes = {
        **DeltaRule.head_axes,
        "decay_kernel": 1,
        "decay_bias": 0,
        "log_rate": 0,
    }

    def build_gates(self, input_dim, heads, key_dim):
        super().build_gates(input_dim, heads, key_dim)
        self.decay_kernel = self.add_weight(
            name="decay_kernel", shape=(input_dim, heads), autocast=False
        )
        self.decay_bias, self.log_rate = add_step_weights(
            self, "decay_bias", (heads,)
        )

    def gates(self, inputs, heads):
        beta, _ = super().gates(inputs, heads)
        kernel, bias, log_rate = (
            ops.cast(w, inputs.dtype)
            for w in (self.decay_kernel, self.decay_bias, self.log_rate)
        )
        return beta, log_decay(step_sizes(inputs, kernel, bias), log_rate)
