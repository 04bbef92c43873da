"""What rules without attention score on the tasks of the studies.

    python -m tools.studies.baselines

ListOps: the rule names, for each outermost operator, the commonest value of its
training expressions. It needs no expression to be worked out. Pathfinder: trees
that know only where the circles are. Pixels: how dark the ink of the images is.
"""

import numpy as np

from tools.studies import equal_time
from tools.studies import long_range
from tools.studies import pathfinder
from tools.studies import tasks

DATA = {
    "20 to 100 tokens": lambda: equal_time.Short(seed=0, smoke=False),
    "20 to 200 tokens": lambda: tasks.ListOps(seed=0, smoke=False),
    "500 to 2,000 tokens": long_range.ListOps,
}


def first_token_rule(train, test):
    """Accuracies on the test data, of the rule and of the commonest value.

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


def circles(number):
    """Centres `(number, 2, 2)` of Pathfinder's circles, and labels."""
    generator, found = np.random.default_rng(0), []
    while sum(len(scenes.labels) for scenes in found) < number:
        found.append(pathfinder.make_scenes(generator, pathfinder.CHUNK))
    both = [(scenes.circles, scenes.labels) for scenes in found]
    return [np.concatenate(arrays)[:number] for arrays in zip(*both)]


def tree_rule(features, labels, tested):
    """Test accuracy of boosted trees; the first `tested` rows are the test."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    trees = HistGradientBoostingClassifier(random_state=0)
    trees.fit(features[tested:], labels[tested:])
    return trees.score(features[:tested], labels[:tested])


def black_ink(images):
    """Share of the pixels that are not 0 whose grey value is 250 or more."""
    return np.mean(images[images > 0] >= 250)


def main():
    for name, make in DATA.items():
        task = make()
        rule, overall = first_token_rule(task.train, task.test)
        print(f"{name}: first token {rule:.1%}, commonest value {overall:.1%}")
    task = long_range.Pathfinder
    centres, labels = circles(task.number)
    known = {
        "their distance": pathfinder.span(centres)[:, None],
        "their places": centres.reshape(len(centres), -1),
    }
    for name, features in known.items():
        score = tree_rule(features, labels, task.tested)
        print(f"Pathfinder, circles by {name}: {score:.1%}")
    task = long_range.Pixels()
    task.changed = 1
    varied = task.vary(task.train[0], np.random.default_rng(0))
    shares = black_ink(varied), black_ink(task.test[0])
    print("Black ink: {:.0%} if changed, test {:.0%}".format(*shares))


if __name__ == "__main__":
    main()
