"""One step of decoding as a functional model, to export and serve."""

import keras
from keras import ops
from keras import tree


@keras.saving.register_keras_serializable("keras_linattn")
class DecodingStep(keras.layers.Layer):
    """A language model's `call_with_state` on named tensors.

    A layer, since Keras' functional models cannot call one layer both with
    states and, as the language model does, without.

    Args:
        model: `CausalLM`.
        **kwargs: arguments of `keras.layers.Layer`, but for `dtype`: states
            are float32, what is computed has the policies of `model`.

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
        spec = tree.map_structure(
            lambda x: keras.KerasTensor(
                x.shape, keras.backend.standardize_dtype(x.dtype)
            ),
            model.get_initial_state(1),
        )
        self._spec = lambda: spec  # Keras wraps a dict that it is given
        self.names = list(_named(spec))
        self.built = True

    def state_inputs(self):
        """Dict of a `keras.Input` for each leaf of the state."""
        return {
            name: keras.Input(leaf.shape[1:], dtype=leaf.dtype, name=name)
            for name, leaf in _named(self._spec()).items()
        }

    def call(self, inputs):
        leaves = [inputs[name] for name in self.names]
        state = tree.pack_sequence_as(self._spec(), leaves)
        logits, _, state = self.model.call_with_state(inputs["tokens"], state)
        return {"logits": ops.squeeze(logits, 1), **_named(state)}

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


def _named(state):
    """The leaves of a state by names of their places.

    Under torch, Keras flattens dicts within dicts in the order of their keys
    as they came: two equal states may differ in it.
    """
    return {
        "_".join(("state", *map(str, path))): leaf
        for path, leaf in tree.flatten_with_path(state)
    }


def step_model(model):
    """The functional model around `DecodingStep`."""
    step = DecodingStep(model, name="step")
    tokens = keras.Input((1,), dtype="int32", name="tokens")
    inputs = {"tokens": tokens, **step.state_inputs()}
    return keras.Model(inputs, step(inputs), name=f"{model.name}_step")
