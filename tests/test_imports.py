"""Architecture: imports only go down, and importing is silent and cheap."""

import ast
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "keras_linattn"
BACKENDS = {"tensorflow", "jax", "torch"}
ROOM_OF_BACKENDS = PACKAGE / "core" / "backends"
BELOW = {  # what each folder may import of the package, itself aside
    "core": set(),
    "mechanisms": {"core"},
    "layers": {"core", "mechanisms"},
    "models": {"core", "layers", "mechanisms"},
    "convert": {"core", "layers", "mechanisms", "models"},
    "distribution": {"core", "layers", "mechanisms", "models"},
    "export": {"layers", "models"},
    "testing": {"core", "mechanisms", "layers"},
}
# What each folder may import of others, at module level.
OUTSIDE = {
    "core": {"contextlib", "functools", "inspect", "keras", "math", "typing"}
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(tree, module_level):
    """Yields (line, dotted name) of each import."""
    nodes = tree.body if module_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module
            yield from (
                (node.lineno, f"{node.module}.{a.name}") for a in node.names
            )


@pytest.mark.once
def test_every_folder_has_a_place():
    folders = {
        p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()
    }
    assert folders <= set(BELOW)


@pytest.mark.once
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    folder = path.relative_to(PACKAGE).parts[0]
    for line, name in imports(tree, module_level=False):
        parts = name.split(".")
        assert not name.startswith("keras.src"), f"{path}:{line}: {name}"
        if parts[0] == "keras_linattn" and folder in BELOW and len(parts) > 1:
            allowed = BELOW[folder] | {folder}
            assert parts[1] in allowed, f"{path}:{line}: {name}"
    if ROOM_OF_BACKENDS in path.parents:
        return
    forbidden = BACKENDS | {"keras_hub", "keras_nlp"}
    for line, name in imports(tree, module_level=True):
        assert name.split(".")[0] not in forbidden, f"{path}:{line}: {name}"
        if folder in OUTSIDE:
            allowed = OUTSIDE[folder] | {"keras_linattn"}
            assert name.split(".")[0] in allowed, f"{path}:{line}: {name}"


NAMES_A_BACKEND = (ROOM_OF_BACKENDS, PACKAGE / "export")


@pytest.mark.once
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_backends_are_named_in_their_room_only(path):
    if any(room in path.parents for room in NAMES_A_BACKEND):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {
        node.left.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Call)
        and isinstance(node.left.func, ast.Attribute)
    }
    assert "backend" not in called, f"{path} asks which backend it runs on"


@pytest.mark.once
def test_imports_without_a_warning_where_keras_only_infers():
    environment = {**os.environ, "KERAS_BACKEND": "numpy"}
    command = [sys.executable, "-W", "error", "-c", "import keras_linattn"]
    subprocess.run(command, env=environment, check=True, cwd=ROOT)


@pytest.mark.once
@pytest.mark.parametrize("folder", ["examples", "tools", "keras_linattn_cli"])
def test_outside_uses_the_public_face(folder):
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, name in imports(tree, module_level=False):
            parts = name.split(".")
            private = parts[0] == "keras_linattn" and any(
                part.startswith("_") for part in parts
            )
            assert not private, f"{path}:{line}: {name}"


@pytest.mark.once
def test_the_command_starts_with_the_standard_library_only():
    """`--help` and usage errors are quick: Keras comes with a subcommand."""
    for path in (ROOT / "keras_linattn_cli").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, name in imports(tree, module_level=True):
            top = name.split(".")[0]
            allowed = sys.stdlib_module_names | {"keras_linattn_cli"}
            assert top in allowed, f"{path}:{line}: {name}"


@pytest.mark.once
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_assert_and_no_mechanism_by_name(path):
    """A mechanism that needs `if name == ...` is a fault of the interface."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}"
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            values = {s.value for s in sides if isinstance(s, ast.Constant)}
            names = {p.stem for p in (PACKAGE / "mechanisms").glob("[!_]*.py")}
            assert not values & names, f"{path}:{node.lineno}"


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.once
def test_import_is_silent_and_adds_little_to_keras():
    code = """
        import sys, time, keras
        before, start = set(sys.modules), time.perf_counter()
        import keras_linattn
        seconds = time.perf_counter() - start
        new = {m.partition(".")[0] for m in set(sys.modules) - before}
        heavy = {"tensorflow", "jax", "torch", "keras_hub", "matplotlib",
                 "hypothesis", "pytest"}
        print(sorted(heavy & new), seconds < 5, file=sys.stderr)
        names = "distribution export layers mechanisms models testing"
        for name in names.split():
            module = getattr(keras_linattn, name)
            assert module.__name__ == f"keras_linattn.{name}"
            assert name in dir(keras_linattn)
        """
    child = run(code, TF_CPP_MIN_LOG_LEVEL="3", PYTHONWARNINGS="error")
    assert child.returncode == 0, child.stderr
    assert child.stdout == ""
    assert child.stderr.splitlines()[-1] == "[] True"


def test_works_with_this_backend_alone():
    """The others cannot be imported at all."""
    code = """
        import importlib.machinery, os

        finder = importlib.machinery.PathFinder
        find, absent = finder.find_spec, {"tensorflow", "jax", "torch"}
        absent.remove(os.environ["KERAS_BACKEND"])

        def find_spec(name, *rest):
            if name.partition(".")[0] not in absent:
                return find(name, *rest)

        finder.find_spec = find_spec  # as if they were not installed
        import keras, numpy as np
        import keras_linattn
        model = keras.Sequential([
            keras.Input((None, 8)),
            keras_linattn.LinearSelfAttention(2, 4),
        ])
        model.compile("sgd", "mse")
        x = np.ones((2, 5, 8), "float32")
        model.fit(x, x, verbose=0)
        print(model.predict(x, verbose=0).shape)
        """
    import keras

    backend = keras.backend.backend()
    child = run(code, KERAS_BACKEND=backend, TF_CPP_MIN_LOG_LEVEL="3")
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == "(2, 5, 8)"
