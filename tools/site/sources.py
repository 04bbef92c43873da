"""Collects the pages of the site in one folder, which MkDocs reads.

Beside docs/ these are the API reference, the notebooks, the files of examples/
and the pages that stand in the root of the repository. Nothing here imports
the package, and nothing depends on the program that makes the site.
"""

import ast
import json
import pathlib
import re
import shutil

import nbconvert

from tools.site import browser

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "keras_linattn"
ROOT_PAGES = ("CHANGELOG", "CONTRIBUTING", "CODE_OF_CONDUCT", "SECURITY")


def collect(folder):
    """Writes all pages to `folder`, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder)
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=no_caches)
    for name in ROOT_PAGES:
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        text = text.replace("](docs/", "](")
        (folder / f"{name.lower()}.md").write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "LICENSE", folder / "LICENSE")
    write_reference(folder / "api")
    if (folder / "browser" / "model.onnx").is_file():
        browser.fetch_runtime(folder / "browser" / "ort")
    for path in (folder / "notebooks").glob("*.ipynb"):
        write_notebook(path)
    for path in folder.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        path.write_text(link_pages(text, folder), encoding="utf-8")


def link_pages(text, folder):
    """Points links to files outside docs/ at pages of the site.

    A link to an example leads to its notebook, or to the script without one.
    """

    def target(link):
        page = f"notebooks/{pathlib.Path(link[1]).stem}.md"
        return f"]({page if (folder / page).is_file() else link[1]})"

    text = re.sub(r"\]\(\.\./(examples/[\w/.]+)\)", target, text)
    for name in ROOT_PAGES:
        text = text.replace(f"](../{name}.md", f"]({name.lower()}.md")
    text = text.replace("](../keras_linattn)", "](api/index.md)")
    return text.replace("](../examples)", "](examples.md)")


def write_notebook(path):
    """Writes the page of a notebook, with its pictures in a folder."""
    body, resources = nbconvert.MarkdownExporter().from_filename(
        str(path), {"output_files_dir": f"{path.stem}_files"}
    )
    for name, content in resources["outputs"].items():
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(content)
    title, _, rest = body.partition("\n")
    note = f"[Download this notebook]({path.name}), or read the "
    note += f"[script](../examples/{path.stem}.py)."
    note += about_outputs(json.loads(path.read_text(encoding="utf-8"))) + "\n"
    path.with_suffix(".md").write_text(
        f"{title}\n\n{note}{rest}", encoding="utf-8"
    )


def about_outputs(notebook):
    """Says which run gave the outputs of a notebook."""
    options = " ".join(notebook["metadata"].get("options", []))
    if options == "--smoke":
        return (
            " The outputs are those of a tiny run that only tests the code: "
            "its accuracy says nothing."
        )
    if not any(cell.get("outputs") for cell in notebook["cells"]):
        return ""
    run = f"one run with `{options}`" if options else "one run"
    return (
        f" The outputs are those of {run} on two CPU cores that had other "
        "work, so the times are not a benchmark."
    )


# --- The API reference


def write_reference(folder):
    """Writes a page for each public module, and one of all names."""
    folder.mkdir()
    index = ["# API reference", "", "Made from the docstrings.", ""]
    for name, path in modules().items():
        members, title = public_names(path), f"keras_linattn.{name}"
        about = summary(path)
        page = [f"# {title}", "", about, ""]
        page += [f"::: {title}.{member}\n" for member in members]
        (folder / f"{name}.md").write_text("\n".join(page), encoding="utf-8")
        links = ", ".join(f"[`{x}`][{title}.{x}]" for x in members)
        index += [f"## [{title}]({name}.md)", "", about, "", links, ""]
    (folder / "index.md").write_text("\n".join(index), encoding="utf-8")


def modules():
    """Files of the public modules, by name."""
    files = {path.stem: path for path in PACKAGE.glob("*.py")}
    files |= {path.parent.name: path for path in PACKAGE.glob("*/__init__.py")}
    return {
        name: files[name]
        for name in sorted(files)
        if not name.startswith("_") and name not in ("core", "cli")
    }


def public_names(path):
    """What a module defines, or exports as `from x import name as name`."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names += [a.name for a in node.names if a.name == a.asname]
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
    return [name for name in names if not name.startswith("_")]


def summary(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]
