"""One step of decoding as a functional model, to export and serve."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_linattn")
class DecodingStep(keras.layers.Layer):
    """A language model's `call_with_state` on named tensors.

    A layer, since Keras' functional models cannot call one layer both with
    states and, as the language model does, without.

    Args:
        model: `CausalLM`.
        **kwargs: arguments of `keras.layers.Layer`, except `dtype`: states
            have their own dtypes, and computations use the policies of
            `model`.

    Call arguments:
        inputs: dict of int `tokens`, `(B, 1)`, and the leaves of the state by
            the names in `names`.

    Returns:
        Dict of `logits`, `(B, vocabulary_size)`, and the new leaves by the
        same names.
    """

    def __init__(self, model, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.model = model
        # Of one sequence, for its structure, shapes and dtypes.
        state = model.get_initial_state(1)
        self._structure = lambda: state  # Keras wraps a dict that it is given
        self.names = list(_leaves(state))
        self.built = True

    def state_inputs(self):
        """Dict of a `keras.Input` for each leaf of the state."""
        return {
            name: keras.Input(
                leaf.shape[1:],
                dtype=keras.backend.standardize_dtype(leaf.dtype),
                name=name,
            )
            for name, leaf in _leaves(self._structure()).items()
        }

    def call(self, inputs):
        state = _like(self._structure(), inputs)
        logits, _, state = self.model.call_with_state(inputs["tokens"], state)
        return {"logits": ops.squeeze(logits, 1), **_leaves(state)}

    def compute_output_spec(self, inputs):
        sizes = (inputs["tokens"].shape[0], self.model.vocabulary_size)
        logits = self.model.outputs[0].dtype
        new = {
            name: keras.KerasTensor(inputs[name].shape, inputs[name].dtype)
            for name in self.names
        }
        return {"logits": keras.KerasTensor(sizes, logits), **new}

    def get_config(self):
        model = keras.saving.serialize_keras_object(self.model)
        return {**super().get_config(), "model": model}

    @classmethod
    def from_config(cls, config):
        model = keras.saving.deserialize_keras_object(config["model"])
        return cls(**{**config, "model": model})


# By name, since `keras.tree` keeps nested dicts in the order in which they were
# made under torch, and sorts them elsewhere.


def _leaves(state, name="state"):
    """Dict of the leaves of a nested state, by their paths."""
    if not isinstance(state, (dict, list, tuple)):
        return {name: state}
    leaves = {}
    for key, part in _parts(state):
        leaves |= _leaves(part, f"{name}_{key}")
    return leaves


def _like(state, leaves, name="state"):
    """A state of the same structure, from `_leaves` of another."""
    if not isinstance(state, (dict, list, tuple)):
        return leaves[name]
    parts = {k: _like(x, leaves, f"{name}_{k}") for k, x in _parts(state)}
    is_dict = isinstance(state, dict)
    return parts if is_dict else type(state)(parts.values())


def _parts(state):
    return (
        sorted(state.items()) if isinstance(state, dict) else enumerate(state)
    )


def step_model(model):
    """The functional model around `DecodingStep`."""
    step = DecodingStep(model, name="step")
    tokens = keras.Input((1,), dtype="int32", name="tokens")
    inputs = {"tokens": tokens, **step.state_inputs()}
    return keras.Model(inputs, step(inputs), name=f"{model.name}_step")
