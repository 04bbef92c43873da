"""One run of the study `language_model`: a modern stack learns bytes.

`job.py` runs this file as it runs an example. Each stack has the same blocks,
reads the same bytes in the same order, and differs in its mechanism only.
Softmax and `local` have rotary positions besides.
"""

import argparse
import functools
import math
import time

import keras
import numpy as np

import keras_linattn
from keras_linattn import mechanisms
from tools.studies.mechanisms import entries_of
from tools.studies.optimizers import adamw
from tools.studies.tasks import Drawn
from tools.studies.tasks import draw_rows
from tools.studies.tasks import newsgroups
from tools.studies.tasks import windows

ROTARY = ("softmax", "local")
EXTENT = 16  # of the longest windows tested, in training lengths


def parse():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--mechanism", nargs="+", default=["gated_delta"], help="repeats")
    add("--steps", type=int, default=1200)
    add("--width", type=int, default=256, help="F; heads have 64")
    add("--batch-size", type=int, default=32, help="windows of 512 bytes")
    add("--seed", type=int, default=0)
    add("--out", help="not used: the caller keeps the results")
    add("--smoke", action="store_true", help="a tiny, quick run")
    return parser.parse_args()


def make_model(entries, width):
    """A `CausalLM` of four modern blocks.

    Args:
        entries: list of mechanisms, see `mechanisms` of `CausalLM`.
        width: int, F.
    """
    options = {"use_gate": True, "kernel_size": 4}
    rotary = {**options, "rope_max_wavelength": 10000}
    return keras_linattn.models.CausalLM(
        hidden_dim=width,
        num_layers=4,
        num_heads=width // 64 or 1,
        intermediate_dim=width * 8 // 3,
        mechanism=entries,
        attention_options=[
            rotary if is_rotary(entry) else options for entry in entries
        ],
        kernel_size=None,  # the blocks have convolutions of their own
        normalization="rms",
        use_bias=False,
        activation="silu",
        use_feedforward_gate=True,
        tie_embeddings=True,
    )


def is_rotary(entry):
    return mechanisms.name_of(mechanisms.get(entry)) in ROTARY


def bits_at_positions(model, text, length):
    """Mean bits of the byte at each position of windows `[length]`."""
    tokens, targets = windows(text, length)
    rows = max(1, 16384 // length)
    total = np.zeros(length)
    for start in range(0, len(tokens), rows):
        # Rows of a last, shorter batch: the first ones once more, not counted.
        place = np.arange(start, start + rows)
        logits = model.predict_on_batch(tokens[place % len(tokens)])
        losses = keras.ops.sparse_categorical_crossentropy(
            targets[place % len(tokens)], logits, from_logits=True
        )
        losses = keras.ops.convert_to_numpy(losses)
        total += losses[place < len(tokens)].sum(0)
    return total / len(tokens) / math.log(2)


def by_distance(bits, length):
    """Means of the parts that end at `length`, twice as far, and so on."""
    ends = [length]
    while ends[-1] < len(bits):
        ends.append(2 * ends[-1])
    starts = [0, *ends[:-1]]
    return {
        f"{start:,} to {end:,}": float(bits[start:end].mean())
        for start, end in zip(starts, ends, strict=True)
    }


if __name__ == "__main__":
    args = parse()
    steps, width, batch_size = args.steps, args.width, args.batch_size
    length, tested = 512, 1 << 20
    if args.smoke:
        steps, length, batch_size, tested, width = 4, 32, 2, 2048, 16
    train, test = newsgroups()
    test = test[:tested]
    keras.utils.set_random_seed(args.seed)
    model = make_model(entries_of(args.mechanism), width)
    model.compile(
        adamw(steps, 2e-3, 0.05, weight_decay=0.1, beta_2=0.95),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    rows = windows(train, length)
    draw = functools.partial(draw_rows, rows, batch_size)
    batches = Drawn(draw, steps, (args.seed,))
    started = time.perf_counter()
    history = model.fit(batches, verbose=0)
    seconds = time.perf_counter() - started
    near = bits_at_positions(model, test, length)
    far = bits_at_positions(model, test, EXTENT * length)
    metrics = {"bits per byte": float(near.mean())}
    curve = by_distance(far, length)
    print(args.mechanism, metrics, curve, f"{seconds:.0f} s")
