"""The models that the saving matrix and the golden files hold."""

import keras
import numpy as np

import keras_linattn
from keras_linattn import mechanisms

# Variants of a model, each with a tolerance: the largest difference of outputs,
# relative to the largest output, that counts as equal. In half precision and
# int8, another backend or a graph of free length rounds differently. Division
# by the root mean square of a head of size 4 magnifies this up to 30 rounding
# errors of float16.
TOLERANCES = {
    "float32": 1e-5,
    "mixed_float16": 4e-2,
    "mixed_bfloat16": 4e-2,
    "int8": 1e-2,
    "lora": 1e-5,
}
VARIANTS = tuple(TOLERANCES)
LONGEST = 32  # tokens
RANK = 2  # of the adapters
# Smaller weights would give outputs near 0, where division by the root mean
# square is badly conditioned.
NOISE = 0.3


def model_with(name, variant="float32", seed=1):
    """A model with the mechanism in a layer and in a block.

    Args:
        name: str, a registered mechanism.
        variant: one of `VARIANTS`.
        seed: int, of the weights: another gives another model of the same
            architecture.

    Returns:
        A built `keras.Sequential` that takes tokens `(B, T)`.
    """
    traits = mechanisms.get(name).traits
    mechanism = {"name": name}
    if traits.needs_length:
        mechanism["sequence_length"] = LONGEST
    policy = variant if variant.startswith("mixed") else "float32"
    block = keras_linattn.LinearTransformerEncoder
    if not traits.bidirectional:
        block = keras_linattn.LinearTransformerDecoder
    attention = keras_linattn.LinearSelfAttention(
        2, 4, mechanism=mechanism, causal=traits.causal, dtype=policy
    )
    dense = keras.layers.Dense(3, dtype=policy)
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32", name="tokens"),
            keras.layers.Embedding(50, 8, mask_zero=True, dtype=policy),
            attention,
            block(12, 2, mechanism=mechanism, dtype=policy),
            dense,
        ],
        name=name,
    )
    generator = np.random.default_rng(seed)
    _add_noise(model.trainable_variables, generator)
    if variant == "int8":
        model.quantize("int8")
    if variant == "lora":
        adapted = (attention.query_dense, attention.value_dense, dense)
        for layer in adapted:
            layer.enable_lora(RANK)
            # It starts at 0, where an adapter that is lost is not missed.
            _add_noise([layer.lora_kernel_b], generator)
    return model


def _add_noise(variables, generator):
    for variable in variables:
        noise = NOISE * generator.standard_normal(variable.shape)
        variable.assign_add(noise.astype("float32"))


def tokens():
    """A batch with padding, of a size that no export has seen."""
    x = np.random.default_rng(0).integers(1, 50, (3, 17), dtype="int32")
    x[1, 9:] = 0
    return x


def outputs(model):
    """The model's outputs for `tokens()`, as a float32 array."""
    return visible(model(tokens(), training=False))


def visible(found):
    """Outputs with 0 at hidden positions: what stands there means nothing."""
    found = np.asarray(keras.ops.convert_to_numpy(found), dtype="float32")
    return np.where(tokens()[..., None] != 0, found, 0)


def difference(found, expected):
    """The largest difference, relative to the largest expected output."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return np.inf
    return float(np.abs(found - expected).max() / np.abs(expected).max())
