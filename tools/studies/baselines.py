"""What rules without attention score on the data of the studies.

    python -m tools.studies.baselines
    python -m tools.studies.baselines bytes forecasts layout listops
    python -m tools.studies.baselines pathfinder pixels

Without a name it is all of them. Each rule learns from the training data and is
scored on the test data of its study, once: no setting was chosen by a score.
"""

import argparse
import lzma
import warnings

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from tools.studies import equal_time
from tools.studies import long_range
from tools.studies import pathfinder
from tools.studies import tasks

SEEDS = 0, 1, 2  # of studies that draw other expressions for each
DISCOUNT = 0.75  # of a count, for what was never seen


def listops():
    for name, train, test in expressions():
        rule, overall = first_token_rule(train, test)
        yield f"{name}: first token", rule
        counts = token_counts_rule(train, test)
        yield f"{name}: first token and counts of tokens", counts
        yield f"{name}: commonest value", overall


def expressions():
    """Yields each study's name, training data and test data."""
    for seed in SEEDS:
        yield f"ListOps, short, seed {seed}", *of_example(seed)
        for study, task in (
            ("converted models", tasks.ListOps(seed, smoke=False)),
            ("equal time", equal_time.Short(seed, smoke=False)),
        ):
            yield f"{study}, seed {seed}", task.train, task.test
    task = long_range.ListOps()
    yield "500 to 2,000 tokens", task.train, task.test


def of_example(seed):
    """Training and test data of examples/listops.py, as it draws them."""
    _, draw_many = tasks.listops(seed, 20, 200)
    tokens, values, _ = draw_many(14_500)  # 2,000 test, then 500 validation
    train, test = slice(2_500, None), slice(2_000)
    return (tokens[train], values[train]), (tokens[test], values[test])


def first_token_rule(train, test):
    """Accuracies on the test data, of the rule and of the commonest value.

    The rule names, for each outermost operator, the commonest value of its
    training expressions. It needs no expression to be worked out.

    Args:
        train: arrays `(N, length)` of token ids and `(N,)` of values.
        test: likewise.
    """
    tokens, values = train
    commonest = {
        token: np.bincount(values[tokens[:, 0] == token]).argmax()
        for token in np.unique(tokens[:, 0])
    }
    overall = np.bincount(values).argmax()
    tokens, values = test
    named = np.array([commonest.get(x, overall) for x in tokens[:, 0]])
    return np.mean(named == values), np.mean(values == overall)


def token_counts_rule(train, test):
    """Accuracy of boosted trees: the first token, and how often each occurs.

    They do not know which digit belongs to which operation.
    """
    tokens, values = (np.concatenate(x) for x in zip(test, train))
    features = np.c_[tokens[:, 0], counts_of(tokens, 1 + tokens.max())]
    return tree_rule(features, values, len(test[0]))


def counts_of(tokens, vocabulary):
    """How often each of the tokens from 1 on occurs in a row."""
    return np.stack([(tokens == x).sum(1) for x in range(1, vocabulary)], 1)


def byte_models():
    """Bits per byte of the language model's test text."""
    train, test = tasks.newsgroups()
    test = test[: 1 << 20]
    yield "xz, the test text only", packed(test)
    yield "xz, after the training text", packed(test, train)
    for order, bits in enumerate(n_gram_bits(train, test, 6)):
        yield f"the {order} bytes before, counted", bits
    shared = shared_sequences(train.split(), test.split(), 12)
    yield "sequences of 12 words that are in the training text too", shared


def shared_sequences(train, test, length):
    """Share of the test's sequences of words that the training text has."""

    def sequences(words):
        return set(zip(*(words[start:] for start in range(length))))

    found = sequences(test)
    return len(found & sequences(train)) / len(found)


