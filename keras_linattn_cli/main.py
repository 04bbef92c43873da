"""Entry point: one subcommand per file.

A user's mistake is one line on stderr and exit status 2; anything else is a
bug of this package and keeps its traceback.
"""

import argparse
import importlib.metadata
import sys

from keras_linattn_cli import bench
from keras_linattn_cli import export
from keras_linattn_cli import linearize
from keras_linattn_cli import list as list_
from keras_linattn_cli.errors import UserError
from keras_linattn_cli.errors import is_refusal
from keras_linattn_cli.errors import one_line
from keras_linattn_cli.errors import quiet_frameworks

PROGRAM = "keras-linattn"
DESCRIPTION = "Linear-time attention for Keras 3, on TensorFlow, JAX and torch"
SUBCOMMANDS = (list_, bench, export, linearize)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line.

    Args:
        arguments: list of str. Defaults to `None`: those of the process.

    Returns:
        int, the exit status: 0, or 2 after a user's mistake. As with any
        `argparse` program, `--help`, `--version` and wrong arguments raise
        `SystemExit`.
    """
    options = make_parser().parse_args(arguments)
    try:
        with quiet_frameworks():
            _run(options)
    except UserError as error:
        print(f"{PROGRAM}: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _run(options):
    try:
        options.run(options)
    except OSError as error:  # of the machine, such as a disk that is full
        raise UserError(str(error)) from error
    except Exception as error:
        if not is_refusal(error):
            raise
        raise UserError(str(error)) from error


def make_parser():
    parser = argparse.ArgumentParser(prog=PROGRAM, description=DESCRIPTION)
    version = importlib.metadata.version("keras-linattn")
    parser.add_argument(
        "--version", action="version", version=f"{PROGRAM} {version}"
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for subcommand in SUBCOMMANDS:
        subcommand.add_to(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
