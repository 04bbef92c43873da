"""What several test files ask of the package."""

import keras

import keras_linattn


def public_layers():
    """Names of the layers that the package shows, mechanisms aside."""
    return {
        name
        for name, value in vars(keras_linattn).items()
        if isinstance(value, type)
        and issubclass(value, keras.layers.Layer)
        and not issubclass(value, keras_linattn.Mechanism)
    }
