"""Transformer decoder block around a linear-attention mechanism."""

import inspect
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
from keras_linattn.layers._base_layer import makes_sublayers
from keras_linattn.layers._caches import cache_spec
from keras_linattn.layers._caches import check_caches
from keras_linattn.layers._caches import check_segments
from keras_linattn.layers._caches import with_exact_states
from keras_linattn.layers._sublayers import serialize_mechanism
from keras_linattn.layers.blocks._transformer_block import TransformerBlock
from keras_linattn.mechanisms import Mechanism


@keras.saving.register_keras_serializable("keras_linattn")
class LinearTransformerDecoder(TransformerBlock):
    """Transformer decoder block whose attention is linear in the length.

    Takes the arguments of `keras_hub.layers.TransformerDecoder`, plus the
    mechanisms, and has its variables: for mechanisms without weights,
    `set_weights` works from one to the other.

    Whether it has cross-attention is settled by its first call, with one
    sequence or two.

    Its cache is not KerasHub's keys and values of all positions, but the state
    of the mechanism, whose size is free of the length. The block may be fed
    whole, in pieces or position by position, with the cache of one call passed
    to the next; hidden positions leave it as it is.

    Args:
        intermediate_dim: int > 0, hidden size of the feedforward network.
        num_heads: int > 0, number of heads; each has F // num_heads features.
        dropout: float in [0, 1), of attention and feedforward network.
            Defaults to 0.
        activation: of the feedforward network. Defaults to `"relu"`.
        layer_norm_epsilon: float > 0. Defaults to `1e-5`.
        kernel_initializer: of all kernels. Defaults to `"glorot_uniform"`.
        bias_initializer: of all biases. Defaults to `"zeros"`.
        normalize_first: bool, normalise the inputs of attention and
            feedforward network (as GPT-2 does) rather than their outputs (as
            BERT does). Defaults to `False`.
        mechanism: name, dict, class or object, see `mechanisms.get`. Defaults
            to `"gated_delta"`: its state of fixed size forgets what is old and
            overwrites what has changed.
        cross_mechanism: likewise. Defaults to `"modified_linformer"`.
        normalization: `"layer"` or `"rms"`: layer normalisation, or division
            by the root mean square. Defaults to `"layer"`.
        use_bias: bool, whether projections and feedforward network have
            biases. Defaults to `True`.
        use_feedforward_gate: bool, multiply the hidden units by a gate with
            the activation, which they are then without; SwiGLU with
            `activation="silu"`. Defaults to `False`.
        attention_options: dict of further arguments of the self-attention,
            see `LinearMultiHeadAttention`: grouped heads, short convolutions,
            norms, rotary positions, a gate. `num_heads` and `key_dim` take
            the place of the block's. Defaults to `None`: `{}`.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        decoder_sequence: tensor `(B, T, F)`.
        encoder_sequence: optional tensor `(B, S, E)`.
        decoder_padding_mask: optional bool tensor `(B, T)`, `True` = visible.
            Without it and `decoder_attention_mask`, an implicit Keras mask is
            used.
        decoder_attention_mask: optional tensor `(B, T)` or `(B, 1, T)`.
        encoder_padding_mask, encoder_attention_mask: likewise, of S.
        self_attention_cache: optional tree of tensors, the state before
            `decoder_sequence`. Starts as `get_initial_state(batch_size)`.
        self_attention_cache_update_index: ignored, the state knows.
        cross_attention_cache: optional tree of tensors, a summary of
            `encoder_sequence`; needed where `self_attention_cache` is given.
            Starts as `get_initial_cross_state(batch_size)`.
        cross_attention_cache_update_index: `None` to read
            `cross_attention_cache` as it is, anything else to make it anew
            from `encoder_sequence`.
        use_causal_mask: bool, position t sees positions s <= t only. Defaults
            to `True`.
        training: optional bool, whether dropout is active.
        decoder_segment_ids: optional int tensor `(B, T)`, for rows that hold
            several documents, see `LinearMultiHeadAttention`. With a
            `self_attention_cache` the first document goes on from it, and the
            last one's is returned.
        encoder_segment_ids: optional int tensor `(B, S)`, likewise: position
            t sees the encoded positions of its own id. Needed with
            cross-attention beside `decoder_segment_ids`.

    Returns:
        Tensor `(B, T, F)`. With `self_attention_cache` a tuple of it, the state
        after `decoder_sequence`, and with cross-attention the summary.

    Raises:
        ValueError: if an argument is out of range; if a mask depends on the
            query; if another number of sequences is passed than before; for a
            cache of a mechanism without states, or one with
            `use_causal_mask=False`.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> block = keras_linattn.LinearTransformerDecoder(
    ...     32, num_heads=2, mechanism="linear_transformer")
    >>> x = np.ones((4, 10, 16), "float32")
    >>> tuple(block(x).shape)
    (4, 10, 16)
    >>> state = block.get_initial_state(batch_size=4)
    >>> y, state = block(x[:, :1], self_attention_cache=state)
    >>> tuple(y.shape)
    (4, 1, 16)

    Source: Vaswani et al., 2017, arXiv 1706.03762 (the block); Katharopoulos
    et al., 2020, arXiv 2006.16236 (the state in place of the cache).
    """

    def __init__(
        self,
        intermediate_dim: int,
        num_heads: int,
        dropout: float = 0,
        activation: str | Callable = "relu",
        layer_norm_epsilon: float = 1e-05,
        kernel_initializer: str | keras.Initializer = "glorot_uniform",
        bias_initializer: str | keras.Initializer = "zeros",
        normalize_first: bool = False,
        mechanism: str | dict | type | Mechanism = "gated_delta",
        cross_mechanism: str | dict | type | Mechanism = "modified_linformer",
        normalization: str = "layer",
        use_bias: bool = True,
        use_feedforward_gate: bool = False,
        attention_options: dict | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            intermediate_dim,
            num_heads,
            dropout=dropout,
            activation=activation,
            layer_norm_epsilon=layer_norm_epsilon,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            normalize_first=normalize_first,
            mechanism=mechanism,
            normalization=normalization,
            use_bias=use_bias,
            use_feedforward_gate=use_feedforward_gate,
            attention_options=attention_options,
            **with_exact_states(kwargs),
        )
        # Tracked by the cross-attention alone: `quantize` and the like fail at
        # a layer that is never built.
        self.__dict__["cross_mechanism"] = self._own_mechanism(
            cross_mechanism, "cross_mechanism"
        )

    @makes_sublayers
    def build(self, decoder_sequence_shape, encoder_sequence_shape=None):
        shape = decoder_sequence_shape
        self._self_attention_layer = self._self_attention(shape)
        self._self_attention_layer_norm = self._norm(
            "self_attention_layer_norm", shape
        )
        self._self_attention_dropout = self._dropout("self_attention_dropout")
        self._cross_attention_layer = None
        if encoder_sequence_shape is not None:
            self._cross_attention_layer = self._attention(
                "cross_attention",
                self.cross_mechanism,
                shape,
                encoder_sequence_shape,
            )
            self._cross_attention_layer_norm = self._norm(
                "cross_attention_layer_norm", shape
            )
            self._cross_attention_dropout = self._dropout(
                "cross_attention_dropout"
            )
        self._build_feedforward(shape)
        self._feedforward_layer_norm = self._norm(
            "feedforward_layer_norm", shape
        )

    def _self_attention(self, shape):
        return self._attention(
            "self_attention",
            self.mechanism,
            shape,
            shape,
            options=self.attention_options,
        )

    def get_initial_state(
        self, batch_size: int | Tensor, features: int | None = None
    ) -> Tree:
        """The `self_attention_cache` before the first position.

        Args:
            batch_size: int or scalar tensor, B.
            features: int, F, for a block that is not built. Defaults to
                `None`: those of the input it was built for.

        Returns:
            Tree of tensors of fixed shapes and dtypes, the batch first.
        """
        if self.built:
            return self._self_attention_layer.get_initial_state(batch_size)
        return self._state_before_build(
            batch_size, features, self.mechanism, self.attention_options
        )

    def get_initial_cross_state(
        self, batch_size: int | Tensor, features: int | None = None
    ) -> Tree:
        """A `cross_attention_cache` of no sequence yet, likewise."""
        if not self.built:
            return self._state_before_build(
                batch_size, features, self.cross_mechanism
            )
        if self._cross_attention_layer is None:
            raise ValueError(
                "A block without cross-attention has no state of it. Received: "
                "a block that was built for one sequence. Build it for two, "
                "`block.build(decoder_shape, encoder_shape)`."
            )
        return self._cross_attention_layer.get_initial_state(batch_size)

    def call(
        self,
        decoder_sequence: Tensor,
        encoder_sequence: Tensor | None = None,
        decoder_padding_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        self_attention_cache: Tree | None = None,
        self_attention_cache_update_index: Any = None,
        cross_attention_cache: Tree | None = None,
        cross_attention_cache_update_index: Any = None,
        use_causal_mask: bool = True,
        training: bool | None = None,
        decoder_segment_ids: Tensor | None = None,
        encoder_segment_ids: Tensor | None = None,
        decoder_sequence_mask: Tensor | None = None,
        encoder_sequence_mask: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor | tuple:
        check_caches(
            self._cross_attention_layer,
            encoder_sequence,
            self_attention_cache,
            cross_attention_cache,
            use_causal_mask,
        )
        check_segments(
            self._cross_attention_layer,
            decoder_segment_ids,
            encoder_segment_ids,
            cross_attention_cache,
        )
        if decoder_padding_mask is None and decoder_attention_mask is None:
            # Keras calls it `mask` where there is no other tensor.
            decoder_padding_mask = first_given(decoder_sequence_mask, mask)
        if encoder_padding_mask is None and encoder_attention_mask is None:
            encoder_padding_mask = encoder_sequence_mask
        if decoder_segment_ids is not None:
            check_segment_ids(decoder_segment_ids, decoder_sequence)
            decoder_padding_mask, _ = with_padding(
                decoder_segment_ids, decoder_padding_mask, None
            )
        visible = combine_masks(decoder_padding_mask)
        x = ops.cast(decoder_sequence, self.compute_dtype)
        x = inputs = whole_features(hide(x, visible))
        caches = []
        if self.normalize_first:
            x = self._self_attention_layer_norm(x)
        streams = self_attention_cache is not None
        x = self._self_attention_layer(
            x,
            x,
            query_mask=visible,
            value_mask=decoder_padding_mask,
            attention_mask=decoder_attention_mask,
            use_causal_mask=use_causal_mask,
            training=training,
            segment_ids=decoder_segment_ids,
            initial_state=self_attention_cache,
            return_state=streams,
        )
        if streams:
            x, state = x
            caches.append(state)
        x = inputs + self._self_attention_dropout(x, training=training)
        if not self.normalize_first:
            x = self._self_attention_layer_norm(x)
        if encoder_sequence is not None:
            x, summary = self._attend_to_encoder(
                x,
                encoder_sequence,
                {
                    "value_mask": encoder_padding_mask,
                    "attention_mask": encoder_attention_mask,
                },
                _pair(decoder_segment_ids, encoder_segment_ids),
                cross_attention_cache,
                cross_attention_cache_update_index is not None,
                training,
            )
            caches += [] if summary is None else [summary]
        x = self._feed_forward(x, training)
        return (x, *caches) if caches else x

    def _attend_to_encoder(
        self, inputs, encoded, masks, segment_ids, summary, renew, training
    ):
        """Cross-attention, and the summary it read if there is a cache."""
        x = inputs
        if self.normalize_first:
            x = self._cross_attention_layer_norm(x)
        layer = self._cross_attention_layer
        if summary is None:
            x = layer(
                x,
                encoded,
                training=training,
                segment_ids=segment_ids,
                **masks,
            )
        else:
            if renew:
                summary = layer.summarize(encoded, **masks)
            x = layer.read(x, summary, training)
        x = inputs + self._cross_attention_dropout(x, training=training)
        if not self.normalize_first:
            x = self._cross_attention_layer_norm(x)
        return x, summary

    def attend_to(
        self,
        inputs: Tensor,
        keys: dict | None = None,
        padding_mask: Tensor | None = None,
        state: Tree | None = None,
        training: bool | None = None,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, dict, Tree | None]:
        """Calls the block, with its own keys or those of another block.

        Args:
            inputs: tensor `(B, T, F)`, 0 where hidden.
            keys: optional dict, which another block returned. Defaults to
                `None`: the block projects its own.
            padding_mask: optional bool tensor `(B, T)`, `True` = visible.
            state: optional tree of tensors, the state before `inputs`.
            training: optional bool, whether dropout is active.
            segment_ids: optional int tensor `(B, T)`, whose padding
                `padding_mask` hides. Given keys have them already.

        Returns:
            Tensor `(B, T, F)`, the keys, and the state after `inputs`, `None`
            if there was none before.
        """
        x = inputs
        if self.normalize_first:
            x = self._self_attention_layer_norm(x)
        if keys is None:
            keys = self._self_attention_layer.project_keys(
                x, padding_mask, segment_ids=segment_ids, state=state
            )
        x, state = self._self_attention_layer.attend_to(
            x, keys, padding_mask, state, training
        )
        x = inputs + self._self_attention_dropout(x, training=training)
        if not self.normalize_first:
            x = self._self_attention_layer_norm(x)
        return self._feed_forward(x, training), keys, state

    def compute_output_spec(self, *args, **kwargs):
        given = inspect.signature(self.call).bind(*args, **kwargs).arguments
        x, encoded = given["decoder_sequence"], given.get("encoder_sequence")
        caches = [
            given.get(f"{kind}_attention_cache") for kind in ("self", "cross")
        ]
        causal = given.get("use_causal_mask", True)
        check_caches(self._cross_attention_layer, encoded, *caches, causal)
        segment_ids = [
            given.get(f"{kind}_segment_ids") for kind in ("decoder", "encoder")
        ]
        check_segments(self._cross_attention_layer, *segment_ids, caches[1])
        # Refuse while the model is made, not when the first batch arrives.
        self._self_attention_layer.compute_output_spec(
            x,
            x,
            attention_mask=given.get("decoder_attention_mask"),
            use_causal_mask=causal,
            initial_state=caches[0],
            return_state=caches[0] is not None,
            segment_ids=segment_ids[0],
        )
        if encoded is not None:
            self._cross_attention_layer.compute_output_spec(
                x,
                encoded,
                attention_mask=given.get("encoder_attention_mask"),
                segment_ids=_pair(*segment_ids),
            )
        output = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        caches = [cache_spec(cache) for cache in caches if cache is not None]
        return (output, *caches) if caches else output

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "cross_mechanism": serialize_mechanism(
                self.cross_mechanism, f"{self.name}/cross"
            ),
        }


def _pair(decoder_segment_ids, encoder_segment_ids):
    """The ids of queries and keys, or `None`."""
    if decoder_segment_ids is None:
        return None
    return decoder_segment_ids, encoder_segment_ids
