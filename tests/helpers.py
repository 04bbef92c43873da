"""What several test files use."""

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


def predict(model, *inputs):
    """Outputs for arrays, as a NumPy array.

    JAX compiles each operation for each shape unless the whole is compiled.
    """
    if keras.backend.backend() == "jax":
        inputs = inputs[0] if len(inputs) == 1 else list(inputs)
        return model.predict(inputs, verbose=0)
    tensors = [keras.ops.convert_to_tensor(x) for x in inputs]
    return keras.ops.convert_to_numpy(model(*tensors, training=False))
