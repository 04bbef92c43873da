"""Makes the notebooks of the site, docs/notebooks, from the examples.

`python -m tools.notebooks` writes all of them and keeps the outputs of cells
that did not change. With `--execute NAME ...` (or `all`) it runs them first, as
the example runs without options. `--options="--epochs 2"` gives it options, and
the site names them; `--smoke` runs the tiny form of the tests.
"""

import argparse
import ast
import os
import pathlib
import re
import shlex
import sys
import tempfile

import jupytext
import nbclient
import nbformat

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
FOLDER = ROOT / "docs" / "notebooks"
NAMES = sorted(x.stem for x in EXAMPLES.glob("*.py") if x.stem != "data")
# How an example reads its options; a notebook has no command line.
OPTIONS = 'parse_args([] if "ipykernel" in sys.modules else None)'
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def to_notebook(script):
    """Makes a notebook of a script's text.

    The docstring becomes the first cell. A comment that begins with `# ##`
    begins a cell of text, which goes on to the next line of code.
    """
    tree = ast.parse(script)
    title, _, about = ast.get_docstring(tree).partition("\n")
    code = "".join(script.splitlines(True)[tree.body[0].end_lineno :])
    text = "\n".join(f"# {line}" for line in about.strip().splitlines())
    heading = re.compile(r"^((?:# ## .*\n)(?:#.*\n)*)", re.M)
    cells = heading.sub(r"# %% [markdown]\n\1\n# %%\n", code)
    percent = f"# %% [markdown]\n# # {title.rstrip('.')}\n#\n{text}\n\n# %%\n"
    notebook = jupytext.reads(percent + cells, fmt="py:percent")
    notebook.metadata = nbformat.NotebookNode(
        kernelspec=KERNEL, language_info={"name": "python"}
    )
    for index, cell in enumerate(notebook.cells):
        cell.source = cell.source.strip("\n")
        cell.id = f"cell-{index}"  # not random: a diff shows what changed
        cell.metadata = nbformat.NotebookNode()
    return notebook


def keep_outputs(notebook, path):
    """Takes over the outputs that a file holds for the same code."""
    if not path.is_file():
        return
    before = nbformat.read(path, 4)
    notebook.metadata.options = before.metadata.get("options", [])
    known = {x.source: x for x in before.cells}
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source in known:
            cell.outputs = known[cell.source].outputs


def execute(notebook, options=()):
    """Runs all cells, as the script runs with options on the command line."""
    notebook.metadata.options = list(options)
    original = [cell.source for cell in notebook.cells]
    for cell in notebook.cells:
        cell.source = cell.source.replace(
            OPTIONS, f"parse_args({notebook.metadata.options})"
        )
    places = [str(EXAMPLES), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    with tempfile.TemporaryDirectory() as folder:  # for what it writes
        client = nbclient.NotebookClient(notebook, timeout=3600)
        client.resources = {"metadata": {"path": folder}}
        client.execute(env=environment)
    for cell, source in zip(notebook.cells, original):
        cell.source = source
        cell.metadata = nbformat.NotebookNode()
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = shown(cell.outputs)


def shown(outputs):
    """Outputs as they look at the end: progress bars show the last state."""
    kept = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr" or output.text.startswith("INFO:"):
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        elif output.get("data", {}).get("text/plain", "").startswith("<keras"):
            continue  # the history that `fit` returns as a cell's last value
        kept.append(output)
    for output in kept:  # joined first: a bar comes in many parts
        if output.output_type == "stream":
            output.text = last_state(output.text)
    return kept


def last_state(text):
    """What a terminal shows in the end of each line that was overwritten."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = text.replace("\b", "").replace("\r\n", "\n")
    lines = (line.rpartition("\r")[2] for line in text.split("\n"))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        prog="tools.notebooks", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--execute", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--options", type=shlex.split, default=[])
    parser.add_argument(
        "--smoke", dest="options", action="store_const", const=["--smoke"]
    )
    parser.add_argument("--out", type=pathlib.Path, default=FOLDER)
    args = parser.parse_args()
    wanted = NAMES if args.execute == ["all"] else args.execute
    if unknown := set(wanted) - set(NAMES):
        sys.exit(f"No such example: {', '.join(unknown)}. There are: {NAMES}.")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        script = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        notebook = to_notebook(script)
        path = args.out / f"{name}.ipynb"
        if name in wanted:
            execute(notebook, args.options)
        else:
            keep_outputs(notebook, path)
        nbformat.write(notebook, path)
        print(path)


if __name__ == "__main__":
    main()
