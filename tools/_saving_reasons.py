"""Why a cell of the saving matrix is refused: the reasons that are known."""

import dataclasses
import re

GREEN = "green"
UNEXPLAINED = "unexplained: "


class DifferentOutputs(Exception):
    """The model came back, and computes something else."""


@dataclasses.dataclass(frozen=True)
class Reason:
    """One reason.

    Args:
        key: str, what the table calls it.
        forms: tuple of str, the formats.
        backends: tuple of str, saved under.
        error: str, a regular expression that the error must match.
        why: str, for the reader.
        way_out: str, for the reader.
    """

    key: str
    forms: tuple
    backends: tuple
    error: str
    why: str
    way_out: str


REASONS = ()


def key_of(form, backend, outcome):
    """`GREEN`, or the key of the reason that explains an error.

    Args:
        form: str, the format.
        backend: str, saved under.
        outcome: str, what the worker noted.

    Returns:
        str, which starts with `UNEXPLAINED` if no reason fits.
    """
    if outcome == GREEN:
        return GREEN
    for reason in REASONS:
        if form in reason.forms and backend in reason.backends:
            if re.search(reason.error, outcome):
                return reason.key
    return UNEXPLAINED + outcome


def plain(error):
    """The error in one line, without colours and without its middle."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", f"{type(error).__name__}: {error}")
    text = " ".join(text.split())
    return text if len(text) <= 2000 else f"{text[:1000]} ... {text[-1000:]}"
