"""Mamba-2: a state space model as linear attention that fades.

S_t = a_t S_(t-1) + dt_t k_t^T v_t,   o_t = q_t S_t + D_h v_t,
dt_t = softplus(x_t w_h + b_h), log a_t = -exp(A_h) dt_t, one number for each
head; each o_t then divided by its root mean square.

In the paper's letters q, k, v are C, B, X.

Cost: O(T (C + D) V) time with chunks of C = 64; state D V for each head.
Causal only.
Source: Dao, Gu, "Transformers are SSMs: generalized models and efficient
algorithms through structured state space duality", ICML 2024, arXiv
2405.21060.
Differs from the paper: exp(A) and softplus(b) start spread evenly over the
heads (1 to 16; 0.001 to 0.1, geometrically) rather than at random in those
ranges; each head has a query and a key of its own, where the paper's share
them in a group; no short convolution and silu on q, k and v, which the model
may have; the layer's gate is `use_gate` (a sigmoid, after the normalisation);
the normalisation is over a head and has no weights.
"""

import dataclasses

from keras import ops

from keras_linattn.core.decay import decay_step
from keras_linattn.core.decay import scalar_decay_product
from keras_linattn.mechanisms._chunk_carry import carry_chunks
from keras_linattn.mechanisms._recurrent import RecurrentMechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms.gated_delta import add_step_weights
from keras_linattn.mechanisms.gated_delta import log_decay
from keras_linattn.mechanisms.gated_delta import step_sizes


@register("mamba2")
class Mamba2(RecurrentMechanism):
    """Causal linear attention whose state decays at rates read from the input.

    Each head computes one step size for each position. A large step lets the
    state decay fast and gives the new value a large weight.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        output_norm: bool, divide each head's output by its root mean square.
            Defaults to `True`.
        **kwargs: arguments of `Mechanism`.

    Raises:
        ValueError: if `output_norm` is not a bool; if called with
            `causal=False`.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> tuple(mechanisms.get("mamba2")(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Dao, Gu, 2024, arXiv 2405.21060.
    """

    traits = dataclasses.replace(
        RecurrentMechanism.traits,
        gated=True,
        tolerance=3e-5,  # a small output is divided by its size, with its error
        source="Dao, Gu 2024, arXiv 2405.21060",
    )

    state_fades = True
    head_axes = {
        "step_kernel": 1,
        "step_bias": 0,
        "log_rate": 0,
        "skip": 0,
    }

    def build_gates(self, input_dim, heads, key_dim):
        self.step_kernel = self.add_weight(
            name="step_kernel", shape=(input_dim, heads), autocast=False
        )
        self.step_bias, self.log_rate = add_step_weights(
            self, "step_bias", (heads,)
        )
        self.skip = self.add_weight(
            name="skip", shape=(heads,), initializer="ones", autocast=False
        )

    def gates(self, inputs, heads):
        kernel, bias, log_rate = (
            ops.cast(w, inputs.dtype)
            for w in (self.step_kernel, self.step_bias, self.log_rate)
        )
        steps = step_sizes(inputs, kernel, bias)
        return steps, log_decay(steps, log_rate)

    def chunked(self, query, key, value, gates, state, chunk_size, starts=None):
        steps, decay = gates
        heads = query, key * steps, value
        output, state = scalar_decay_product(
            *heads, decay, state, carry_chunks, chunk_size, starts
        )
        return output + self._skipped(value), state

    def one_step(self, query, key, value, gates, state):
        steps, decay = gates
        output, state = decay_step(query, key * steps, value, decay, state)
        return output + self._skipped(value), state

    def _skipped(self, value):
        """D v, `[B, H, T, V]`."""
        skip = ops.cast(self.skip, value.dtype)
        return ops.reshape(skip, (-1, 1, 1)) * value
