"""The command: what it prints, writes and refuses."""

import inspect
import io
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from refusing import refuses

import keras_linattn
from keras_linattn import LinearSelfAttention
from keras_linattn import mechanisms
from keras_linattn.mechanisms import _registry
from keras_linattn_cli import list as list_
from keras_linattn_cli.errors import one_line
from keras_linattn_cli.errors import quiet_frameworks
from keras_linattn_cli.main import main
from keras_linattn_cli.progress import progress

PACKAGE = pathlib.Path(keras_linattn.__file__).parent
pytestmark = pytest.mark.once


def small_model(mechanism="linear_transformer"):
    return keras.Sequential(
        [
            keras.Input((None, 8), name="x"),
            LinearSelfAttention(2, 4, mechanism=mechanism),
        ]
    )


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.keras"
    small_model().save(path)
    return path


@pytest.fixture
def forget_after():
    """Forgets what a test registered: when called, and at the end."""
    places = _registry._CLASSES, keras.saving.get_custom_objects()
    before = [dict(place) for place in places]

    def forget():
        for place, content in zip(places, before):
            place.clear()
            place.update(content)

    yield forget
    forget()
    sys.modules.pop("module_of_test_cli", None)


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    expected = f"keras-linattn {keras_linattn.__version__}\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("arguments", [[], ["unlist"], ["export", "model"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "keras-linattn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--help"], 0), (["--version"], 0), (["export", "--help"], 0), ([], 2)],
    ids=str,
)
def test_help_and_usage_errors_need_no_keras(arguments, status):
    code = f"""
        import sys
        from keras_linattn_cli.main import main

        try:
            main({arguments!r})
        except SystemExit as stop:
            print(stop.code, {{"keras", "numpy", "rich"}} & set(sys.modules))
        """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == f"{status} set()"


