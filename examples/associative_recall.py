"""How many pairs a causal attention keeps: multi-query associative recall.

    python examples/associative_recall.py
    python examples/associative_recall.py --mechanism delta_rule softmax

A sequence lists pairs of a key and a value, then asks for the keys again, in
random order and with gaps that follow a power law; at each question the model
must name the value. One model is trained on all the sizes in turn and tested
on each. Softmax looks the pairs up; attention in linear time must hold them in
a state of fixed size. No data are needed: they are drawn.

Source: Arora et al. 2023, arXiv 2312.04927 (Zoology). Differs from it: smaller
vocabulary and model, positions without a question hold a filler, training
sequences are never repeated, one learning rate for all mechanisms.
"""

import argparse

import _common
import _recall
import keras
import matplotlib

import keras_linattn

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot  # noqa: E402  (after the choice above)

MECHANISMS = (
    "softmax",
    "linear_transformer",
    "retention",
    "delta_rule",
    "gated_delta",
)
PAIRS = (4, 8, 16, 32, 64)
HIDDEN_DIM = 64
NUM_HEADS = 2
NUM_LAYERS = 2
KERNEL = 4  # tokens that the convolution before each block sees
BATCHES_PER_EPOCH = 200
HELD_OUT_BATCHES = 4  # of each size, for the curves
TEST_BATCHES = 16  # of each size
TRAIN, HELD_OUT, TEST = range(3)  # seeds that part the splits


def parse(arguments=None):
    parser = _common.parser(
        __doc__.partition("\n")[0],
        out="out/associative_recall",
        epochs=5,
        batch_size=64,
    )
    parser.set_defaults(mechanism=list(MECHANISMS))
    parser.add_argument(
        "--pairs",
        nargs="+",
        type=number_of_pairs,
        default=list(PAIRS),
        help="sizes to train and to test on",
    )
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    options = parser.parse_args(arguments)
    if options.smoke:
        options.epochs, options.batch_size = 1, 4
        options.pairs = options.pairs[:2]
    options.pairs = sorted(set(options.pairs))
    return options


def number_of_pairs(text):
    """An int on the command line, for which there are symbols enough."""
    number = _common.positive(text)
    if number > _recall.SYMBOLS:
        raise argparse.ArgumentTypeError(
            f"must be at most {_recall.SYMBOLS}, the number of keys. "
            f"Received: {text}."
        )
    return number


def build(mechanism):
    """A decoder without positions, with a short convolution before each block.

    The convolution lets a value see its key, the same for all mechanisms.
    """
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(1 + 2 * _recall.SYMBOLS, HIDDEN_DIM)(tokens)
    for _ in range(NUM_LAYERS):
        near = keras.layers.LayerNormalization(epsilon=1e-5)(x)
        near = keras.layers.Conv1D(HIDDEN_DIM, KERNEL, padding="causal")(near)
        x = keras.layers.Add()([x, near])
        x = keras_linattn.LinearTransformerDecoder(
            2 * HIDDEN_DIM,
            NUM_HEADS,
            activation="gelu",
            normalize_first=True,
            mechanism=mechanism,
        )(x)
    x = keras.layers.LayerNormalization(epsilon=1e-5)(x)
    return keras.Model(tokens, keras.layers.Dense(1 + 2 * _recall.SYMBOLS)(x))


def make_task(options):
    """The `Task` of recalling pairs of all the sizes."""

    def batches(pairs, number, *seed, renewed=False):
        return _recall.RecallBatches(
            pairs, number, options.batch_size, seed, renewed
        )

    sizes = options.pairs
    numbers = (BATCHES_PER_EPOCH, HELD_OUT_BATCHES, TEST_BATCHES)
    number, held_out, tested = (4, 1, 1) if options.smoke else numbers
    return _common.Task(
        name="associative recall",
        split="batches drawn with a seed for each split: "
        f"{number * options.epochs:,} to train on, never twice, and of each "
        f"size {held_out} held out and {tested} to test on, "
        f"{options.batch_size} sequences each",
        build=build,
        train=lambda: batches(
            sizes,
            number,
            TRAIN,
            options.seed,
            renewed=True,
        ),
        validation=batches(sizes, held_out * len(sizes), HELD_OUT),
        test={str(pairs): batches([pairs], tested, TEST) for pairs in sizes},
        sample=batches(sizes, 1, TEST)[0][0][:4],
        tokens=_recall.sequence_length(sizes[-1]),
        learning_rate=options.learning_rate,
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        unit="question",
        export=False,
        notes={
            "steps": number * options.epochs,
            "keys": _recall.SYMBOLS,
            "values": _recall.SYMBOLS,
        },
    )


def table(results):
    """Test accuracies in percent, and those of guesses, in Markdown."""
    sizes = list(results[0]["test"])
    heads = [
        f"{n} pairs, {_recall.sequence_length(int(n))} tokens" for n in sizes
    ]
    rows = [
        [
            f"`{result['mechanism']}`",
            *[f"{100 * result['test'][n]['accuracy']:.1f}" for n in sizes],
            f"{sum(result['seconds_per_epoch']):.0f}",
        ]
        for result in results
    ]
    guesses = [f"{100 / int(n):.1f}" for n in sizes]
    rows.append(["a guess among the sequence's values", *guesses, ""])
    guesses = [f"{100 / _recall.SYMBOLS:.1f}"] * len(sizes)
    rows.append(["a guess among all values", *guesses, ""])
    return _common.markdown(["mechanism", *heads, "s training"], rows)


def plot(results, path):
    """Accuracy against the number of pairs, a line for each mechanism."""
    figure, axis = pyplot.subplots(figsize=(6, 4))
    sizes = [int(n) for n in results[0]["test"]]
    for result in results:
        accuracies = [100 * x["accuracy"] for x in result["test"].values()]
        axis.plot(sizes, accuracies, "o-", label=result["mechanism"])
    guesses = [100 / n for n in sizes]
    axis.plot(sizes, guesses, "k:", label="guess among the values")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(n) for n in sizes])
    axis.set_xlabel("pairs of key and value in the sequence")
    axis.set_ylabel("test accuracy (%)")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments=None):
    options = parse(arguments)
    task = make_task(options)
    steps = task.notes["steps"]
    print(
        f"associative recall: {steps:,} steps of {options.batch_size} "
        f"sequences, {', '.join(map(str, options.pairs))} pairs in turn"
    )
    results = _common.run(task, options, table=table, page="recall.md")
    plot(results, options.out / "recall.png")
    return results


if __name__ == "__main__":
    main()
