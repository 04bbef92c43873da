"""Retention: linear attention that forgets at a fixed rate for each head.

S_t = gamma_h S_(t-1) + k_t^T v_t,   o_t = q_t S_t / sqrt D,
gamma_h = 1 - 2^(-5-h) for head h = 0, 1, ...; each o_t then divided by its
root mean square (the paper's group norm, one group for each head).

Cost: O(T (C + D) V) time with chunks of C = 64; state D V for each head.
Causal only.
Source: Sun, Dong, Huang, Ma, Xia, Xue, Wang, Wei, "Retentive network: a
successor to transformer for large language models", 2023, arXiv 2307.08621,
equations 5 to 8.
Differs from the paper: no rotation of query and key (xPos), which the model
may do; the swish gate is the layer's `use_gate` (a sigmoid); hidden positions
do not count as time; the paper's stabilising divisions of the scores are
left out, since the normalisation undoes them.
"""

import dataclasses
import math

from keras import ops

from keras_linattn.mechanisms._recurrent import RecurrentMechanism
from keras_linattn.mechanisms._registry import register


def log_gammas(heads):
    """List of log gamma_h = log(1 - 2^(-5-h))."""
    return [math.log1p(-(2.0 ** (-5 - head))) for head in range(heads)]


@register("retention")
class Retention(RecurrentMechanism):
    """Causal attention whose state decays by a fixed factor for each head.

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
    >>> tuple(mechanisms.get("retention")(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Sun et al., 2023, arXiv 2307.08621, equations 5 to 8.
    """

    traits = dataclasses.replace(
        RecurrentMechanism.traits,
        source="Sun et al. 2023, arXiv 2307.08621",
    )

    def features(self, query, key):
        return query / math.sqrt(query.shape[-1]), key

    def gates(self, inputs, heads):
        decay = ops.convert_to_tensor(log_gammas(heads), dtype=inputs.dtype)
        return (ops.reshape(decay, (1, heads, 1, 1)),)
