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


@keras.saving.register_keras_serializable("tests")
class FirstValues(keras_linattn.Mechanism):
    """The mean of the first `size` visible values; a state of three dtypes.

    Not in the registry, whose names other tests go through.
    """

    traits = keras_linattn.mechanisms.Traits(
        causal=True, bidirectional=False, cross=False, recurrent=True
    )

    def __init__(self, size=4, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def state_spec(self, num_heads, key_dim, value_dim):
        kept = (None, num_heads, self.size, value_dim)
        return {
            "count": keras.KerasTensor((None,), "int32"),
            "kept": keras.KerasTensor(kept, "float32"),
            "seen": keras.KerasTensor((None, self.size), "bool"),
        }

    def attend(self, query, key, value, *, key_mask, **unused):
        state = self.initial_state_for(query, value)
        return self.advance(state, query, key, value, key_mask=key_mask)[0]

    def advance(self, state, query, key, value, *, key_mask):
        ops = keras.ops
        if key_mask is None:
            key_mask = ops.ones_like(value[:, 0, :, 0], dtype="bool")
        new = ops.cast(key_mask, "int32")  # (B, T)
        place = state["count"][:, None] + ops.cumsum(new, axis=1) - 1
        slots = ops.expand_dims(place, 2) == ops.arange(self.size)
        slots = (
            ops.cast(slots, value.dtype)
            * ops.cast(new, value.dtype)[:, :, None]
        )
        kept = state["kept"] + ops.einsum("btn,bhtv->bhnv", slots, value)
        earlier = ops.cast(state["seen"], value.dtype)[:, None]
        until = earlier + ops.cumsum(slots, axis=1)  # (B, T, N)
        weights = until / ops.maximum(ops.sum(until, -1, keepdims=True), 1)
        output = ops.einsum("btn,bhnv->bhtv", weights, kept)
        output += ops.sum(query * key, -1, keepdims=True)
        count = state["count"] + ops.sum(new, axis=1)
        return output, {
            "count": ops.cast(count, "int32"),
            "kept": kept,
            "seen": ops.logical_or(state["seen"], ops.any(slots > 0, axis=1)),
        }
