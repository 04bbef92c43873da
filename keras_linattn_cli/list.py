"""`keras-linattn list`: the table of mechanisms, from their traits.

The table in docs/mechanisms.md is this command's `--format markdown`.
"""

import re
import sys

HEADINGS = (
    "mechanism",
    "causal",
    "cross-attention",
    "mask",
    "fixed length",
    "extra parameters",
    "state",
    "cost",
    "source",
)
# Every letter of the columns "state" and "cost".
LETTERS = {
    "T": "queries",
    "S": "keys",
    "D": "`key_dim`",
    "V": "`value_dim`",
    "H": "`num_heads`",
    "W": "`window`",
    "R": "`num_features`",
    "K": "entries of the convolution kernel",
    "k": "`projection_dim`",
    "C": "positions of a chunk (`lara`: `num_landmarks`)",
    "L, M": "`num_landmarks`",
}
NOTES = (
    "Each with its default arguments, which decide some columns. Causal: "
    "whether a query can be kept from seeing later keys. Mask: a "
    "padded sequence gives what it gives alone. Fixed length: made for one "
    "`sequence_length`, the longest. Extra parameters: trained weights beside "
    "those of a softmax layer. State, what is kept of the keys and values, "
    "and cost are orders of magnitude for each head and sequence: "
    + ", ".join(f"{letter} {text}" for letter, text in LETTERS.items())
    + "."
)
SMALL_HEADS = (1, 2, 8, 4)  # [B, H, T, D], to make the weights for
WIDTH_OF_FILES = 200  # columns, where there is no terminal to fill


def add_to(subparsers):
    """Adds this subcommand to those of an `argparse` parser."""
    text = "print the table of mechanisms"
    parser = subparsers.add_parser("list", help=text, description=text)
    parser.set_defaults(run=run)
    parser.add_argument(
        "--format",
        choices=("text", "markdown"),
        default="text",
        help="defaults to text",
    )


def run(options):
    rows = table_rows()
    if options.format == "markdown":
        print(markdown(rows))
    else:
        print_text(rows)


def table_rows():
    """One list of cells for each registered mechanism, as in `HEADINGS`."""
    from keras_linattn import mechanisms

    return [_row(name, mechanisms.get(name)) for name in mechanisms.available()]


def markdown(rows):
    """The table and its notes as GitHub's Markdown."""
    lines = [HEADINGS, ["---"] * len(HEADINGS)]
    for name, *cells, source in rows:
        cells = [cell.replace("|", "\\|") for cell in cells]
        lines += [[f"`{name}`", *cells, _linked(source)]]
    table = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*table, "", NOTES])


def print_text(rows):
    """The table and its notes for people, as wide as the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    width = None if sys.stdout.isatty() else WIDTH_OF_FILES
    # Without markup, since a cell's [T, S] is no tag.
    console = Console(width=width, markup=False, highlight=False)
    table = Table(*HEADINGS, box=box.SIMPLE)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(NOTES.replace("`", ""))


def _row(name, mechanism):
    traits = mechanism.traits
    failing = ", ".join(check for check, _ in traits.known_failures)
    return [
        name,
        _yes(traits.causal) if traits.bidirectional else "only",
        _yes(traits.cross),
        f"fails {failing}" if failing else "exact",
        _yes(traits.needs_length),
        _yes(_has_weights(mechanism)),
        traits.state,
        traits.cost,
        traits.source,
    ]


def _yes(condition):
    return "yes" if condition else "no"


def _has_weights(mechanism):
    mechanism.build(SMALL_HEADS, SMALL_HEADS, SMALL_HEADS)
    return bool(mechanism.trainable_weights)


def _linked(source):
    """`Author year, arXiv 1234.56789` with the id as the link."""
    return re.sub(
        r"arXiv (\d{4}\.\d{4,5})",
        r"[arXiv \1](https://arxiv.org/abs/\1)",
        source,
    )