def packed(text, before=b""):
    """Bits per byte of what a text adds to a packed text before it."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 26}]
    sizes = [
        len(lzma.compress(x, format=lzma.FORMAT_RAW, filters=filters))
        for x in (before, before + text)
    ]
    return 8 * (sizes[1] - sizes[0]) / len(text)


def n_gram_bits(train, test, order):
    """Bits per byte of counts in the training text.

    Shorter contexts are interpolated, with absolute discounting (Chen, Goodman,
    1999, "An empirical study of smoothing techniques for language modeling",
    section 2.5).

    Returns:
        List of `order + 1` numbers: with no context, with 1 byte, and so on.
    """
    alphabet, both = np.unique(
        np.frombuffer(train + test, "uint8"), return_inverse=True
    )
    size = len(alphabet)
    ids, test = np.split(both.astype("uint64"), [len(train)])
    likely, bits = np.full(len(test), 1 / size), []
    for length in range(order + 1):
        seen, times = np.unique(grams(ids, length, size), return_counts=True)
        contexts, starts = np.unique(seen // np.uint64(size), return_index=True)
        kinds = np.diff([*starts, len(seen)])
        total = np.add.reduceat(times, starts)
        found = grams(test, length, size)
        count = lookup(seen, times, found)
        context = found // np.uint64(size)
        kinds, total = (lookup(contexts, x, context) for x in (kinds, total))
        shorter = likely[length:]
        longer = np.maximum(count - DISCOUNT, 0) + DISCOUNT * kinds * shorter
        longer = longer / np.maximum(total, 1)
        likely[length:] = np.where(total > 0, longer, shorter)
        bits.append(-np.log2(likely).mean())
    return bits


def grams(ids, length, size):
    """A number for each id with the `length` ids before it."""
    number = np.zeros(len(ids) - length, "uint64")
    for place in range(length + 1):
        there = ids[place : place + len(number)]
        number = number * np.uint64(size) + there
    return number


def lookup(names, values, wanted):
    """The values of the names wanted, 0 where there is no such name."""
    place = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
    return np.where(names[place] == wanted, values[place], 0)


def forecasts():
    """Scores of boosted trees on the data of examples/time_series.py."""
    data, week = tasks.example_data(), 7 * 24
    counts, hours, _ = data.load_pedestrians()
    series = np.sqrt(counts)
    (windows,) = tasks.definitions(
        "time_series.py",
        ("windows",),
        **{"hours": hours, "series": series, "given": np.isfinite(series)},
        midnights=np.flatnonzero(hours == hours.astype("datetime64[D]"))[:-1],
        **{"length": 8 * week, "horizon": 24, "batch_size": 64, "data": data},
        **{"city": np.zeros(len(hours)), "calendar": data.calendar_of(hours)},
    )
    x, y, _, _ = hourly(windows("2023-01-01", "2025-01-01"))
    test, truth, center, scale = hourly(windows("2025-04-01", "2026-01-01"))
    known, quantiles, found = np.isfinite(y), (0.1, 0.5, 0.9), []
    for quantile in quantiles:
        trees = HistGradientBoostingRegressor(
            loss="quantile", quantile=quantile, max_iter=150, random_state=0
        ).fit(x[known], y[known])
        found.append(trees.predict(test).reshape(-1, 24) * scale + center)
    found = np.maximum(np.sort(np.stack(found, axis=-1)), 0) ** 2
    truth = (truth.reshape(-1, 24) * scale + center) ** 2
    scores = data.forecast_scores(truth, found, quantiles)
    yield from ((f"boosted trees, {name}", x) for name, x in scores.items())


def hourly(batches):
    """A row for each hour ahead: features, and the value; mean, deviation.

    The features are the hour and the calendar, that hour of eight weeks and
    three days before, and means and deviation of the history.
    """
    (past, _, known), ahead = batches.whole()
    past, ahead = past[..., 0], ahead[..., 0]
    center = np.nanmean(past, axis=1, keepdims=True)
    scale = np.nanstd(past, axis=1, keepdims=True) + 1e-6
    days = ((past - center) / scale).reshape(len(past), -1, 24)
    weeks = [days[:, -7 * number] for number in range(1, 9)]
    hours = [days[:, -number] for number in (1, 2, 3)]
    with warnings.catch_warnings():  # a day or a week may lack all values
        warnings.simplefilter("ignore", RuntimeWarning)
        means = [np.nanmean(days[:, -x:], axis=(1, 2)) for x in (1, 7)]
        middle = np.nanmedian(weeks[:4], axis=0)
    calendar = known[:, -24:].reshape(-1, known.shape[-1])
    rows = [np.repeat(x, 24) for x in (*means, days[:, -1, -1], scale[:, 0])]
    columns = [x.ravel() for x in (*weeks, middle, *hours)]
    features = np.column_stack([*columns, *rows, calendar])
    return features, ((ahead - center) / scale).ravel(), center, scale


def layout():
    """Accuracies on the pages of examples/document_layout.py."""
    data = tasks.example_data()
    train, test, _ = data.load_texts("r8")
    names = sorted({word for text in train[0] for word in text.split()})
    ids = {word: number for number, word in enumerate(names, 2)}
    counts = np.full((max(train[1]) + 1, len(ids) + 2), 0.1)
    for text, topic in zip(*train):
        np.add.at(counts[topic], [ids[word] for word in text.split()], 1)
    chances = np.log(counts / counts.sum(axis=1, keepdims=True))
    pages = data.TopicPages(*test, ids, 16, 40, (1,))
    right = {"each page is one column": [], "columns between white gaps": []}
    every = []
    for inputs, topics, weights in (pages[i] for i in range(len(pages))):
        for words, boxes, truth, weight in zip(
            inputs["words"], inputs["boxes"], topics, weights
        ):
            words, boxes, truth = (x[weight > 0] for x in (words, boxes, truth))
            every.append(truth)
            one = np.zeros(len(words), int)
            for name, columns in zip(right, (one, columns_of(boxes))):
                named = topics_of(chances[:, words], columns)
                right[name].append(named == truth)
    for name, of_pages in right.items():
        yield f"naive Bayes, {name}", np.concatenate(of_pages).mean()
    every = np.concatenate(every)
    yield "commonest topic", np.bincount(every).max() / len(every)


def columns_of(boxes, cells=4000):
    """The number of each box's column: they lie between white gaps."""
    left, right = (np.rint(boxes[:, [0, 2]] * cells).astype(int)).T
    change = np.bincount(left, minlength=cells + 1)
    change = change - np.bincount(right, minlength=cells + 1)
    black = np.cumsum(change) > 0
    starts = black & ~np.concatenate([[False], black[:-1]])
    return np.cumsum(starts)[left]


