"""Decoder blocks that share one set of keys, values and states."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.annotations import Tree
from keras_linattn.core.boundaries import with_padding
from keras_linattn.core.devices import whole_features
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import first_given
from keras_linattn.core.masks import hide
from keras_linattn.layers._arguments import check_segment_ids
from keras_linattn.layers._arguments import positive
from keras_linattn.layers._base_layer import makes_sublayers
from keras_linattn.layers._caches import with_exact_states
from keras_linattn.layers._stacks import entries_of_blocks
from keras_linattn.layers._stacks import entry_of_group
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.layers.attention.linear_multi_head_attention import (
    LinearMultiHeadAttention,
)
from keras_linattn.layers.blocks._transformer_block import TransformerBlock
from keras_linattn.layers.blocks.linear_transformer_decoder import (
    LinearTransformerDecoder,
)
from keras_linattn.mechanisms import Mechanism

QUERIES = "query_convolution"  # part of an attention layer's state


@keras.saving.register_keras_serializable("keras_linattn")
class LinearTransformerDecoderGroup(TransformerBlock):
    """Decoder blocks that attend to one set of keys and values.

    The first block projects keys and values. The others attend to the same
    ones, each with queries of its own, so that one state serves the whole
    group: `num_layers` blocks need the state of one, and each block but the
    first is without the two projections. This is exact, not an approximation
    of separate states: whole, in pieces or position by position the outputs
    are the same. Any causal mechanism can be shared; its object is one.

    A group takes the place of its blocks. For one block it is
    `LinearTransformerDecoder`.

    Args:
        num_layers: int > 0, blocks.
        intermediate_dim: int > 0, hidden size of the feedforward networks.
        num_heads: int > 0, number of heads; each has F // num_heads features.
        dropout: float in [0, 1), of attention and feedforward networks.
            Defaults to 0.
        activation: of the feedforward networks. Defaults to `"relu"`.
        layer_norm_epsilon: float > 0. Defaults to `1e-5`.
        kernel_initializer: of all kernels. Defaults to `"glorot_uniform"`.
        bias_initializer: of all biases. Defaults to `"zeros"`.
        normalize_first: bool, see `LinearTransformerDecoder`. Defaults to
            `False`.
        mechanism: name, dict, class or object, see `mechanisms.get`, or a
            list of equal ones: the blocks share it, as they share the state.
            Defaults to `"gated_delta"`.
        normalization: see `LinearTransformerDecoder`. Defaults to `"layer"`.
        use_bias: likewise. Defaults to `True`.
        use_feedforward_gate: likewise. Defaults to `False`.
        attention_options: likewise. Defaults to `None`.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        decoder_sequence: tensor `(B, T, F)`.
        decoder_padding_mask: optional bool tensor `(B, T)`, `True` = visible.
            Without it, an implicit Keras mask is used.
        self_attention_cache: optional tree of tensors, the state before
            `decoder_sequence`; it starts as `get_initial_state(batch_size)`.
        training: optional bool, whether dropout is active.
        decoder_segment_ids: optional int tensor `(B, T)`, for rows that hold
            several documents, see `LinearTransformerDecoder`.

    Returns:
        Tensor `(B, T, F)`. With `self_attention_cache` a tuple of it and the
        state after `decoder_sequence`.

    Raises:
        ValueError: if an argument is out of range, if a list holds different
            mechanisms, or if the mechanism has no causal form.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> group = keras_linattn.layers.LinearTransformerDecoderGroup(
    ...     3, intermediate_dim=32, num_heads=2, mechanism="linear_transformer")
    >>> tuple(group(np.ones((4, 10, 16), "float32")).shape)
    (4, 10, 16)

    Source: Mu et al., 2024, arXiv 2408.01890 (neighbouring layers attend
    almost alike); Wang et al., 2020, arXiv 2006.04768 (sharing by layers).
    """

    def __init__(
        self,
        num_layers: int,
        intermediate_dim: int,
        num_heads: int,
        dropout: float = 0,
        activation: str | Callable = "relu",
        layer_norm_epsilon: float = 1e-05,
        kernel_initializer: str | keras.Initializer = "glorot_uniform",
        bias_initializer: str | keras.Initializer = "zeros",
        normalize_first: bool = False,
        mechanism: str | dict | type | Mechanism | list = "gated_delta",
        normalization: str = "layer",
        use_bias: bool = True,
        use_feedforward_gate: bool = False,
        attention_options: dict | None = None,
        **kwargs: Any,
    ):
        positive("num_layers", num_layers)
        entries = entries_of_blocks("mechanism", mechanism, num_layers)
        super().__init__(
            intermediate_dim,
            num_heads,
            dropout=dropout,
            activation=activation,
            layer_norm_epsilon=layer_norm_epsilon,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            normalize_first=normalize_first,
            mechanism=entry_of_group("mechanism", entries),
            normalization=normalization,
            use_bias=use_bias,
            use_feedforward_gate=use_feedforward_gate,
            attention_options=attention_options,
            **with_exact_states(kwargs),
        )
        self.num_layers = num_layers

    @makes_sublayers
    def build(self, decoder_sequence_shape):
        self.blocks = [
            self._block(index, decoder_sequence_shape)
            for index in range(self.num_layers)
        ]

    def _block(self, index, shape):
        cls = _ReadingDecoder if index else LinearTransformerDecoder
        name = f"block_{index}"
        block = cls(
            self.intermediate_dim,
            self.num_heads,
            dropout=self.dropout,
            activation=self.activation,
            layer_norm_epsilon=self.layer_norm_epsilon,
            kernel_initializer=self.kernel_initializer,
            bias_initializer=self.bias_initializer,
            normalize_first=self.normalize_first,
            mechanism=self.mechanism,
            normalization=self.normalization,
            use_bias=self.use_bias,
            use_feedforward_gate=self.use_feedforward_gate,
            attention_options=self.attention_options,
            dtype=sublayer_policy(self.dtype_policy, name),
            name=name,
        )
        block.build(shape)
        return block

    def get_initial_state(
        self, batch_size: int | Tensor, features: int | None = None
    ) -> Tree:
        """The `self_attention_cache` before the first position.

        Args:
            batch_size: int or scalar tensor, B.
            features: int, F, for a group that is not built. Defaults to
                `None`: those of the input it was built for.

        Returns:
            Tree of tensors of fixed shapes and dtypes, the batch first.
        """
        if self.built:
            state = self.blocks[0].get_initial_state(batch_size)
        else:
            state = self._state_before_build(
                batch_size, features, self.mechanism, self.attention_options
            )
        if not self._own_parts:
            return state
        # Each block has queries of its own, and so the last ones of them.
        queries = state[QUERIES]
        own = {name: ops.zeros_like(queries) for name in self._own_parts[1:]}
        return {**state, **own}

    @property
    def _own_parts(self):
        """Names in the state, by blocks, of what is each block's own."""
        options = self.attention_options or {}
        if options.get("kernel_size") is None:
            return []
        others = range(1, self.num_layers)
        return [QUERIES, *(f"{QUERIES}_{index}" for index in others)]

    def call(
        self,
        decoder_sequence: Tensor,
        decoder_padding_mask: Tensor | None = None,
        self_attention_cache: Tree | None = None,
        training: bool | None = None,
        decoder_segment_ids: Tensor | None = None,
        decoder_sequence_mask: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor | tuple:
        # Keras calls it `mask` where there is no other tensor.
        visible = combine_masks(
            first_given(decoder_padding_mask, decoder_sequence_mask, mask)
        )
        if decoder_segment_ids is not None:
            check_segment_ids(decoder_segment_ids, decoder_sequence)
            visible, _ = with_padding(decoder_segment_ids, visible, None)
        x = ops.cast(decoder_sequence, self.compute_dtype)
        x = whole_features(hide(x, visible))
        keys = None  # until the first block has projected them
        streams = self_attention_cache is not None
        names, own = self._own_parts if streams else [], {}
        state: Tree = self_attention_cache
        for index, block in enumerate(self.blocks):
            # Each begins with the group's state; all come to the same one.
            before: Tree = self_attention_cache
            if names:
                before = {**before, QUERIES: before[names[index]]}
            x, keys, state = block.attend_to(
                x, keys, visible, before, training, decoder_segment_ids
            )
            if names:
                own[names[index]] = state[QUERIES]
        state = {**state, **own} if names else state
        return (x, state) if streams else x

    def compute_output_spec(
        self,
        decoder_sequence,
        decoder_padding_mask=None,
        self_attention_cache=None,
        training=None,
        decoder_segment_ids=None,
        decoder_sequence_mask=None,
        mask=None,
    ):
        # The first block refuses what the group would.
        return self.blocks[0].compute_output_spec(
            decoder_sequence,
            self_attention_cache=self_attention_cache,
            decoder_segment_ids=decoder_segment_ids,
        )

    def _sublayers(self):
        return getattr(self, "blocks", [])

    def get_config(self) -> dict:
        return {**super().get_config(), "num_layers": self.num_layers}


class _ReadingDecoder(LinearTransformerDecoder):
    """A block without projections of keys and values."""

    def _self_attention(self, shape):
        return self._attention(
            "self_attention",
            self.mechanism,
            shape,
            cls=_QueryAttention,
            options=self.attention_options,
        )


class _QueryAttention(LinearMultiHeadAttention):
    """Queries and an output projection; keys and values are another layer's.

    Its mechanism is the object of the other layer: a state is read rightly
    only by the mechanism that wrote it.
    """

    @makes_sublayers
    def build(self, query_shape):
        self._build_queries(query_shape)
        self._build_gate(query_shape)
        self._build_output(query_shape)
        self._build_transform("query", query_shape)
        self._build_mechanism(query_shape, query_shape)
