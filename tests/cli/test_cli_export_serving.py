"""`keras-linattn export --to serving`, and damaged files."""

import inspect
import pathlib

import keras
import numpy as np
import pytest
from refusing import refuses

import keras_linattn
from keras_linattn.models import TextClassifier
from keras_linattn_cli.main import main

pytestmark = pytest.mark.once


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.keras"
    TextClassifier(
        num_classes=2, hidden_dim=8, num_layers=1, num_heads=1, num_buckets=8
    ).save(path)
    return path


def test_hands_over_to_the_public_function(
    model_file, tmp_path, capsys, monkeypatch
):
    """Publishing itself is tested in `tests/export`."""
    calls = []

    def serving_directory(model, base, name, version):
        calls.append((base, name, version))
        assert isinstance(model, TextClassifier)
        return pathlib.Path(base, name, "3")

    monkeypatch.setattr(
        "keras_linattn.export.serving_directory", serving_directory
    )
    base = str(tmp_path)  # which exists, as it may
    options = ["--to", "serving", base, "--name", "topics"]
    assert main(["export", str(model_file), *options]) == 0
    assert main(["export", str(model_file), *options, "--version", "7"]) == 0
    assert calls == [(base, "topics", None), (base, "topics", 7)]
    said = capsys.readouterr().out
    assert said == f"Wrote {pathlib.Path(base, 'topics', '3')}\n" * 2


def test_arguments_are_the_function_s():
    names = inspect.signature(keras_linattn.export.serving_directory).parameters
    assert list(names)[:4] == ["model", "base", "name", "version"]


def test_from_the_file_to_the_version(model_file, tmp_path, capsys):
    """The one run that replaces nothing; what is written, says the folder."""
    tf = pytest.importorskip("tensorflow")
    pytest.importorskip("tensorflow_serving")
    base = tmp_path / "models"
    arguments = ["--to", "serving", str(base), "--name", "topics"]
    assert main(["export", str(model_file), *arguments]) == 0
    path = base / "topics" / "1"
    assert capsys.readouterr().out.splitlines()[-1] == f"Wrote {path}"
    served = tf.saved_model.load(path)
    output = served.signatures["serve_text"](text=tf.constant([b"ab"]))
    model = keras.saving.load_model(model_file)
    np.testing.assert_allclose(
        output["output_0"],
        model.predict(np.array([[98, 99]]), verbose=0),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "serving"], "without `--name`"),
        (["--to", "serving", "--name", "a", "--overwrite"], "never replaced"),
        (["--to", "serving", "--name", "a/b"], "Received: name='a/b'"),
        (["--to", "serving", "--name", "a", "--version", "0"], "version=0"),
        (["--name", "a"], "without `--to serving`"),
        (["--version", "3"], "without `--to serving`"),
    ],
)
def test_refused_options(model_file, tmp_path, capsys, options, message):
    said = refuses(capsys, "export", model_file, tmp_path / "models", *options)
    assert message in said
    assert not (tmp_path / "models").exists()


def test_version_is_no_number(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", "model.keras", "models", "--version", "one"])
    assert stop.value.code == 2
    assert "invalid int value: 'one'" in capsys.readouterr().err


def damaged(data, how):
    if how == "foreign":
        return b"PK\x03\x04 is how a zip file begins"
    if how == "empty":
        return b""
    if how == "flipped":
        middle = len(data) // 2
        return data[:middle] + bytes(200) + data[middle + 200 :]
    return data[: int(len(data) * how)]


@pytest.mark.parametrize("how", [0.1, 0.5, 0.99, "empty", "foreign", "flipped"])
@pytest.mark.parametrize("to", ["saved_model", "serving"])
def test_damaged_file(model_file, tmp_path, capsys, how, to):
    """A clear line, and the version that is there stays as it is."""
    model_file.write_bytes(damaged(model_file.read_bytes(), how))
    old = tmp_path / "models" / "topics" / "1" / "saved_model.pb"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    options = {
        "saved_model": [old.parent, "--overwrite"],
        "serving": [tmp_path / "models", "--to", "serving", "--name", "topics"],
    }[to]
    said = refuses(capsys, "export", model_file, *options)
    assert "model.keras" in said
    assert old.read_text() == "old"
    assert list((tmp_path / "models").rglob("*")) == [
        old.parents[1],
        old.parent,
        old,
    ]