def test_frameworks_say_nothing():
    child = subprocess.run(
        [sys.executable, "-m", "keras_linattn_cli.main", "list"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0
    assert child.stderr == ""


def test_a_terminal_shows_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(total=2) as step:
        step("load")
        step("write")
    assert "write" in terminal.getvalue() and "50%" in terminal.getvalue()
    assert "[2/2]" not in terminal.getvalue()


@pytest.mark.parametrize("kind", [TypeError, ValueError, RuntimeError])
def test_a_bug_keeps_its_traceback(kind, model_file, tmp_path, monkeypatch):
    def export_saved_model(model, path, overwrite):
        raise kind("unsupported operand")

    monkeypatch.setattr(
        "keras_linattn.export.export_saved_model", export_saved_model
    )
    with pytest.raises(kind, match="unsupported operand"):
        main(["export", str(model_file), str(tmp_path / "1")])


def test_logs_are_shown_with_an_error(capfd):
    """And only then, whoever writes them to the file descriptor."""
    with quiet_frameworks():
        os.write(2, b"a log line")
    assert capfd.readouterr().err == ""
    with pytest.raises(ZeroDivisionError), quiet_frameworks():
        os.write(2, b"a log line")
        raise ZeroDivisionError
    assert capfd.readouterr().err == "a log line"


def test_list_has_every_mechanism_and_its_traits(capsys):
    assert main(["list", "--format", "markdown"]) == 0
    said = capsys.readouterr().out
    for name in mechanisms.available():
        (row,) = [
            line for line in said.splitlines() if line.startswith(f"| `{name}`")
        ]
        cells = dict(zip(list_.HEADINGS, row.strip("| ").split(" | ")))
        traits = mechanisms.get(name).traits
        assert (
            cells["causal"]
            == {
                (False,): "no",
                (False, True): "yes",
                (True,): "only",
            }[traits.forms]
        )
        assert (cells["cross-attention"] == "yes") == traits.cross
        assert (cells["fixed length"] == "yes") == traits.needs_length
        assert cells["state"] == traits.state
        assert cells["cost"] == traits.cost
        assert traits.source.rpartition(" ")[2] in cells["source"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("linear_transformer", "no"), ("performer", "no"), ("hedgehog", "yes")],
)
def test_extra_parameters_are_trained_weights(name, expected):
    column = list_.HEADINGS.index("extra parameters")
    (row,) = [row for row in list_.table_rows() if row[0] == name]
    assert row[column] == expected


def test_every_letter_of_the_table_is_explained():
    known = set(re.findall(r"\w", "".join(list_.LETTERS)))
    for row in list_.table_rows():
        used = set(re.findall(r"[A-Za-z]", row[6] + row[7]))
        assert used <= known, row


def test_text_is_not_cut_off_in_a_file(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    for name in mechanisms.available():
        traits = mechanisms.get(name).traits
        (line,) = [
            line for line in said.splitlines() if line.split()[:1] == [name]
        ]
        assert traits.cost in line and traits.source in line


def test_a_failing_check_is_not_called_exact(monkeypatch):
    traits = mechanisms.Traits(known_failures=(("check_padding", "why"),))
    monkeypatch.setattr(mechanisms.Softmax, "traits", traits)
    (row,) = [row for row in list_.table_rows() if row[0] == "softmax"]
    assert row[list_.HEADINGS.index("mask")] == "fails check_padding"


def test_export_hands_over_to_the_public_function(
    model_file, tmp_path, capsys, monkeypatch
):
    """Exporting itself is tested in `tests/export`."""
    calls = []

    def export_saved_model(model, path, overwrite):
        calls.append((model, path, overwrite))
        return pathlib.Path(path)

    monkeypatch.setattr(
        "keras_linattn.export.export_saved_model", export_saved_model
    )
    folder = tmp_path / "1"
    assert main(["export", str(model_file), str(folder)]) == 0
    folder.mkdir()
    assert main(["export", str(model_file), str(folder), "--overwrite"]) == 0
    assert capsys.readouterr().out == f"Wrote {folder}\n" * 2
    assert [call[2] for call in calls] == [False, True]
    x = np.ones((1, 3, 8), "float32")
    loaded = keras.saving.load_model(model_file)
    np.testing.assert_array_equal(
        calls[0][0].predict(x, verbose=0), loaded.predict(x, verbose=0)
    )


def test_export_arguments_are_the_function_s():
    names = inspect.signature(
        keras_linattn.export.export_saved_model
    ).parameters
    assert list(names)[:2] == ["model", "path"] and "overwrite" in names


def test_export_refuses_a_missing_file(tmp_path, capsys):
    said = refuses(capsys, "export", tmp_path / "none.keras", tmp_path / "1")
    assert "none.keras" in said and "does not exist" in said


def test_export_refuses_what_is_no_keras_file(tmp_path, capsys):
    path = tmp_path / "model.keras"
    path.write_text("not a zip file")
    assert "model.keras" in refuses(capsys, "export", path, tmp_path / "1")


def test_export_refuses_a_path_that_exists(model_file, tmp_path, capsys):
    (tmp_path / "kept").write_text("mine")
    said = refuses(capsys, "export", model_file, tmp_path / "kept")
    assert "which exists" in said and "`--overwrite`" in said
    said = refuses(
        capsys, "export", model_file, tmp_path / "kept", "--overwrite"
    )
    assert "which has no `saved_model.pb`" in said
    assert (tmp_path / "kept").read_text() == "mine"


def test_export_refuses_code_in_a_file(tmp_path, capsys):
    """`safe_mode` stays on."""
    path = tmp_path / "model.keras"
    layers = [keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)]
    keras.Sequential(layers).save(path)
    said = refuses(capsys, "export", path, tmp_path / "1")
    assert "Lambda" in said
    assert not (tmp_path / "1").exists()


MODULE = """
from keras_linattn import mechanisms

@mechanisms.register("of_{name}", package="{name}")
class OfThisModule(mechanisms.Mechanism):
    def attend(self, query, key, value, **unused):
        return query
"""


def test_export_imports_the_mechanism_s_module(
    tmp_path, capsys, monkeypatch, forget_after
):
    name = "module_of_test_cli"
    (tmp_path / f"{name}.py").write_text(MODULE.format(name=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(
        "keras_linattn.export.export_saved_model",
        lambda model, path, overwrite: path,
    )
    monkeypatch.syspath_prepend(tmp_path)
    __import__(name)
    small_model(f"of_{name}").save("model.keras")
    forget_after()
    sys.modules.pop(name)
    sys.path.remove(str(tmp_path))

    said = refuses(capsys, "export", "model.keras", "1")
    assert f"Unknown mechanism '{name}>OfThisModule'. " in said
    assert "import its module" in said
    assert main(["export", "model.keras", "1", "--import", name]) == 0
    assert capsys.readouterr().out == "Wrote 1\n"
    said = refuses(capsys, "export", "model.keras", "1", "--import", "no_such")
    assert "No module named 'no_such'" in said


def test_one_line_keeps_the_cause():
    error = ValueError("The rule.\nReceived: 3.\n\nconfig={...}\n\nThe cause.")
    assert one_line(error) == "The rule. Received: 3. The cause."
    assert one_line(KeyError()) == "KeyError"
