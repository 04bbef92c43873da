"""Nested operations on lists of digits: ListOps of the Long Range Arena.

    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]

is 5. An operation has two to ten operands, each a digit or an operation again.
MIN and MAX are what they say; MED is the median, of an even number of operands
the mean of the two in the middle, rounded down; SM is the sum modulo 10. So
each value is a digit.

A token is a byte here, the index of its text in `TOKENS`: the operator with
its bracket, a digit, or the bracket that closes. `_data.TokenBatches` makes
ids of them, of which 0 pads.

Source: Tay et al. 2021, arXiv 2011.04006 (Long Range Arena), section 2.2.1;
Nangia and Bowman 2018, arXiv 1804.06028 (the task). Differs from it: the
expressions are drawn anew, not read from the published files.
"""

import random

import numpy as np

OPERATORS = ("MIN", "MAX", "MED", "SM")
TOKENS = (*"0123456789", *(f"[{name}" for name in OPERATORS), "]")
DIGITS = 10
CLOSE = len(TOKENS) - 1
LEVELS = 10  # of a tree, its digits included
MOST_OPERANDS = 10
NESTED = 0.25  # how often an operand is an operation, where it may be


def draw(generator, shortest, longest, levels=LEVELS, operands=MOST_OPERANDS):
    """Draws an expression; its length is left to chance within the bounds.

    Args:
        generator: `random.Random`, quicker than NumPy's for single numbers.
        shortest: int >= 4, tokens at least.
        longest: int >= `shortest`, tokens at most.
        levels: int >= 2, of the tree at most. Defaults to `LEVELS`.
        operands: int >= 2, of an operation at most. Defaults to
            `MOST_OPERANDS`.

    Returns:
        `bytes`, the tokens.

    Raises:
        ValueError: if there is no such expression.
    """
    _check(shortest, longest, levels, operands)
    while True:
        tokens = bytearray()
        finished = _grow(tokens, generator, longest, levels, operands)
        if finished and len(tokens) >= shortest:
            return bytes(tokens)


def _check(shortest, longest, levels, operands):
    if levels < 2 or operands < 2:
        raise ValueError(
            "An expression has two levels and two operands at least. "
            f"Received: levels={levels}, operands={operands}."
        )
    full = 1  # tokens of the largest tree
    for _ in range(levels - 1):
        full = 2 + operands * full
    if not 4 <= shortest <= min(longest, full):
        raise ValueError(
            "`shortest` must be 4 or more, and at most `longest` and the "
            f"{full} tokens of the largest tree. Received: "
            f"shortest={shortest}, longest={longest}."
        )


def _grow(tokens, generator, longest, levels, operands):
    """Appends an operation; `False` as soon as it is longer than `longest`."""
    tokens.append(DIGITS + generator.randrange(len(OPERATORS)))
    for _ in range(generator.randint(2, operands)):
        if levels > 2 and generator.random() < NESTED:
            if not _grow(tokens, generator, longest, levels - 1, operands):
                return False
        else:
            tokens.append(generator.randrange(DIGITS))
        if len(tokens) >= longest:  # it must still be closed
            return False
    tokens.append(CLOSE)
    return True


def value(tokens):
    """The digit that an expression is worth.

    Args:
        tokens: `bytes`, of one expression.

    Returns:
        int in [0, 9].

    Raises:
        ValueError: if the tokens are no expression.
    """
    open_lists = [[]]  # the last one is the innermost
    for token in tokens:
        if token == CLOSE and len(open_lists) > 1:
            operator, *digits = open_lists.pop()
            open_lists[-1].append(_applied(operator, digits))
        elif token < DIGITS:
            open_lists[-1].append(token)
        elif token < CLOSE:
            open_lists.append([token])
        else:
            _refuse(tokens)
    if len(open_lists) != 1 or len(open_lists[0]) != 1:
        _refuse(tokens)
    return open_lists[0][0]


def _refuse(tokens):
    raise ValueError(
        "`tokens` must be one whole expression of operations with operands. "
        f"Received: {tokens!r}."
    )


def _applied(operator, digits):
    if not digits:
        _refuse(bytes([operator, CLOSE]))
    name = OPERATORS[operator - DIGITS]
    if name == "MIN":
        return min(digits)
    if name == "MAX":
        return max(digits)
    if name == "SM":
        return sum(digits) % 10
    middle = sorted(digits)[(len(digits) - 1) // 2 : len(digits) // 2 + 1]
    return sum(middle) // len(middle)


def text(tokens):
    """An expression as people write it."""
    return " ".join(TOKENS[token] for token in tokens)


def dataset(seed, number, shortest, longest):
    """Expressions, all different, and their values.

    Args:
        seed: int.
        number: int > 0, N.
        shortest: int, tokens at least, see `draw`.
        longest: int, tokens at most.

    Returns:
        List of N `bytes`, and an int32 array `(N,)`.
    """
    generator = random.Random(seed)
    drawn = {}  # in the order of drawing
    while len(drawn) < number:
        drawn[draw(generator, shortest, longest)] = None
    values = np.array([value(tokens) for tokens in drawn], "int32")
    return list(drawn), values
