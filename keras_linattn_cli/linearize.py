"""`keras-linattn linearize`: makes a trained model's attention linear."""

import os

from keras_linattn_cli import files
from keras_linattn_cli.errors import UserError
from keras_linattn_cli.progress import progress


def add_to(subparsers):
    """Adds this subcommand to those of an `argparse` parser."""
    text = "make the softmax attention of a trained model linear"
    parser = subparsers.add_parser("linearize", help=text, description=text)
    parser.set_defaults(run=run)
    parser.add_argument("model", help="a .keras file")
    parser.add_argument(
        "-o",
        "--out",
        help="the .keras file to write (by default, only print the report)",
    )
    parser.add_argument(
        "--mechanism",
        default="hedgehog",
        metavar="NAME",
        help="the mechanism to use in place of softmax (defaults to hedgehog)",
    )
    parser.add_argument(
        "--window",
        type=int,
        help="attend exactly within this many positions",
    )
    parser.add_argument(
        "--layer",
        dest="layers",
        nargs="+",
        metavar="NAME",
        help="convert only these layers (defaults to all)",
    )
    parser.add_argument(
        "--length",
        type=int,
        default=4096,
        help="length of the sequence in the report (defaults to 4096)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the file that is there",
    )
    files.add_import_option(parser)


def run(options):
    # First what costs no time: a backend takes seconds to start.
    files.check_is_there(options.model)
    _check_out(options)
    with progress(total=2 if options.out is None else 4) as step:
        report = _convert(options, step)
    print(report)
    if options.out is not None:
        print(f"Wrote {options.out}")


def _convert(options, step):
    step(f"load {options.model}")
    from keras_linattn import convert

    files.import_modules(options.modules)
    model = files.load(options.model)
    chosen = options.mechanism, options.layers, options.window
    step("make the report")
    report = convert.report(model, *chosen, length=options.length)
    if options.out is not None:
        step("convert")
        linear = convert.linearize(model, *chosen)
        step(f"write {options.out}")
        linear.save(options.out)
    return report


def _check_out(options):
    if options.out is None:
        return
    if not options.out.endswith(".keras"):
        raise UserError(
            "A model is written as a `.keras` file. Received: "
            f"--out {options.out!r}. Give it a name that ends in `.keras`."
        )
    if os.path.lexists(options.out) and not options.overwrite:
        raise UserError(
            f"The file must not exist. Received: {options.out!r}, which "
            "exists. Choose another, or replace it with `--overwrite`."
        )
