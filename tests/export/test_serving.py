"""`serving_directory`: what it writes, what it keeps, what it refuses."""

import concurrent.futures
import importlib.util
import pathlib
import re
import threading

import keras
import numpy as np
import pytest
from exported import NAME
from exported import contents
from helpers import predict

from keras_linattn.export import serving
from keras_linattn.export import serving_directory
from keras_linattn.export._configs import write_configs
from keras_linattn.export._warmup import as_arrays
from keras_linattn.export._warmup import load_samples
from keras_linattn.export._warmup import save_samples

pytest.importorskip("tensorflow_serving")
ROOT = pathlib.Path(__file__).parents[2]
BACKEND = keras.backend.backend()
# Those of the server's session_bundle_config.proto: name, number, and whether
# it is an Int64Value, a list of int64, or a bool.
BATCHING_FIELDS = (
    ("max_batch_size", 1, "value"),
    ("batch_timeout_micros", 2, "value"),
    ("max_enqueued_batches", 3, "value"),
    ("num_batch_threads", 4, "value"),
    ("allowed_batch_sizes", 6, "list"),
    ("pad_variable_length_inputs", 7, "bool"),
)


def small_model():
    x = keras.Input((None, 4), name="x")
    return keras.Model(x, keras.layers.Dense(2)(x))


@pytest.fixture
def quick(monkeypatch):
    """Writes a file instead of a SavedModel; returns the folders it saw."""
    seen = []

    def write(model, path, name, samples, say):
        models = path.parents[1].glob("[!.]*")
        seen.append([x for m in models for x in m.rglob("saved_model.pb")])
        path.mkdir()
        (path / "saved_model.pb").write_text(model.name)

    monkeypatch.setattr(serving, "_write_version", write)
    return seen


def publish(base, name="a", version=None):
    model = small_model()
    return serving_directory(model, base, name, version, verbose=False)


def models_config(base):
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    return text_format.Parse(
        (base / "models.config").read_text(),
        model_server_config_pb2.ModelServerConfig(),
    ).model_config_list.config


def batching_parameters():
    """The server's message, which the Python package leaves out."""
    from google.protobuf import descriptor_pb2
    from google.protobuf import descriptor_pool
    from google.protobuf import message_factory
    from google.protobuf import wrappers_pb2

    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    message = file.message_type.add(name="BatchingParameters")
    for name, number, what in BATCHING_FIELDS:
        field = message.field.add(name=name, number=number)
        field.label = kind.LABEL_OPTIONAL
        if what == "value":
            field.type = kind.TYPE_MESSAGE
            field.type_name = ".google.protobuf.Int64Value"
        elif what == "list":
            field.type = kind.TYPE_INT64
            field.label = kind.LABEL_REPEATED
        else:
            field.type = kind.TYPE_BOOL
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("BatchingParameters")
    )()


# --- What is written


def test_the_folder(published):
    base = published.base
    assert published.path == base / NAME / "1"
    assert sorted(path.name for path in base.iterdir()) == [
        "batching.config",
        "models.config",
        NAME,
    ]
    assert [path.name for path in (base / NAME).iterdir()] == ["1"]
    (model,) = models_config(base)
    assert model.name == NAME
    assert model.base_path == str(base / NAME) and base.is_absolute()
    assert model.model_platform == "tensorflow"
    for path in base.rglob("*"):  # the server may be another user
        assert path.stat().st_mode & 0o044 == 0o044, path


def test_warmup_replays_through_the_model(published):
    tf = pytest.importorskip("tensorflow")
    from stand_in import predict as replay
    from stand_in import warmup_requests

    requests = warmup_requests(published.path)
    model = tf.saved_model.load(published.path)
    names = [request.model_spec.signature_name for request in requests]
    assert sorted(names) == ["serve_text", "serving_default"]
    for request in requests:
        assert request.model_spec.name == NAME
        received = tf.make_ndarray(replay(model, request).outputs["output_0"])
        ((key, proto),) = request.inputs.items()
        array = tf.make_ndarray(proto)
        if key == "text":
            assert array.tolist() == [b"linear attention"]
            array = np.frombuffer(array[0], "uint8")[None].astype("int32") + 1
        np.testing.assert_allclose(
            received, predict(published.model, array), rtol=0, atol=1e-5
        )


