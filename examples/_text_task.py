"""What the examples that classify texts share: options, splits, batches."""

import _common
import _data
import _texts
import keras

HELD_OUT = 0.1  # part of the training documents
SAMPLE = 8  # documents for which a saved model is compared
SMOKE_DOCUMENTS = (80, 8)  # to train on (8 held out), to test on
SMOKE_BATCH = 8  # divides all of them, so that JAX compiles once
MAX_LENGTH = 65536  # beyond it memory is wasted: batches are padded


def parser(description, defaults, unit, out):
    """The options of a text example.

    Args:
        description: str, of the example.
        defaults: dict of options, the same for all corpora unless
            `parse` is told otherwise.
        unit: str, what the length of a document is counted in.
        out: str, folder of what is written.
    """
    result = _common.parser(
        description,
        out=out,
        epochs=defaults["epochs"],
        batch_size=defaults["batch_size"],
    )
    result.add_argument("--dataset", choices=_texts.CORPORA, default="r8")
    result.add_argument(
        "--length",
        type=_common.integer(1, MAX_LENGTH),
        default=defaults["length"],
        help=f"{unit} of a document that are read",
    )
    return result


def parse(result, arguments, of_corpus, smoke_length):
    """Parses; what is not said has the default of the corpus, if it has one.

    Args:
        result: the parser.
        arguments: list of str, or `None` for those of the command line.
        of_corpus: dict, for some corpora a dict of their defaults.
        smoke_length: int > 0, the longest document of a smoke run.
    """
    dataset = result.parse_known_args(arguments)[0].dataset
    result.set_defaults(**of_corpus.get(dataset, {}))
    options = result.parse_args(arguments)
    if options.smoke:
        options.epochs, options.batch_size = 1, SMOKE_BATCH
        options.length = min(options.length, smoke_length)
    return options


def load(options):
    """The `Dataset` of the options, or the end with a message."""
    return _common.load(
        lambda: _data.load_texts(options.dataset),
        options.dataset,
        "documents",
        SMOKE_DOCUMENTS if options.smoke else None,
    )


def held_out(data):
    """How many documents at the start of the training data are held out."""
    return round(HELD_OUT * len(data.train_labels))


def make_task(data, options, to_tokens, shortest, **arguments):
    """The `Task` of training a classifier on a `Dataset` of texts.

    Args:
        data: `Dataset`.
        options: with `dataset`, `batch_size` and `seed`.
        to_tokens: function of a list of texts that returns an int array
            `(N, length)`, 0 = padding at the end.
        shortest: int > 0, to which batches are padded at least.
        **arguments: of the `Task`.
    """
    classes = len(data.class_names)
    labels = keras.utils.to_categorical(data.train_labels, classes)
    test_labels = keras.utils.to_categorical(data.test_labels, classes)
    train_tokens = to_tokens(data.train_inputs)
    test_tokens = to_tokens(data.test_inputs)
    held = held_out(data)

    def batches(tokens, labels, seed=None):
        return _data.PaddedBatches(
            tokens, labels, options.batch_size, shortest, seed
        )

    return _common.Task(
        name=options.dataset,
        split=_data.split_of(
            len(labels) - held,
            held,
            len(test_labels),
            _texts.tested_on(options.dataset),
        ),
        train=lambda: batches(train_tokens[held:], labels[held:], options.seed),
        validation=batches(train_tokens[:held], labels[:held]),
        test=batches(test_tokens, test_labels),
        sample=test_tokens[:SAMPLE],
        **arguments,
    )
