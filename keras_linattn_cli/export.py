"""`keras-linattn export`: from a `.keras` file to what a server loads."""

import os

from keras_linattn_cli import files
from keras_linattn_cli.errors import UserError
from keras_linattn_cli.progress import progress


def add_to(subparsers):
    """Adds this subcommand to those of an `argparse` parser."""
    text = "write a .keras file as a TensorFlow SavedModel folder, or as ONNX"
    parser = subparsers.add_parser("export", help=text, description=text)
    parser.set_defaults(run=run)
    parser.add_argument("model", help="a .keras file")
    parser.add_argument(
        "folder",
        help="the SavedModel folder to write; with --to serving, the folder "
        "of all models, in which this one gets a new version; with --to onnx, "
        "the file",
    )
    parser.add_argument(
        "--to",
        choices=("saved_model", "serving", "onnx"),
        default="saved_model",
        help="one SavedModel; a version with warm-up requests and configs for "
        "TensorFlow Serving; or an ONNX file, under KERAS_BACKEND=tensorflow "
        "(defaults to saved_model)",
    )
    parser.add_argument("--name", help="with --to serving: the model's name")
    parser.add_argument(
        "--version",
        type=int,
        help="with --to serving: the version (defaults to the next one)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the SavedModel or ONNX file that is there",
    )
    files.add_import_option(parser)


def run(options):
    # First what costs no time: a backend takes seconds to start.
    _check_options(options)
    _check_paths(options)
    with progress(total=2) as step:
        path = _export(options, step)
    print(f"Wrote {path}")


def _export(options, step):
    step(f"load {options.model}")
    from keras_linattn import export

    files.import_modules(options.modules)
    model = files.load(options.model)
    step(f"export to {options.folder}")
    if options.to == "serving":
        return export.serving_directory(
            model, options.folder, options.name, options.version
        )
    write = export.export_saved_model
    if options.to == "onnx":
        write = export.export_onnx
    return write(model, options.folder, overwrite=options.overwrite)


def _check_options(options):
    serving = options.to == "serving"
    if serving and options.overwrite:
        raise UserError(
            "A version is never replaced. Received: `--overwrite` with "
            "`--to serving`. Leave it out for the next version."
        )
    if serving and options.name is None:
        raise UserError(
            "The server finds a model by its name. Received: `--to serving` "
            "without `--name`. Add `--name NAME`."
        )
    if not serving and (options.name, options.version) != (None, None):
        raise UserError(
            "Only a model for a server has a name and a version. Received: "
            f"name {options.name!r} and version {options.version!r} without "
            "`--to serving`. Add it, or leave them out."
        )


def _check_paths(options):
    files.check_is_there(options.model)
    if options.to == "serving" or options.overwrite:
        return
    if os.path.lexists(options.folder):
        raise UserError(
            f"The folder or file must not exist. Received: {options.folder!r}, "
            "which exists. Choose another, or replace it with `--overwrite`."
        )