def test_batching_config_is_the_server_s_message(published):
    from google.protobuf import text_format

    text = (published.base / "batching.config").read_text()
    message = text_format.Parse(text, batching_parameters())
    sizes = list(message.allowed_batch_sizes)
    assert sizes == sorted(sizes)  # what the server asks of them
    assert sizes[-1] == message.max_batch_size.value
    # The server pads with a request's own first element, not with 0.
    assert not message.pad_variable_length_inputs


def test_weights_are_stored_once(published):
    """Not again for the second signature, and not in the graph."""
    size = sum(w.numpy().nbytes for w in published.model.weights)
    stored = sum(x.stat().st_size for x in published.path.rglob("variables.*"))
    assert size <= stored < 1.2 * size
    assert (published.path / "saved_model.pb").stat().st_size < 2 * size


def test_a_users_requests_are_what_is_written(tmp_path, capfd):
    from stand_in import warmup_requests

    x = np.arange(24.0).reshape(2, 3, 4)
    path = serving_directory(
        small_model(), tmp_path, "a", 7, samples=[{"x": x}, {"x": x[:1]}]
    )
    assert path == tmp_path / "a" / "7"
    said = capfd.readouterr().out.splitlines()
    assert said[-3:] == [
        "Writing the SavedModel",
        "Warm-up 1 of 2: serving_default, {'x': (2, 3, 4)}",
        "Warm-up 2 of 2: serving_default, {'x': (1, 3, 4)}",
    ]
    tf = pytest.importorskip("tensorflow")
    first, second = warmup_requests(path)
    sent = tf.make_ndarray(first.inputs["x"])
    np.testing.assert_array_equal(sent, x.astype("float32"))
    assert tf.make_ndarray(second.inputs["x"]).shape == (1, 3, 4)


def test_the_page_runs(tmp_path, quick, monkeypatch):
    """Its Python that needs no SavedModel; `test_serving_page` runs all."""
    monkeypatch.chdir(tmp_path)
    small_model().save("classifier.keras")
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    blocks = [block for block in blocks if "served" not in block]
    assert len(blocks) == 3
    namespace = {"__name__": "my_project"}
    for block in blocks:
        exec(block, namespace)
    assert len(list(tmp_path.glob("models/topics/[12]/saved_model.pb"))) == 2
    raw, function = namespace["Celsius"]().serving_preprocessors()[
        "serve_fahrenheit"
    ]
    assert function(np.float32(32)) == 0 and raw.name == "fahrenheit"


# --- Versions


def test_the_next_version(tmp_path, quick):
    assert publish(tmp_path).name == "1"
    assert publish(tmp_path, version=5).name == "5"
    assert publish(tmp_path).name == "6"
    assert publish(tmp_path, version=np.int64(2)).name == "2"
    assert publish(tmp_path).name == "7"
    assert publish(tmp_path, "b").name == "1"
    (tmp_path / "a" / "0009").mkdir()  # which the server reads as 9
    (tmp_path / "a" / "x10").mkdir()
    assert publish(tmp_path).name == "10"


def test_a_version_is_never_replaced(tmp_path, quick):
    publish(tmp_path, version=3)
    (tmp_path / "a" / "004").mkdir()
    before = contents(tmp_path)
    for version in (3, 4):
        with pytest.raises(FileExistsError, match=f"version={version}, which"):
            publish(tmp_path, version=version)
    assert contents(tmp_path) == before
    assert len(quick) == 1  # it did not begin


def test_the_model_is_written_out_of_sight(tmp_path, quick):
    """While it is written, a server finds in its folders what was there."""
    publish(tmp_path)
    publish(tmp_path)
    assert quick == [[], [tmp_path / "a" / "1" / "saved_model.pb"]]


