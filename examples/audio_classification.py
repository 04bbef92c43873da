"""Tells languages apart in raw waveforms, with attention in linear time.

    bash tools/speech_prompts.sh  # fetches the recordings, 98 MB
    python examples/audio_classification.py

Telephone prompts in five languages, 8 kHz, no spectrogram. Training sees parts
of a second at random; the curves and the test see up to four seconds, which are
2,048 frames. The test recordings are used once, at the end, and their prompts
are in no other recording, in any language. Each language has one voice: the
classes are speakers as much as languages (the folders of English and Spanish
both say Allison), and how well the model would hear a stranger's language is
not measured.
"""

import _common
import _data
import keras

import keras_linattn

HELD_OUT = 0.1  # part of the training recordings
LEARNING_RATE = 3e-3
STRIDE = 16  # samples of a frame, by the default of the model
SAMPLE = 8  # recordings for which a saved model is compared
SMOKE_SIZES = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2}
SMOKE_RECORDINGS = (80, 8)  # to train on (8 held out), to test on
SMOKE_BATCH = 8  # divides all of them, so that JAX compiles once


def parse(arguments=None):
    parser = _common.parser(
        __doc__.partition("\n")[0],
        out="out/audio_classification",
        epochs=6,
        batch_size=16,
    )
    parser.add_argument(
        "--length",
        type=_common.positive,
        default=32768,
        help="samples of a recording that are read to test",
    )
    parser.add_argument(
        "--part",
        type=_common.positive,
        default=8192,
        help="samples of a recording that are read to train, at random",
    )
    options = parser.parse_args(arguments)
    if options.smoke:
        options.epochs, options.batch_size = 1, SMOKE_BATCH
        options.length = min(options.length, 16384)
        options.part = min(options.part, 4096)
    return options


def make_task(data, options):
    """The `Task` of training an `AudioClassifier` on a `Dataset` of speech."""
    classes = len(data.class_names)
    labels = keras.utils.to_categorical(data.train_labels, classes)
    test_labels = keras.utils.to_categorical(data.test_labels, classes)
    held_out = round(HELD_OUT * len(labels))

    def batches(waveforms, labels, length, seed=None):
        return _data.WaveformBatches(
            waveforms, labels, length, options.batch_size, seed
        )

    def build(mechanism):
        return keras_linattn.models.AudioClassifier(
            classes,
            mechanism=mechanism,
            **(SMOKE_SIZES if options.smoke else {}),
        )

    test = batches(data.test_inputs, test_labels, options.length)
    return _common.Task(
        name="speech prompts",
        split=_data.split_of(
            len(labels) - held_out,
            held_out,
            len(test_labels),
            f"those of prompts drawn by name with seed {_data.SPLIT_SEED}",
        ),
        build=build,
        train=lambda: batches(
            data.train_inputs[held_out:],
            labels[held_out:],
            options.part,
            options.seed,
        ),
        validation=batches(
            data.train_inputs[:held_out], labels[:held_out], options.length
        ),
        test=test,
        sample=test[0][0][:SAMPLE],  # the longest
        tokens=-(-max(options.length, options.part) // STRIDE),
        learning_rate=LEARNING_RATE,
    )


def main(arguments=None):
    options = parse(arguments)
    data = _common.load(
        _data.load_speech,
        "speech prompts",
        "recordings",
        SMOKE_RECORDINGS if options.smoke else None,
        classes="languages",
    )
    return _common.run(make_task(data, options), options)


if __name__ == "__main__":
    main()
