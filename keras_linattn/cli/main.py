"""Entry point: one subcommand per file.

Errors that a user can mend are one line on stderr and exit status 2; any other
is a bug of this package and keeps its traceback.
"""

import argparse
import sys

import keras_linattn
from keras_linattn.cli import bench
from keras_linattn.cli import export
from keras_linattn.cli import list as list_

PROGRAM = "keras-linattn"
SUBCOMMANDS = (list_, bench, export)
MENDABLE = (ImportError, OSError, RuntimeError, TypeError, ValueError)


def main(arguments=None):
    """Runs one command line.

    Args:
        arguments: list of str. Defaults to `None`: those of the process.

    Returns:
        int, the exit status: 0, or 2 after an error. As with any `argparse`
        program, `--help`, `--version` and wrong arguments raise `SystemExit`.
    """
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
    except MENDABLE as error:
        print(f"{PROGRAM}: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def make_parser():
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=keras_linattn.__doc__
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"{PROGRAM} {keras_linattn.__version__}",
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for subcommand in SUBCOMMANDS:
        subcommand.add_to(subparsers)
    return parser


def one_line(error):
    """The message without its line breaks.

    Of several paragraphs the first says what was wrong and the last line
    where it came from; Keras puts whole configs between them.
    """
    first, _, rest = str(error).strip().partition("\n\n")
    lines = rest.strip().splitlines()[-1:]
    message = " ".join(" ".join([first, *lines]).split())
    return message or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