def topics_of(chances, columns):
    """The likeliest topic of each word's column, of chances `(topics, N)`."""
    named = np.zeros(len(columns), int)
    for column in np.unique(columns):
        here = columns == column
        named[here] = chances[:, here].sum(axis=1).argmax()
    return named


def paths():
    """Yields the rules of both forms of Pathfinder."""
    for task in (long_range.Pathfinder, long_range.SmallPathfinder):
        for name, score in paths_of(task):
            yield f"{task.form.size} x {task.form.size}: {name}", score


def paths_of(task):
    """Accuracies on Pathfinder, without following a path."""
    size = task.form.size
    images, labels, centres = pathfinder.make_rows(task.number, 0, task.form)
    apart = distances(centres[:, 0] - centres[:, 1])
    middle = centres.mean(axis=1) - size / 2
    coarse = images.reshape(-1, 8, size // 8, 8, size // 8).mean(axis=(2, 4))
    known = {
        "distance of the circles": apart,
        "places of the circles": np.c_[
            centres.reshape(-1, 4),
            apart,
            distances(middle),
        ],
        "number of grey pixels": (images > 0).sum((1, 2))[:, None],
        "8 x 8 pixels": coarse.reshape(len(coarse), -1),
    }
    for name, features in known.items():
        yield name, tree_rule(features, labels, task.tested)


def distances(steps):
    return np.linalg.norm(steps, axis=1, keepdims=True)


def tree_rule(features, labels, tested):
    """Test accuracy of boosted trees; the first `tested` rows are the test."""
    trees = HistGradientBoostingClassifier(max_iter=60, random_state=0)
    trees.fit(features[tested:], labels[tested:])
    return trees.score(features[:tested], labels[:tested])


def pixels():
    """Accuracies on the pixels of MNIST-5k, and how dark their ink is."""
    task = long_range.Pixels()
    train, test = (
        (images / 255.0, labels) for images, labels in (task.train, task.test)
    )
    for name, model in (
        ("logistic regression", LogisticRegression(C=0.1, max_iter=200)),
        ("support vectors", SVC(C=5)),
    ):
        yield f"{name}, no image changed", model.fit(*train).score(*test)
    task.changed = 1
    varied = task.vary(task.train[0], np.random.default_rng(0))
    yield "black ink of changed images", black_ink(varied)
    yield "black ink of the test", black_ink(task.test[0])


def black_ink(images):
    """Share of the pixels that are not 0 whose grey value is 250 or more."""
    return np.mean(images[images > 0] >= 250)


RULES = {
    "listops": listops,
    "bytes": byte_models,
    "forecasts": forecasts,
    "layout": layout,
    "pathfinder": paths,
    "pixels": pixels,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names or list(RULES)
    unknown = set(names) - set(RULES)
    if unknown:
        parser.error(
            f"NAME must be of {', '.join(RULES)}. "
            f"Received: {', '.join(sorted(unknown))}."
        )
    for name in names:
        for rule, score in RULES[name]():
            text = f"{score:.1%}" if score <= 1 else f"{score:.3f}"
            print(f"{name}: {rule}: {text}", flush=True)
