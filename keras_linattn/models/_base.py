"""What the functional models share: config, dtype policies, the blocks."""

import keras

from keras_linattn.layers import LinearTransformerEncoder
from keras_linattn.layers import MaskedAveragePooling
from keras_linattn.layers import TokenExtension
from keras_linattn.layers import TokenMerging
from keras_linattn.layers._base_layer import takes_numpy
from keras_linattn.layers._sublayers import policy_for_config
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.layers._sublayers import with_mechanism

BYTE_VOCABULARY = 257  # byte b is id b + 1, padding is 0


class FunctionalModel(keras.Model):
    """A functional model whose config is its constructor's arguments.

    A subclass makes its graph in the constructor, calls
    `keras.Model.__init__`, and stores its arguments under their own names and
    the dtype policy as `policy`.
    """

    # Names of constructor arguments stored as attributes of the same name.
    _arguments = (
        "hidden_dim",
        "num_layers",
        "num_heads",
        "intermediate_dim",
        "dropout",
    )

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        takes_numpy(cls)

    def get_config(self):
        config = {name: getattr(self, name) for name in self._arguments}
        mechanism = self.mechanism
        if not isinstance(mechanism, (str, dict)):
            mechanism = keras.saving.serialize_keras_object(mechanism)
        return {
            **config,
            "mechanism": mechanism,
            "name": self.name,
            "trainable": self.trainable,
            "frozen_layers": self._frozen_layers(),
            "dtype": policy_for_config(
                self.policy, [x for x in self.layers if x.weights]
            ),
        }

    def _frozen_layers(self):
        """Names of the layers that are frozen while the model is not."""
        frozen = [x.name for x in self.layers if not x.trainable]
        return frozen if self.trainable else []

    @classmethod
    def from_config(cls, config):
        config = with_mechanism(config)
        frozen = config.get("frozen_layers", ())
        config = {k: v for k, v in config.items() if k != "frozen_layers"}
        if isinstance(config.get("dtype"), dict):
            policy = keras.dtype_policies.deserialize(config["dtype"])
            config = {**config, "dtype": policy}
        model = cls(**config)
        for name in frozen:
            model.get_layer(name).trainable = False
        return model


class Classifier(FunctionalModel):
    """A functional model of `add_encoder` and `add_head`."""

    _arguments = (*FunctionalModel._arguments, "num_classes")

    def get_config(self):
        return {
            **super().get_config(),
            "activation": keras.activations.serialize(
                keras.activations.get(self.activation)
            ),
        }


def add_encoder(x, num_layers, *options):
    """Pre-norm encoder blocks and a last normalisation, `(B, T, F)` each.

    `options` are those of `add_blocks` after the numbers.
    """
    x = add_blocks(x, range(num_layers), *options)
    return final_norm(options[-1])(x)


def add_hourglass(x, factor, num_layers, *options):
    """`add_encoder` whose blocks but the last attend over merged tokens."""
    policy = options[-1]
    name = "hourglass_merging"
    merged = TokenMerging(
        factor,
        x.shape[-1],
        dtype=sublayer_policy(policy, name),
        name=name,
    )(x)
    merged = add_blocks(merged, range(num_layers - 1), *options)
    name = "hourglass_extension"
    x = TokenExtension(factor, dtype=sublayer_policy(policy, name), name=name)(
        x, merged
    )
    x = add_blocks(x, [num_layers - 1], *options)
    return final_norm(policy)(x)


def add_blocks(
    x, numbers, num_heads, intermediate_dim, dropout, mechanism, policy
):
    """Pre-norm encoder blocks named after `numbers`, `(B, T, F)` each."""
    for number in numbers:
        name = f"encoder_{number}"
        x = LinearTransformerEncoder(
            intermediate_dim=intermediate_dim,
            num_heads=num_heads,
            dropout=dropout,
            activation="gelu",
            normalize_first=True,
            mechanism=mechanism,
            dtype=sublayer_policy(policy, name),
            name=name,
        )(x)
    return x


def final_norm(policy):
    """The normalisation after the last block."""
    return layer_norm("final_norm", policy)


def layer_norm(name, policy):
    return keras.layers.LayerNormalization(
        epsilon=1e-5, dtype=sublayer_policy(policy, name), name=name
    )


def add_head(x, num_classes, dropout, activation, policy):
    """Mean over the visible positions, then a dense layer to the classes."""
    x = MaskedAveragePooling(
        dtype=sublayer_policy(policy, "pooling"), name="pooling"
    )(x)
    x = keras.layers.Dropout(dropout, name="head_dropout")(x)
    return output_dense("classes", num_classes, policy, activation)(x)


def output_dense(name, units, policy, activation=None):
    """A last dense layer, in float32."""
    # Probabilities in half precision are too coarse: float32 unless the
    # policies of a saved model say otherwise.
    is_map = isinstance(policy, keras.dtype_policies.DTypePolicyMap)
    dtype = sublayer_policy(policy, name) if is_map else "float32"
    return keras.layers.Dense(
        units, activation=activation, dtype=dtype, name=name
    )
