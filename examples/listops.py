"""Works out nested operations on digits: ListOps of the Long Range Arena.

    python examples/listops.py
    python examples/listops.py --mechanism softmax modified_linformer
    python examples/listops.py --published

The model reads an expression such as `[MAX 4 3 [MIN 2 3 ] 1 ]` token by token
and names its value, one of ten digits. By default a small setting that a CPU
trains in minutes: up to 200 tokens. `--published` has the sizes of the Long
Range Arena: 500 to 2,000 tokens, 96,000 expressions to train on, 2,000 held
out, 2,000 to test on. No data are needed: they are drawn.

Source: Tay et al. 2021, arXiv 2011.04006. Differs from it: the expressions are
drawn anew, and the model is a `TextClassifier`, whose n-grams take the place
of positions.
"""

import _common
import _data
import _listops
import keras
import numpy as np

import keras_linattn

REDUCED = {
    "shortest": 20,
    "longest": 200,
    "train": 12000,
    "held_out": 500,
    "test": 2000,
}
PUBLISHED = {
    "shortest": 500,
    "longest": 2000,
    "train": 96000,
    "held_out": 2000,
    "test": 2000,
}
SMOKE_NUMBERS = {"train": 16, "held_out": 8, "test": 8}
# Accuracy in percent, Tay et al. 2021, table 1.
PUBLISHED_RESULTS = {
    "Transformer": 36.37,
    "Linformer": 35.70,
    "Performer": 18.01,
    "Linear Transformer": 16.13,
}
LEARNING_RATE = 2e-3
SAMPLE = 8  # expressions for which a saved model is compared
SIZES = {"hidden_dim": 64, "num_layers": 2, "num_buckets": 4096}
SMOKE_SIZES = {"hidden_dim": 16, "num_layers": 1, "num_buckets": 256}


def parse(arguments=None):
    parser = _common.parser(
        __doc__.partition("\n")[0],
        out="out/listops",
        epochs=4,
        batch_size=32,
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="lengths and numbers of the Long Range Arena: long on a CPU",
    )
    options = parser.parse_args(arguments)
    if options.smoke:
        options.epochs, options.batch_size = 1, 8
    return options


def setting_of(options):
    """Lengths, and how many expressions each split has."""
    setting = PUBLISHED if options.published else REDUCED
    return {**setting, **(SMOKE_NUMBERS if options.smoke else {})}


def load(setting, seed):
    """A `Dataset` of expressions, held out ones at the start of training."""
    parts = [setting[name] for name in ("held_out", "train", "test")]
    expressions, values = _listops.dataset(
        seed, sum(parts), setting["shortest"], setting["longest"]
    )
    known = sum(parts[:2])
    return _data.Dataset(
        expressions[:known],
        values[:known],
        expressions[known:],
        values[known:],
        [str(digit) for digit in range(_listops.DIGITS)],
    )


def make_task(data, setting, options):
    """The `Task` of training a `TextClassifier` on expressions."""
    labels, test_labels = (
        keras.utils.to_categorical(values, _listops.DIGITS)
        for values in (data.train_labels, data.test_labels)
    )
    held_out = setting["held_out"]

    def batches(expressions, labels, seed=None):
        return _data.TokenBatches(
            expressions, labels, setting["longest"], options.batch_size, seed
        )

    def build(mechanism):
        return keras_linattn.models.TextClassifier(
            _listops.DIGITS,
            vocabulary_size=1 + len(_listops.TOKENS),
            merge_factor=1,
            mechanism=mechanism,
            **(SMOKE_SIZES if options.smoke else SIZES),
        )

    counts = np.bincount(data.test_labels, minlength=_listops.DIGITS)
    return _common.Task(
        name="ListOps" if options.published else "ListOps, short",
        split=_data.split_of(
            len(labels) - held_out,
            held_out,
            len(test_labels),
            f"the last of all drawn with seed {options.seed}, no two alike",
        ),
        build=build,
        train=lambda: batches(
            data.train_inputs[held_out:], labels[held_out:], options.seed
        ),
        validation=batches(data.train_inputs[:held_out], labels[:held_out]),
        test=batches(data.test_inputs, test_labels),
        sample=_data.to_tokens(data.test_inputs[:SAMPLE], setting["longest"]),
        tokens=setting["longest"],
        learning_rate=LEARNING_RATE,
        label_smoothing=0.0,
        notes={
            "setting": setting,
            "mean_length": float(np.mean([*map(len, data.test_inputs)])),
            "commonest_value": float(counts.max() / counts.sum()),
            "published_results": PUBLISHED_RESULTS,
        },
    )


def table(results, notes):
    """Test accuracies, and what the paper has, as Markdown."""
    heads = ["model", "parameters", "test accuracy, %", "s training"]
    rows = [
        [
            f"`{result['mechanism']}`",
            f"{result['parameters']:,}",
            f"{100 * result['test_accuracy']:.2f}",
            f"{sum(result['seconds_per_epoch']):.0f}",
        ]
        for result in results
    ]
    guess = f"{100 * notes['commonest_value']:.2f}"
    rows.append(["always the commonest value", "", guess, ""])
    for name, accuracy in PUBLISHED_RESULTS.items():
        name = f"published, 500 to 2,000 tokens, other sizes: {name}"
        rows.append([name, "", f"{accuracy:.2f}", ""])
    return _common.markdown(heads, rows)


def main(arguments=None):
    options = parse(arguments)
    setting = setting_of(options)
    print(
        f"ListOps: {setting['train']:,} expressions of {setting['shortest']} "
        f"to {setting['longest']:,} tokens to train on, {setting['test']:,} "
        "to test on; drawing them"
    )
    data = load(setting, options.seed)
    print(_listops.text(min(data.test_inputs, key=len)))
    task = make_task(data, setting, options)
    return _common.run(
        task,
        options,
        table=lambda results: table(results, task.notes),
        page="listops.md",
    )


if __name__ == "__main__":
    main()