def test_threads_get_a_version_each(tmp_path, quick):
    count = 8
    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        paths = list(threads.map(publish, [tmp_path] * count))
    assert sorted(int(path.name) for path in paths) == [*range(1, count + 1)]
    assert len(list(tmp_path.rglob("saved_model.pb"))) == count
    assert not list(tmp_path.glob(".*"))


def test_threads_with_one_version(tmp_path, monkeypatch):
    """All pass the first check before any is done: one wins."""
    count = 6
    barrier = threading.Barrier(count, timeout=60)

    def write(model, path, *unused):
        path.mkdir()
        (path / "saved_model.pb").write_text(model.name)
        barrier.wait()

    monkeypatch.setattr(serving, "_write_version", write)
    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        jobs = [threads.submit(publish, tmp_path, "a", 1) for _ in range(count)]
    errors = [job.exception() for job in jobs]
    assert errors.count(None) == 1
    assert sum(isinstance(x, FileExistsError) for x in errors) == count - 1
    (job,) = [job for job in jobs if job.exception() is None]
    assert (job.result() / "saved_model.pb").is_file()


def test_threads_with_several_models(tmp_path, quick):
    names = [f"model{number}" for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(publish, [tmp_path] * len(names), names))
    assert sorted(model.name for model in models_config(tmp_path)) == names


# --- Configs


def test_models_config_keeps_what_a_user_wrote(tmp_path, quick):
    publish(tmp_path, "old")
    publish(tmp_path, "kept")
    path = tmp_path / "models.config"
    config = path.read_text().replace(
        'name: "kept"',
        'name: "kept" model_version_policy { all {} }  # not { the last',
    )
    head, begin, rest = config.partition("model_config_list {")
    own = "config { name: 'z' # }\n base_path: \"/z\" }"
    written = f"# mine\n{head}{begin}{rest.rpartition('}')[0]}{own}}} # end"
    path.write_text(written)
    (tmp_path / "old" / "1" / "saved_model.pb").unlink()
    publish(tmp_path, "new")
    models = {model.name: model for model in models_config(tmp_path)}
    assert list(models) == ["kept", "z", "new"]
    assert models["kept"].model_version_policy.HasField("all")
    # To the letter: one entry went, one came.
    old = written.index("  config {"), written.index("  config {", 30)
    before, after = written[: old[0]] + written[old[1] :], path.read_text()
    assert after.startswith(before.removesuffix("} # end"))
    assert after.endswith("}\n} # end")


@pytest.mark.parametrize(
    "text",
    [
        "# only a comment\n",
        "# mine\nmodel_config_list < config < name: 'z' base_path: '/z' > >",
        "model_config_list { config: [{ name: 'z' base_path: '/z' }] }",
        "model_config_list: {}",
    ],
)
def test_models_config_in_other_forms(tmp_path, quick, text):
    (tmp_path / "models.config").write_text(text)
    publish(tmp_path, "new")
    names = [model.name for model in models_config(tmp_path)]
    assert names == (["z", "new"] if "'z'" in text else ["new"])
    comment = text.partition("\n")[0] if text[0] == "#" else ""
    assert comment in (tmp_path / "models.config").read_text()


def test_configs_are_left_alone_where_nothing_is_new(tmp_path, quick):
    publish(tmp_path)
    (tmp_path / "batching.config").write_text("# mine")
    text = "# mine\n" + (tmp_path / "models.config").read_text()
    (tmp_path / "models.config").write_text(text)
    publish(tmp_path)
    assert (tmp_path / "batching.config").read_text() == "# mine"
    assert (tmp_path / "models.config").read_text() == text


@pytest.mark.parametrize(
    "text", ["model_config_list {", "modles {}", "custom_model_config {}"]
)
def test_a_broken_models_config(tmp_path, quick, text):
    (tmp_path / "models.config").write_text(text)
    with pytest.raises(ValueError, match="Correct the file, or remove it"):
        publish(tmp_path)
    assert contents(tmp_path) == {pathlib.Path("models.config"): text.encode()}


