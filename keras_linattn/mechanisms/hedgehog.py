"""Hedgehog: kernel attention with a learned feature map for each head.

phi(x) = softmax([x W, -x W]) over the 2 D features, W [D, D] for each head,
one for queries and one for keys, the identity at the start.

Cost: O((T + S) D (D + V)) time; state 2 D (V + 1) and 2 D^2 parameters for
each head. Trained to give the maps of softmax attention (distillation), or
from scratch.
Source: Zhang, Bhatia, Kumbong, Re, "The hedgehog and the porcupine:
expressive linear attentions with softmax mimicry", ICLR 2024, arXiv
2402.04347, section 4.2 and appendix A.
Differs from the paper: W has no bias, as in the authors' later LoLCATs (arXiv
2410.10254), which also bounds the features from below by 1e-12, as here.
"""

from typing import Any

from keras import ops

from keras_linattn.core.numerics import masked_softmax
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import maximum
from keras_linattn.mechanisms._kernel import KernelMechanism
from keras_linattn.mechanisms._registry import register
from keras_linattn.mechanisms._traits import Traits

SMALLEST = 1e-12  # a normaliser that underflows would be taken for no key


def feature_map(x, weight):
    """softmax([x W, -x W]): `[B, H, T, D]` to `[B, H, T, 2 D]`, all > 0."""
    x = matmul(x, weight)
    x = masked_softmax(ops.concatenate([x, -x], axis=-1), axis=-1)
    return maximum(x, SMALLEST)


@register("hedgehog")
class Hedgehog(KernelMechanism):
    """Linear attention with learned features, one map for each head.

    Call arguments, result and errors: see `Mechanism`.

    Args:
        tied: bool, whether queries and keys have one map. Defaults to
            `False`.
        **kwargs: arguments of `Mechanism`.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((1, 2, 6, 4), "float32")
    >>> tuple(mechanisms.get("hedgehog")(x, x, x, causal=True).shape)
    (1, 2, 6, 4)

    Source: Zhang et al., 2024, arXiv 2402.04347, section 4.2.
    """

    traits = Traits(
        causal=True,
        recurrent=True,
        packs=True,
        splits=True,
        cost="(T + S) D (D + V)",
        state="2 D (V + 1)",
        source="Zhang et al. 2024, arXiv 2402.04347",
    )

    head_axes = {"query_map": 0, "key_map": 0}

    def __init__(self, tied: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.tied = tied

    def build(self, query_shape, key_shape, value_shape):
        shape = (query_shape[1], query_shape[3], query_shape[3])
        self.query_map = self._map("query_map", shape)
        self.key_map = (
            self.query_map if self.tied else self._map("key_map", shape)
        )

    def _map(self, name, shape):
        return self.add_weight(
            name=name, shape=shape, initializer=_identities, autocast=False
        )

    def query_features(self, query):
        return feature_map(query, ops.cast(self.query_map, query.dtype))

    def key_features(self, key):
        return feature_map(key, ops.cast(self.key_map, key.dtype))

    def num_features_for(self, key_dim):
        return 2 * key_dim


def _identities(shape, dtype=None):
    """One identity matrix for each head."""
    identity = ops.eye(shape[-1], dtype=dtype)
    # A copy: torch's broadcast would let all heads share one memory.
    return ops.tile(identity, (shape[0], 1, 1))
