"""What the functional models share: config, dtype policies, the blocks."""

import functools
import inspect
from collections.abc import Callable
from typing import Any
from typing import Self
from typing import TypeVar

import keras

from keras_linattn import mechanisms
from keras_linattn.core.annotations import Tensor
from keras_linattn.core.annotations import Tree
from keras_linattn.core.numerics import accumulation_dtype
from keras_linattn.layers import LinearTransformerEncoder
from keras_linattn.layers import MaskedAveragePooling
from keras_linattn.layers import TokenExtension
from keras_linattn.layers import TokenMerging
from keras_linattn.layers._arguments import positive
from keras_linattn.layers._base_layer import takes_numpy
from keras_linattn.layers._norms import make_norm
from keras_linattn.layers._stacks import entries_of_blocks
from keras_linattn.layers._stacks import is_pattern
from keras_linattn.layers._stacks import restore_pattern
from keras_linattn.layers._stacks import serialize_pattern
from keras_linattn.layers._sublayers import policy_for_config
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.layers._sublayers import with_mechanism

Constructor = TypeVar("Constructor", bound=Callable)
BYTE_VOCABULARY = 257  # byte b is id b + 1, padding is 0


def stores_arguments(init: Constructor) -> Constructor:
    """Decorates a model's constructor: its arguments become attributes.

    Each argument, passed or default, is stored under its own name, unless the
    constructor has stored a value there itself. `get_config` returns them.
    Lists become tuples, since files hold lists for both. `dtype` is left out,
    since `policy` holds it, and so are `**kwargs`, which Keras holds.
    """
    signature = inspect.signature(init)
    names = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "dtype")
        and parameter.kind is not parameter.VAR_KEYWORD
    ]

    def construct(self, *args, **kwargs):
        init(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        for name in names:
            value = bound.arguments[name]
            if name not in vars(self):
                is_list = isinstance(value, list)
                setattr(self, name, tuple(value) if is_list else value)
        self._config_names = tuple(names)

    wrapped: Any = functools.wraps(init)(construct)
    wrapped.__signature__ = signature  # Keras does not look at __wrapped__
    return wrapped


class FunctionalModel(keras.Model):
    """A functional model whose config is its constructor's arguments.

    A subclass decorates its constructor with `stores_arguments`. There it
    makes its graph, calls `keras.Model.__init__`, and stores the dtype policy
    as `policy`.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        takes_numpy(cls)

    def call(
        self,
        inputs: Tree,
        training: bool | None = None,
        mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tree:
        self._check_names(inputs, kwargs)
        return super().call(inputs, training=training, mask=mask, **kwargs)

    def _check_names(self, inputs, kwargs):
        """Keras would ignore ids of documents that are no input of a model."""
        names = [x.name for x in self.inputs]
        given = [*inputs] if isinstance(inputs, dict) else []
        given += ["segment_ids"] if "segment_ids" in kwargs else []
        if "segment_ids" in kwargs or set(given) - set(names):
            raise ValueError(
                "A model is called with its inputs, as a list or a dict. "
                f"Received: {sorted(given)}, expected inputs {names}. For "
                "documents packed into rows make a `CausalLM(packed=True)`, "
                "whose second input is `segment_ids`."
            )

    def get_config(self) -> dict:
        config = {name: getattr(self, name) for name in self._config_names}
        return {
            **config,
            "mechanism": _serialized(self.mechanism),
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
    def from_config(cls, config: dict) -> Self:
        config = with_mechanism(config)
        if is_pattern(config.get("mechanism")):
            entries = restore_pattern(config["mechanism"])
            config = {**config, "mechanism": entries}
        frozen = config.get("frozen_layers", ())
        config = {k: v for k, v in config.items() if k != "frozen_layers"}
        if isinstance(config.get("dtype"), dict):
            policy = keras.dtype_policies.deserialize(config["dtype"])
            config = {**config, "dtype": policy}
        model = cls(**config)
        for name in frozen:
            model.get_layer(name).trainable = False
        return model


def _serialized(mechanism):
    """What was passed as `mechanism`, as JSON."""
    if is_pattern(mechanism):
        return serialize_pattern(mechanism, _serialized)
    if isinstance(mechanism, dict):
        return dict(mechanism)
    if isinstance(mechanism, type):
        name = mechanisms.name_of(mechanism)
        if name is None:
            raise ValueError(
                "The class of a mechanism must be registered for its model to "
                f"be saved. Received: mechanism={mechanism!r}. Decorate it "
                "with `keras_linattn.mechanisms.register`."
            )
        return name
    if isinstance(mechanism, str):
        return mechanism
    return keras.saving.serialize_keras_object(mechanism)


class Classifier(FunctionalModel):
    """A functional model of `add_encoder` and `add_head`."""

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "activation": keras.activations.serialize(
                keras.activations.get(self.activation)
            ),
        }


def add_encoder(x, num_layers, block, policy, **sizes):
    """Pre-norm encoder blocks and a last normalisation, `(B, T, F)` each.

    Args:
        x: tensor `(B, T, F)`.
        num_layers: int > 0, blocks.
        block: dict of constructor arguments of the blocks.
        policy: dtype policy of the model.
        **sizes: those of the inputs, see `mechanisms.with_input_sizes`.
    """
    block = _with_mechanisms(block, num_layers)
    x = add_blocks(x, range(num_layers), block, policy, **sizes)
    return final_norm(policy)(x)


def add_hourglass(x, factor, num_layers, block, policy, sequence_length=None):
    """`add_encoder` whose blocks except the last attend to merged tokens."""
    block = _with_mechanisms(block, num_layers)
    name = "hourglass_merging"
    merged = TokenMerging(
        factor,
        x.shape[-1],
        dtype=sublayer_policy(policy, name),
        name=name,
    )(x)
    merged = add_blocks(
        merged,
        range(num_layers - 1),
        block,
        policy,
        sequence_length=shortened(sequence_length, factor),
    )
    name = "hourglass_extension"
    x = TokenExtension(factor, dtype=sublayer_policy(policy, name), name=name)(
        x, merged
    )
    x = add_blocks(
        x, [num_layers - 1], block, policy, sequence_length=sequence_length
    )
    return final_norm(policy)(x)


def _with_mechanisms(block, num_layers):
    """The blocks' arguments, with a list of one mechanism for each."""
    entries = entries_of_blocks("mechanism", block["mechanism"], num_layers)
    return {**block, "mechanism": entries}


def add_blocks(x, numbers, block, policy, **sizes):
    """Pre-norm encoder blocks named after `numbers`, `(B, T, F)` each.

    `block["mechanism"]` is a list, of all blocks of the model.
    """
    block = dict(block)
    entries = block.pop("mechanism")
    if block["intermediate_dim"] is None:
        block["intermediate_dim"] = 2 * x.shape[-1]
    for number in numbers:
        name = f"encoder_{number}"
        x = LinearTransformerEncoder(
            **block,
            mechanism=mechanisms.with_input_sizes(entries[number], **sizes),
            activation="gelu",
            normalize_first=True,
            dtype=sublayer_policy(policy, name),
            name=name,
        )(x)
    return x


def shortened(sequence_length, factor=1):
    """The longest sequence after groups of `factor` are merged.

    Args:
        sequence_length: int > 0 or `None`: unknown.
        factor: int > 0. Defaults to 1.
    """
    if sequence_length is None:
        return None
    return -(-positive("sequence_length", sequence_length) // factor)


def final_norm(policy, **options):
    """The normalisation after the last block; `options` as of `norm`."""
    return norm("final_norm", policy, **options)


def norm(name, policy, normalization="layer", epsilon=1e-5):
    """A normalisation, see `make_norm`."""
    return make_norm(
        normalization, epsilon, sublayer_policy(policy, name), name
    )


def add_head(x, num_classes, dropout, activation, policy):
    """Mean over the visible positions, then a dense layer to the classes."""
    x = MaskedAveragePooling(
        dtype=sublayer_policy(policy, "pooling"), name="pooling"
    )(x)
    x = keras.layers.Dropout(dropout, name="head_dropout")(x)
    return output_dense("classes", num_classes, policy, activation)(x)


def output_dense(name, units, policy, activation=None, use_bias=True):
    """A last dense layer, in float32 where the model has half precision."""
    # Probabilities in half precision are too coarse: float32 unless the
    # policies of a saved model say otherwise.
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        dtype = sublayer_policy(policy, name)
    else:
        dtype = accumulation_dtype(policy.compute_dtype)
    return keras.layers.Dense(
        units, activation=activation, use_bias=use_bias, dtype=dtype, name=name
    )
