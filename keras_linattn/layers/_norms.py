"""The kinds of normalisation that blocks and models can have."""

import keras

NORMS = {
    "layer": keras.layers.LayerNormalization,
    "rms": keras.layers.RMSNormalization,
}


def check_norm(normalization):
    """The name of a kind; a `ValueError` for another one."""
    if normalization not in NORMS:
        raise ValueError(
            f"`normalization` must be one of {', '.join(map(repr, NORMS))}. "
            f"Received: normalization={normalization!r}."
        )
    return normalization


def make_norm(normalization, epsilon, policy, name):
    """A layer that normalises the features.

    Args:
        normalization: str, the kind.
        epsilon: float > 0.
        policy: its dtype policy.
        name: str, its name.
    """
    cls = NORMS[check_norm(normalization)]
    layer = cls(epsilon=epsilon, dtype=policy, name=name)
    # It works position by position; of RMS norm Keras does not know that.
    layer.supports_masking = True
    return layer
