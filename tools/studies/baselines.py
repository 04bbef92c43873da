"""What a rule without a model scores on ListOps: reads the first token only.

    python -m tools.studies.baselines

The rule names, for each outermost operator, the commonest value of its
training expressions. It needs no expression to be worked out.
"""

import numpy as np

from tools.studies import equal_time
from tools.studies import long_range
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


if __name__ == "__main__":
    for name, make in DATA.items():
        task = make()
        rule, overall = first_token_rule(task.train, task.test)
        print(f"{name}: first token {rule:.1%}, commonest value {overall:.1%}")
