"""Sequences of multi-query associative recall (Arora et al. 2023).

    key value key value ... key . . key key . key ...

Pairs first, then each key once more, in random order, where its value is asked
for. The gaps before the questions follow a power law: most are short.
"""

import keras
import numpy as np

SHORTEST = 64  # tokens, where the pairs leave it open
FILLER = 0  # the token where nothing is asked
SYMBOLS = 128  # as many keys (1 to 128) as values (129 to 256)
POWER = 0.01  # of the gaps' power law: the smaller, the more gaps are short


def sequence_length(pairs):
    """Tokens of a sequence: the list, and room for as many questions."""
    return max(SHORTEST, 4 * pairs)


def draw(generator, size, pairs, power=POWER):
    """Draws sequences and their answers.

    Args:
        generator: `numpy.random.Generator`.
        size: int > 0, number of sequences N.
        pairs: int in [1, SYMBOLS], pairs of each.
        power: float > 0, a: gap g is drawn with weight g^(a - 1). Defaults to
            `POWER`.

    Returns:
        Two int32 arrays `(N, T)`: the tokens, and the answers, which are
        `FILLER` where nothing is asked.
    """
    length = sequence_length(pairs)
    keys, values = (
        1 + generator.random((size, SYMBOLS)).argsort(axis=1)[:, :pairs]
        for _ in range(2)
    )
    values += SYMBOLS
    tokens = np.full((size, length), FILLER, "int32")
    answers = np.full((size, length), FILLER, "int32")
    tokens[:, 0 : 2 * pairs : 2] = keys
    tokens[:, 1 : 2 * pairs : 2] = values
    # Places without replacement: the largest of log-weight + Gumbel noise.
    places = (length - 2 * pairs) // 2
    weights = (power - 1) * np.log(np.arange(1, places + 1))
    scores = weights + generator.gumbel(size=(size, places))
    chosen = 2 * pairs + 2 * scores.argsort(axis=1)[:, -pairs:]
    order = generator.random((size, pairs)).argsort(axis=1)
    chosen = np.take_along_axis(chosen, order, axis=1)
    np.put_along_axis(tokens, chosen, keys, axis=1)
    np.put_along_axis(answers, chosen, values, axis=1)
    return tokens, answers


class RecallBatches(keras.utils.PyDataset):
    """Batches of sequences, of one size of each; new ones in every epoch.

    Args:
        pairs: sequence of ints, the sizes, which take turns.
        number: int > 0, of batches.
        batch_size: int > 0, sequences of a batch.
        seed: sequence of ints.
        renewed: bool, whether each epoch draws anew. Defaults to `False`.
    """

    def __init__(self, pairs, number, batch_size, seed, renewed=False):
        super().__init__()
        # The longest first, then the shortest: under TensorFlow, Keras frees
        # the axes in which the first two batches differ.
        self.pairs = [max(pairs), *sorted(pairs)[:-1]]
        self.number = number
        self.batch_size = batch_size
        self.seed = tuple(seed)
        self.renewed = renewed
        self.epoch = 0

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        # Seeded for each batch: Keras may ask for them in any order.
        generator = np.random.default_rng([*self.seed, self.epoch, index])
        pairs = self.pairs[index % len(self.pairs)]
        tokens, answers = draw(generator, self.batch_size, pairs)
        return tokens, answers, (answers != FILLER).astype("float32")

    def on_epoch_end(self):
        self.epoch += self.renewed