def test_what_is_no_model_is_not_listed(tmp_path):
    for folder in ("empty/1", "words/first", ".hidden/1", "a/1"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("words/first", ".hidden/1", "a/1"):
        (tmp_path / folder / "saved_model.pb").touch()
    (tmp_path / "readme").touch()
    write_configs(tmp_path)
    assert [model.name for model in models_config(tmp_path)] == ["a"]


# --- What is refused, and what a failure leaves


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".a", "a/b", "../a", "/a", "a\\b", "-a", "a b", "a:b"]
    + ["a\n", "é", "a" * 129, "models.config", "batching.config", 3, None],
)
def test_unsafe_names(tmp_path, quick, name):
    with pytest.raises(ValueError, match="`name` must be 1 to 128 letters"):
        publish(tmp_path / "models", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", ["1", 1.0, True])
def test_version_is_no_int(tmp_path, quick, version):
    with pytest.raises(TypeError, match="`version` must be an int. Received"):
        publish(tmp_path, version=version)


@pytest.mark.parametrize("version", [0, -1, 2**63])
def test_version_is_out_of_range(tmp_path, quick, version):
    with pytest.raises(ValueError, match=f"Received: version={version}"):
        publish(tmp_path, version=version)


def test_no_next_version(tmp_path, quick):
    publish(tmp_path, version=2**63 - 1)
    with pytest.raises(ValueError, match="Pass a lower"):
        publish(tmp_path)


def test_not_a_model(tmp_path):
    with pytest.raises(TypeError, match="of type Dense.*Wrap a layer"):
        serving_directory(keras.layers.Dense(1), tmp_path, "a")


def test_base_is_no_folder(tmp_path, quick):
    with pytest.raises(ValueError, match="base='gs://bucket'. Export to a"):
        publish("gs://bucket")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file, which is not a folder"):
        publish(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match="file, which is not a folder"):
        publish(tmp_path, "file")


@pytest.mark.parametrize("module", ["tensorflow", "tensorflow_serving"])
def test_a_package_is_missing(tmp_path, monkeypatch, module):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == module else find(name),
    )
    with pytest.raises(ImportError, match="pip install keras-linattn"):
        publish(tmp_path / "models")
    assert not list(tmp_path.iterdir())


def test_failure_leaves_the_old_version(tmp_path, quick, monkeypatch):
    publish(tmp_path)
    before = contents(tmp_path)

    def fail(model, path, *unused):
        path.mkdir()
        raise OSError("disk trouble")

    monkeypatch.setattr(serving, "_write_version", fail)
    for name in ("a", "b"):
        with pytest.raises(OSError, match="disk trouble"):
            publish(tmp_path, name)
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a",
        "batching.config",
        "models.config",
    ]


def test_samples_that_do_not_run(tmp_path):
    """Under torch the message is that of the second process, whole."""
    samples = [{"x": np.ones((1, 1, 4))}, {"x": np.ones((1, 1, 3))}]
    kind = RuntimeError if BACKEND == "torch" else ValueError
    with pytest.raises(kind, match=r"float64\(1, 1, 3\)'} for signature"):
        serving_directory(small_model(), tmp_path, "a", samples=samples)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(BACKEND == "torch", reason="a second process more")
def test_samples_of_other_inputs(tmp_path):
    with pytest.raises(ValueError, match=r"\['y'\]. The model has serving_def"):
        serving_directory(small_model(), tmp_path, "a", samples={"y": [1]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("samples", [[], [{}] * 2, [[1]], "x", [{"x": 1}, 1]])
def test_samples_of_another_kind(samples):
    with pytest.raises((TypeError, ValueError), match="`samples` must be"):
        as_arrays(samples)


def test_samples_as_a_file(tmp_path):
    texts = ["né", b"b"]
    samples = as_arrays(
        [
            {"text": texts[:1]},
            {"text": np.array(texts, object), "n": [[1, 2]]},
        ]
    )
    save_samples(tmp_path / "samples.npz", samples)
    first, second = load_samples(tmp_path / "samples.npz")
    assert first["text"].tolist() == ["né".encode()]
    assert second["text"].tolist() == ["né".encode(), b"b"]
    np.testing.assert_array_equal(second["n"], [[1, 2]])
