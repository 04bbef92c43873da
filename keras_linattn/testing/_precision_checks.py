"""Checks of half precision: sums over the length are taken in float32."""

import keras
import numpy as np
from keras import ops

from keras_linattn.testing._backends import quick
from keras_linattn.testing._subject import require

# A sum in float16 over this many positions overflows or stops growing.
LENGTH = 4096
# Rounding the output alone costs 2^-11 and 2^-8, relative.
LARGEST_ERROR = {"float16": 4e-3, "bfloat16": 3e-2}


def check_half_precision(subject):
    """float16 and bfloat16 give what float32 gives on the same numbers."""
    inputs = subject.inputs(
        batch=1, queries=LENGTH, keys=LENGTH, key_dim=8, value_dim=8
    )
    full = subject.build(inputs)
    # A mean over 4,096 values is near 0: a shift makes errors relative.
    heads = (inputs.query, inputs.key, inputs.value + 1)
    causal = subject.traits.forms[0]
    for dtype, largest in LARGEST_ERROR.items():
        half = subject.build(inputs, dtype=f"mixed_{dtype}")
        half.set_weights(full.get_weights())

        def both(*heads):
            rounded = [ops.cast(x, dtype) for x in heads]
            output = half(*rounded, causal=causal)
            kept = keras.backend.standardize_dtype(output.dtype)
            require(kept == dtype, f"output of {kept} for inputs of {dtype}")
            expected = full(
                *(ops.cast(x, "float32") for x in rounded), causal=causal
            )
            return ops.stack([ops.cast(output, "float32"), expected])

        output, expected = quick(both, heads)
        error = np.abs(output - expected).max() / np.abs(expected).max()
        require(error <= largest, f"{dtype}: relative error {error:.2e}")


CHECKS = {check_half_precision: lambda t: True}
