"""Language model whose cost for a token does not grow with the context."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from typing import Self

import keras
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.core.annotations import Tensor
from keras_linattn.core.annotations import Tree
from keras_linattn.layers import CausalConvolution
from keras_linattn.layers import LinearTransformerDecoder
from keras_linattn.layers import LinearTransformerDecoderGroup
from keras_linattn.layers._arguments import positive
from keras_linattn.layers._stacks import entries_of_blocks
from keras_linattn.layers._stacks import entry_of_group
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.mechanisms import Mechanism
from keras_linattn.models import decoding
from keras_linattn.models._base import BYTE_VOCABULARY
from keras_linattn.models._base import final_norm
from keras_linattn.models._base import output_dense
from keras_linattn.models._base import shortened
from keras_linattn.models._base import stores_arguments
from keras_linattn.models._decoding_step import step_model
from keras_linattn.models._generator import Generator


@keras.saving.register_keras_serializable("keras_linattn")
class CausalLM(Generator):
    """Causal linear-attention decoder over bytes, or the ids of a tokenizer.

    Decodes with a state of fixed size in place of a growing cache of keys and
    values: a token costs the same after a thousand and after a million others.
    `generate` follows `keras_hub.models.CausalLM.generate` and takes KerasHub's
    samplers.

    By default there is no position embedding, because that would limit the
    length. A short causal convolution gives the order of neighbours, with its
    last inputs as state. Causal attention with decay weighs recent positions
    more. For rotary positions and other options of modern models see
    docs/modern_blocks.md.

    Padding is at the end of a sequence. The model is causal, so the logits are
    the same with and without padding. If the padding id has no other meaning
    (bytes, and tokenizers whose padding is 0), the loss ignores it too.

    Args:
        vocabulary_size: int > 0 or `None`, number of token ids with padding.
            Defaults to `None`: that of `tokenizer`, else 257: byte b is id
            b + 1, padding is 0.
        hidden_dim: int > 0, F. Defaults to 128.
        num_layers: int > 0, decoder blocks. Defaults to 4.
        num_heads: int > 0. Defaults to 4.
        intermediate_dim: int > 0 or `None`, of the feedforward networks.
            Defaults to `None`: 4 * `hidden_dim`.
        dropout: float in [0, 1). Defaults to 0.
        mechanism: name, dict, class or object, see `mechanisms.get`, or a
            list of them, one for each block; a shorter list repeats, and the
            last repetition may be cut. An object is shared by all of its
            blocks. Decoding step by step needs the trait `recurrent` in each
            block. Defaults to `"gated_delta"`.
        kernel_size: int > 1 or `None`, positions that the convolution before
            the blocks sums up; `None` for none. Defaults to 4.
        layers_per_state: int > 0, neighbouring blocks that share keys, values
            and state, see `LinearTransformerDecoderGroup`, and therefore also
            their mechanism. Defaults to 1.
        tokenizer: KerasHub tokenizer or `None`: bytes. Saved with the model.
        sequence_length: int > 0 or `None`, tokens of the longest sequence,
            generated ones included. Only mechanisms with the trait
            `needs_length` use it, such as `"cosformer"`. Defaults to `None`:
            unknown.
        remat: bool, recompute the decoder blocks in the backward pass, see
            `keras.RematScope`. Defaults to `False`.
        packed: bool, take `segment_ids` beside the tokens, for rows that hold
            several documents: each gives the logits it gives alone. Needs a
            mechanism with the trait `packs`. Defaults to `False`.
        activation: of the feedforward networks. Defaults to `"gelu"`.
        normalization: `"layer"` or `"rms"`, see `LinearTransformerDecoder`.
            Defaults to `"layer"`.
        layer_norm_epsilon: float > 0. Defaults to `1e-5`.
        use_bias: bool, whether blocks and logits have biases. Defaults to
            `True`.
        use_feedforward_gate: bool, see `LinearTransformerDecoder`; SwiGLU
            with `activation="silu"`. Defaults to `False`.
        attention_options: dict of further arguments of the blocks' attention,
            see `LinearMultiHeadAttention`, or a list of them (or `None`), one
            for each block; a shorter list repeats. Defaults to `None`.
        tie_embeddings: bool, the logits are products with the embeddings of
            the tokens, without a bias. Defaults to `False`.
        dtype: dtype policy. Defaults to `None`: Keras' global policy.
        **kwargs: `name` and `trainable` of `keras.Model`.

    Call arguments:
        tokens: int tensor `(B, T)`. The input is named `tokens`. With
            `packed=True` a list of it and of an int tensor `(B, T)`, the ids
            of the documents (0 = padding, equal ids side by side), or a dict
            of both, `tokens` and `segment_ids`. `next_token_targets` makes
            the targets and their weights.

    Returns:
        float32 tensor `(B, T, vocabulary_size)`: the logits of what follows
        each position.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> model = keras_linattn.models.CausalLM(
    ...     hidden_dim=16, num_layers=1, mechanism="linear_transformer")
    >>> tuple(model(np.array([[80, 100, 0, 0]])).shape)
    (1, 4, 257)
    >>> state = model.get_initial_state(batch_size=1)
    >>> logits, _, state = model.call_with_state(np.array([[80]]), state)
    >>> tuple(logits.shape)
    (1, 1, 257)

    Source: Katharopoulos et al., 2020, arXiv 2006.16236 (decoding with a
    state); Yang et al., 2024, arXiv 2412.06464 (the default mechanism).
    """

    @stores_arguments
    def __init__(
        self,
        vocabulary_size: int | None = None,
        hidden_dim: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        intermediate_dim: int | None = None,
        dropout: float = 0.0,
        mechanism: str | dict | type | Mechanism | list = "gated_delta",
        kernel_size: int | None = 4,
        layers_per_state: int = 1,
        tokenizer: Any = None,
        sequence_length: int | None = None,
        remat: bool = False,
        packed: bool = False,
        activation: str | Callable = "gelu",
        normalization: str = "layer",
        layer_norm_epsilon: float = 1e-5,
        use_bias: bool = True,
        use_feedforward_gate: bool = False,
        attention_options: dict | list | None = None,
        tie_embeddings: bool = False,
        dtype: str | keras.DTypePolicy | None = None,
        **kwargs: Any,
    ):
        positive("num_layers", num_layers)
        policy = keras.dtype_policies.get(dtype)
        if intermediate_dim is None:
            intermediate_dim = 4 * hidden_dim
        if vocabulary_size is None:
            own = tokenizer is not None
            vocabulary_size = (
                tokenizer.vocabulary_size() if own else BYTE_VOCABULARY
            )
        block = {
            "intermediate_dim": intermediate_dim,
            "num_heads": num_heads,
            "dropout": dropout,
            "activation": activation,
            "layer_norm_epsilon": layer_norm_epsilon,
            "normalize_first": True,
            "normalization": normalization,
            "use_bias": use_bias,
            "use_feedforward_gate": use_feedforward_gate,
            "attention_options": entries_of_blocks(
                "attention_options", attention_options, num_layers
            ),
            "mechanism": [
                mechanisms.with_input_sizes(
                    entry, sequence_length=shortened(sequence_length)
                )
                for entry in entries_of_blocks(
                    "mechanism", mechanism, num_layers
                )
            ],
        }
        embedding = _embedding(
            vocabulary_size, hidden_dim, tokenizer, tie_embeddings, policy
        )
        layers = [
            embedding,
            *_convolutions(kernel_size, policy),
            *_decoders(num_layers, layers_per_state, remat, policy, block),
            final_norm(
                policy,
                normalization=normalization,
                epsilon=layer_norm_epsilon,
            ),
        ]
        inputs = tokens = keras.Input((None,), dtype="int32", name="tokens")
        segment_ids = None
        if packed:
            segment_ids = keras.Input(
                (None,), dtype="int32", name="segment_ids"
            )
            inputs = [tokens, segment_ids]
        x = tokens
        for layer in layers:
            x = layer(x, **_packing(layer, segment_ids))
        if tie_embeddings:
            x = embedding(x, reverse=True)
        else:
            logits = output_dense(
                "logits", vocabulary_size, policy, use_bias=use_bias
            )
            x = logits(x)
        super().__init__(inputs=inputs, outputs=x, **kwargs)
        self.policy = policy
        self.vocabulary_size = vocabulary_size

    def _streaming_layers(self):
        """The layers with a state, in their order."""
        names = ("convolution", "decoder_")
        return [x for x in self.layers if x.name.startswith(names)]

    def _logits(self, hidden):
        if self.tie_embeddings:
            return self.get_layer("embedding")(hidden, reverse=True)
        return self.get_layer("logits")(hidden)

    def get_initial_state(self, batch_size: int | Tensor) -> dict[str, Tree]:
        """Returns the state before the first token.

        Args:
            batch_size: int or scalar tensor, B.

        Returns:
            Dict from names of layers to trees of tensors of fixed shapes and
            dtypes, the batch first: what a mechanism keeps, mostly float32.

        Raises:
            ValueError: if the mechanism of a block has no states.
        """
        layers = self._streaming_layers()
        for layer in layers:
            if not isinstance(layer, CausalConvolution):
                _check_streams(layer)
        return {
            layer.name: layer.get_initial_state(batch_size) for layer in layers
        }

    def encode_with_state(
        self,
        tokens: Tensor,
        state: Tree,
        padding_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tree]:
        """`call_with_state` without the logits.

        Returns:
            The hidden states `(B, T, F)`, and the state after `tokens`.
        """
        embedding = self.get_layer("embedding")
        if padding_mask is None and embedding.mask_zero:
            padding_mask = ops.not_equal(tokens, 0)
        x, after = embedding(tokens), {}
        for layer in self._streaming_layers():
            options = _packing(layer, segment_ids)
            if isinstance(layer, CausalConvolution):
                options["mask"] = padding_mask
                options["initial_state"] = state[layer.name]
                options["return_state"] = True
            else:
                options["decoder_padding_mask"] = padding_mask
                options["self_attention_cache"] = state[layer.name]
            x, after[layer.name] = layer(x, **options)
        return self.get_layer("final_norm")(x), after

    def call_with_state(
        self,
        tokens: Tensor,
        state: Tree,
        padding_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tree]:
        """Continues from a state with any number of new tokens.

        The logits are the same for pieces of any size: all tokens at once, or
        one token at a time.

        Args:
            tokens: int tensor `(B, T)`.
            state: from `get_initial_state` or an earlier call.
            padding_mask: optional bool tensor `(B, T)`, `True` = visible.
                Masked tokens, at the end, do not change the state. Defaults to
                `None`: the padding id is masked if it has no other meaning.
            segment_ids: optional int tensor `(B, T)`, for rows that hold
                several documents: the first one continues from `state`, and
                the returned state is that of the last one.

        Returns:
            The logits `(B, T, vocabulary_size)`, the hidden states `(B, T, F)`
            before them, and the state after `tokens`.
        """
        hidden, state = self.encode_with_state(
            tokens, state, padding_mask, segment_ids
        )
        return self._logits(hidden), hidden, state

    def step_model(self) -> keras.Model:
        """A functional model of one decoding step, to export and serve.

        Its inputs are a dict: `tokens`, `(B, 1)`, and the leaves of the state
        by names like `state_decoder_0`. Its outputs are a dict: `logits`,
        `(B, vocabulary_size)`, and the new leaves by the names of the old
        ones. The first state is zeros, of the dtypes of the inputs. Its
        weights are this model's.

        Returns:
            `keras.Model`.
        """
        return step_model(self)

    def get_config(self) -> dict:
        tokenizer = self.tokenizer
        if tokenizer is not None:
            tokenizer = keras.saving.serialize_keras_object(tokenizer)
        return {
            **super().get_config(),
            "tokenizer": tokenizer,
            "activation": keras.activations.serialize(
                keras.activations.get(self.activation)
            ),
            "attention_options": keras.saving.serialize_keras_object(
                self.attention_options
            ),
        }

    @classmethod
    def from_config(cls, config: dict) -> Self:
        if isinstance(config.get("tokenizer"), dict):
            # Importing KerasHub registers its classes.
            decoding.import_keras_hub()
            tokenizer = keras.saving.deserialize_keras_object(
                config["tokenizer"]
            )
            config = {**config, "tokenizer": tokenizer}
        return super().from_config(config)


def _embedding(vocabulary_size, hidden_dim, tokenizer, tie, policy):
    """The embedding of tokens, which also makes logits if `tie` is set."""
    name = "embedding"
    options = {
        "mask_zero": decoding.hides_padding(tokenizer),
        "dtype": sublayer_policy(policy, name),
        "name": name,
    }
    if not tie:
        return keras.layers.Embedding(vocabulary_size, hidden_dim, **options)
    if not hasattr(keras.layers, "ReversibleEmbedding"):
        raise ValueError(
            "`tie_embeddings` needs `keras.layers.ReversibleEmbedding`. "
            f"Received: tie_embeddings=True under Keras {keras.__version__}. "
            "Install a newer Keras, or leave it out."
        )
    return keras.layers.ReversibleEmbedding(
        vocabulary_size, hidden_dim, reverse_dtype="float32", **options
    )


def _convolutions(kernel_size, policy):
    """The convolution before the blocks, or nothing."""
    if kernel_size is None:
        return []
    name = "convolution"
    policy = sublayer_policy(policy, name)
    return [CausalConvolution(kernel_size, dtype=policy, name=name)]


def _packing(layer, segment_ids):
    """The ids as a call argument of a layer, if it takes any."""
    if segment_ids is None:
        return {}
    if isinstance(layer, CausalConvolution):
        return {"segment_ids": segment_ids}
    is_decoder = isinstance(
        layer, (LinearTransformerDecoder, LinearTransformerDecoderGroup)
    )
    return {"decoder_segment_ids": segment_ids} if is_decoder else {}


def _check_streams(decoder):
    """Raises a `ValueError` if a decoder has no states, with its name."""
    try:
        decoder.mechanism.check_recurrent()
    except ValueError as error:
        raise ValueError(
            "Decoding step by step needs states in all blocks of a stack. "
            f"Received: block {decoder.name!r} without. {error}"
        ) from error


def _decoders(num_layers, layers_per_state, remat, policy, block):
    """Blocks, or groups that share a state; the last group may be smaller.

    `mechanism` and `attention_options` in `block` are lists, of all blocks.
    """
    step = positive("layers_per_state", layers_per_state)
    # Without `remat` an outer scope of the user stays in force.
    scope = keras.RematScope(mode="full") if remat else nullcontext()
    decoders = []
    for first in range(0, num_layers, step):
        name = f"decoder_{first}"
        size = min(step, num_layers - first)
        of_group = {
            argument: entry_of_group(
                argument, block[argument][first : first + size]
            )
            for argument in ("mechanism", "attention_options")
        }
        options = {
            **block,
            **of_group,
            "dtype": sublayer_policy(policy, name),
            "name": name,
        }
        with scope:
            decoders.append(
                LinearTransformerDecoderGroup(size, **options)
                if size > 1
                else LinearTransformerDecoder(**options)
            )
    return decoders
