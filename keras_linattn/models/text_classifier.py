"""Classifier of long texts, byte by byte."""

from collections.abc import Callable
from typing import Any

import keras

from keras_linattn.layers import NGramEmbedding
from keras_linattn.layers import TokenMerging
from keras_linattn.layers._sublayers import sublayer_policy
from keras_linattn.layers.stems._groups import check_factor
from keras_linattn.mechanisms import Mechanism
from keras_linattn.models._base import BYTE_VOCABULARY
from keras_linattn.models._base import Classifier
from keras_linattn.models._base import add_encoder
from keras_linattn.models._base import add_head
from keras_linattn.models._base import add_hourglass
from keras_linattn.models._base import shortened
from keras_linattn.models._base import stores_arguments


@keras.saving.register_keras_serializable("keras_linattn")
class TextClassifier(Classifier):
    """Linear-attention encoder over bytes (or any token ids), any length.

    Embeds hashed n-grams, merges neighbours to one token, attends, averages
    over the visible positions. Padding (id 0, at the end) changes nothing.

    Args:
        num_classes: int > 0.
        vocabulary_size: int > 0, number of token ids with padding. Defaults
            to 257: byte b is id b + 1, padding is 0.
        hidden_dim: int > 0, F. Defaults to 128.
        num_layers: int > 0, encoder blocks. Defaults to 2.
        num_heads: int > 0. Defaults to 4.
        intermediate_dim: int > 0 or `None`, of the feedforward networks.
            Defaults to `None`: 2 * `hidden_dim`.
        ngram_orders: tuple of ints, see `NGramEmbedding`. Defaults to
            `(1, 2, 3, 4)`.
        num_buckets: int > 0, see `NGramEmbedding`. Defaults to 8192.
        embedding_dim: int > 0, features of the n-gram embedding. Defaults to
            64.
        merge_factor: int > 0, neighbours merged to one token before the
            encoder. Defaults to 4.
        dropout: float in [0, 1). Defaults to 0.1.
        activation: of the output, or `None` for logits. Defaults to
            `"softmax"`: probabilities.
        mechanism: name, dict, class or object, see `mechanisms.get`, or a
            list of them, one for each block; a shorter list repeats, and the
            last repetition may be cut. An object is shared by all of its
            blocks. Defaults to `"modified_linformer"`.
        hourglass_factor: int > 0. If over 1, every block except the last works
            on groups of that many merged tokens; the result is upsampled and
            added back. Use it for long documents. Needs two layers or more.
            Defaults to 1: all blocks
            attend over all tokens.
        sequence_length: int > 0 or `None`, tokens of the longest input. Only
            mechanisms with the trait `needs_length` use it, such as
            `"linformer"`. Defaults to `None`: unknown.
        remat: bool, recompute the encoder blocks in the backward pass, see
            `LinearTransformerEncoder`. Defaults to `False`.
        dtype: dtype policy. Defaults to `None`: Keras' global policy.
        **kwargs: `name` and `trainable` of `keras.Model`.

    Call arguments:
        tokens: int tensor `(B, T)`, 0 = padding. The input is named `tokens`.
            An export with the default vocabulary also has the signature
            `serve_text`, whose input `text`, `(B,)`, is strings.

    Returns:
        float32 tensor `(B, num_classes)`.

    Raises:
        ValueError: if an argument is out of range, or if there are too few
            layers for an hourglass.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> model = keras_linattn.models.TextClassifier(
    ...     num_classes=3, hidden_dim=16, num_layers=1, num_buckets=64)
    >>> tuple(model(np.array([[80, 100, 0, 0]])).shape)
    (1, 3)

    Source: Verma, 2020, arXiv 2101.10277 (the attention); Bojanowski et al.,
    2017, arXiv 1607.04606 (the n-grams); Nawrot et al., 2021, arXiv 2110.13711
    and Zhai et al., 2023, arXiv 2305.11392 (the hourglass).
    """

    @stores_arguments
    def __init__(
        self,
        num_classes: int,
        vocabulary_size: int = BYTE_VOCABULARY,
        hidden_dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        intermediate_dim: int | None = None,
        ngram_orders: tuple[int, ...] = (1, 2, 3, 4),
        num_buckets: int = 8192,
        embedding_dim: int = 64,
        merge_factor: int = 4,
        dropout: float = 0.1,
        activation: str | Callable | None = "softmax",
        mechanism: str | dict | type | Mechanism | list = "modified_linformer",
        hourglass_factor: int = 1,
        sequence_length: int | None = None,
        remat: bool = False,
        dtype: str | keras.DTypePolicy | None = None,
        **kwargs: Any,
    ):
        _check_hourglass(hourglass_factor, num_layers)
        policy = keras.dtype_policies.get(dtype)
        tokens = keras.Input((None,), dtype="int32", name="tokens")
        x = NGramEmbedding(
            vocabulary_size,
            embedding_dim,
            ngram_orders,
            num_buckets,
            dtype=sublayer_policy(policy, "ngrams"),
            name="ngrams",
        )(tokens)
        x = TokenMerging(
            merge_factor,
            hidden_dim,
            dtype=sublayer_policy(policy, "merging"),
            name="merging",
        )(x)
        block = {
            "num_heads": num_heads,
            "intermediate_dim": intermediate_dim,
            "dropout": dropout,
            "mechanism": mechanism,
            "remat": remat,
        }
        longest = shortened(sequence_length, merge_factor)
        if hourglass_factor == 1:
            x = add_encoder(
                x, num_layers, block, policy, sequence_length=longest
            )
        else:
            x = add_hourglass(
                x, hourglass_factor, num_layers, block, policy, longest
            )
        outputs = add_head(x, num_classes, dropout, activation, policy)
        super().__init__(inputs=tokens, outputs=outputs, **kwargs)
        self.policy = policy

    def serving_preprocessors(self) -> dict:
        """The signature that takes strings, see `export_saved_model`."""
        if self.vocabulary_size != BYTE_VOCABULARY:
            return {}  # the ids may be those of any tokenizer
        text = keras.InputSpec(shape=(None,), dtype="string", name="text")
        return {"serve_text": (text, _bytes_to_tokens)}


def _check_hourglass(factor, num_layers):
    check_factor(factor, "hourglass_factor")
    if factor > 1 and num_layers < 2:
        raise ValueError(
            "An hourglass needs two layers or more: the last one attends over "
            f"all tokens. Received: num_layers={num_layers}, hourglass_factor="
            f"{factor}. Add layers, or raise `merge_factor` instead."
        )


def _bytes_to_tokens(texts):
    """TensorFlow strings `(B,)` to ids `(B, T)`: byte b is b + 1."""
    import tensorflow as tf

    sizes = tf.strings.length(texts)  # in bytes; a text may hold byte 0
    longest = tf.maximum(tf.reduce_max(sizes), 1)
    codes = tf.io.decode_raw(texts, tf.uint8, fixed_length=longest)
    visible = tf.sequence_mask(sizes, longest)
    return tf.where(visible, tf.cast(codes, tf.int32) + 1, 0)
