"""The benchmark tool: what it measures, refuses, checks first and writes."""

import importlib
import importlib.util
import json
import pathlib

import keras
import numpy as np
import pytest
from keras import ops

ROOT = pathlib.Path(__file__).parents[2]
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
SIZES = {"dim": 8, "heads": 2, "rounds": 2}
LINEAR = "linear:linear_transformer"

pytest.importorskip("matplotlib")


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of `tools/bench`."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"tools.bench.{name}")


@pytest.mark.parametrize("kind", ["forward", "step"])
def test_times_of_cases_that_take_turns(bench, kind):
    job = {"length": 9, "kind": kind, "cases": ["floor", LINEAR], **SIZES}
    results = bench("layers").times(job)["results"]
    assert list(results) == ["floor", LINEAR]
    for result in results.values():
        assert result["first"] > 0
        assert len(result["rounds"]) == 2 and min(result["rounds"]) > 0
        assert len(result["processor"]) == 2 and min(result["faults"]) >= 0


@pytest.mark.once
def test_the_floor_is_four_products_and_their_gradients(bench):
    cases, layers = bench("cases"), bench("layers")
    shape = cases.Shape(5, 8, 2)
    floor = layers.built(cases.get("floor"), shape)
    x = bench("runtime").random_tensor(shape.input)
    query, key, value, output = (
        ops.convert_to_numpy(weight) for weight in floor.weights
    )
    given = ops.convert_to_numpy(x)
    expected = [given @ query, given @ key, given @ value @ output]
    found = layers.KINDS["forward"](floor)(x)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(one), other, atol=1e-5)
    gradients = keras.tree.flatten(layers.KINDS["step"](floor)(x))
    assert len(gradients) == 5
    # Of mean((x W)^2) by W: the order differs by backend, not the set.
    wanted = 2 / expected[0].size * given[0].T @ expected[0][0]
    assert any(
        np.allclose(ops.convert_to_numpy(g), wanted, atol=1e-5)
        for g in gradients
        if tuple(g.shape) == wanted.shape
    )


def test_training_steps_of_models_over_their_products(bench, monkeypatch):
    module = bench("models")
    sizes = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "patch_size": 2}

    def make():
        return module.models.VisionTransformer(3, (4, 4, 1), **sizes)

    images = np.ones((5, 4, 4, 1), "float32")
    monkeypatch.setitem(module.MODELS, "small", lambda: (make(), images))
    model = make()
    found = module.products_of(model, images)
    # Four patches of each image: three projections, one back, two of the
    # feedforward network; and the classes of each image.
    wanted = [(20, 8, 8)] * 4 + [(20, 8, 16), (20, 16, 8), (5, 8, 3)]
    assert sorted(found)[-7:] == sorted(wanted)[-7:]
    assert module.products_of(model, images) == found  # no wrapper is left
    results = module.times({"model": "small", "rounds": 2})["results"]
    assert {"floor", "step"} <= set(results)
    assert all(len(r["processor"]) == 2 for r in results.values())
    assert results["step"]["peak"] >= 0


def test_peak_memory(bench):
    job = {"length": 2048, "kind": "forward", "case": "floor", **SIZES}
    assert bench("layers").memory(job)["peak"] >= 0


@pytest.mark.parametrize("kind", ["forward", "step"])
def test_operations_of_a_call(bench, kind):
    job = {"length": 256, "kind": kind, "case": "floor", "dim": 64, "heads": 2}
    found = bench("profile").run(job)
    taken = [milliseconds for _, _, milliseconds in found["operations"]]
    assert taken == sorted(taken, reverse=True) and taken[0] > 0
    assert found["total"] >= sum(taken) - 0.1
    # Four products forward, of which XLA and TensorFlow may merge some; the
    # gradients are two for each of them.
    words = ("mm", "MatMul", "dot", "fusion")
    products = sum(
        count
        for name, count, _ in found["operations"]
        if any(word in name for word in words)
    )
    assert products >= (4 if kind == "forward" else 8)


def test_segments_are_the_whole(bench, monkeypatch):
    cases, layers = bench("cases"), bench("layers")
    monkeypatch.setattr(cases.InSegments, "SEGMENT", 8)
    shape = cases.Shape(24, 8, 2)
    segments = layers.built(cases.get("linear_in_segments"), shape)
    whole = layers.built(cases.get(LINEAR), shape)
    whole.set_weights(segments.get_weights())
    x = bench("runtime").random_tensor(shape.input)
    expected = ops.convert_to_numpy(layers.KINDS["forward"](whole)(x))
    found = layers.KINDS["forward"](segments)(x)
    pieces = [ops.convert_to_numpy(piece) for piece in found]
    pieces = np.concatenate([p.reshape(1, -1, 8) for p in pieces], axis=1)
    np.testing.assert_allclose(pieces, expected, atol=1e-5)
    gradients = keras.tree.flatten(layers.KINDS["step"](segments)(x))
    assert {tuple(g.shape) for g in gradients} >= {shape.input}
    assert all(np.isfinite(ops.convert_to_numpy(g)).all() for g in gradients)


def test_what_does_not_fit_is_refused(bench, monkeypatch):
    layers = bench("layers")
    job = {"kind": "step", "cases": ["keras_mha"], "length": 2**20, **SIZES}
    refused = layers.times(job)["results"]["keras_mha"]["refused"]
    assert refused.startswith("needs about 52777 GB of")
    job = {"contexts": [10**12], "cases": ["keras_hub_cache"], **SIZES}
    decoding = bench("decoding")
    monkeypatch.setattr(decoding.Cached, "__init__", only_a_shape)
    entries = decoding.run(job)["results"]["keras_hub_cache"]
    assert "needs about 192000 GB" in entries[0]["refused"]


def only_a_shape(self, shape):
    """In place of KerasHub's layer, which need not be installed."""
    self.shape = shape


def test_decoding_takes_the_context_in(bench, monkeypatch):
    decoding = bench("decoding")
    monkeypatch.setattr(decoding, "PIECE", 8)
    layer = decoding.make(LINEAR, bench("cases").Shape(1, 8, 2))
    decoders = [layer.after(8), layer.after(16)]
    assert layer.taken == 16
    # The last column of a state sums the keys' features, all positive: more of
    # them in the longer context.
    short, long = (ops.convert_to_numpy(d.state)[..., -1] for d in decoders)
    assert (short > 8 * 0.3).all() and (long - short > 8 * 0.3).all()
    job = {"contexts": [8, 16], "cases": [LINEAR], **SIZES}
    entries = decoding.run(job)["results"][LINEAR]
    assert [entry["context"] for entry in entries] == [8, 16]
    assert {entry["bytes"] for entry in entries} == {2 * 4 * 5 * 4}
    assert all(min(entry["rounds"]) > 0 for entry in entries)


def test_an_unknown_case_is_refused(bench):
    for name in ("linear:nothing", "nothing"):
        with pytest.raises(ValueError, match=f"Received: '{name}'. Known: fl"):
            bench("cases").get(name)
    assert bench("cases").get("both:xca").verify == "xca"
    assert bench("cases").get("packed:kda").verify == "kda"


def test_peers_run_under_torch_alone(bench):
    main, peers = bench("__main__"), bench("peers")
    every = (*main.PEERS, *main.HUB_PEERS, *main.CUDA_PEERS)
    assert {peers.PREFIX + name for name in every} == set(peers.names())
    case = bench("cases").get("peer:performer")
    assert case.verify is None
    if keras.backend.backend() != "torch":
        with pytest.raises(ValueError, match="Run them with --backend torch"):
            case.make(bench("cases").Shape(4, 8, 2))
    elif importlib.util.find_spec("performer_pytorch") is None:
        with pytest.raises(ImportError, match="bash tools/peers.sh"):
            case.make(bench("cases").Shape(4, 8, 2))


def test_a_peer_that_looks_ahead_gets_no_number(bench, monkeypatch):
    peers, layers = bench("peers"), bench("layers")

    class Mean(keras.layers.Layer):
        module = keras.Layer()
        module.eval = lambda: None

        def call(self, x):
            return x + ops.mean(x, axis=1, keepdims=True)

    monkeypatch.setattr(peers, "layer", lambda make, shape: Mean())
    failures = layers.verify({"mechanism": "peer:performer_causal"})["failures"]
    assert "future moves the past by" in failures[0]
    assert not layers.verify({"mechanism": "peer:performer"})["failures"]


def test_a_failing_check_is_found(bench, monkeypatch):
    layers = bench("layers")

    def check_matches_reference(subject):
        raise AssertionError("off by one")

    def check_other(subject):
        raise AssertionError("not wanted")

    monkeypatch.setattr(
        layers.testing,
        "checks_for",
        lambda traits: [check_matches_reference, check_other],
    )
    for checks, count in (("some", 1), ("all", 2)):
        job = {"mechanism": "xca", "checks": checks}  # one configuration
        failures = layers.verify(job)["failures"]
        assert len(failures) == count and "off by one" in failures[0]


@pytest.mark.once
def test_a_mechanism_that_fails_its_checks_gets_no_number(
    bench, monkeypatch, tmp_path
):
    main = bench("__main__")
    jobs = []

    def run_job(job, backend):
        jobs.append(job)
        result = {**job, "backend": backend, "seconds": 0}
        if job["group"] == "verify" and job["mechanism"] == "delta_rule":
            return {**result, "failures": ["check_x: wrong"]}
        return {**result, "failures": []}

    monkeypatch.setattr(main, "run_job", run_job)
    options = ["--backend", "jax", "--case", "floor", "linear:retention"]
    options = main.parse([*options, "linear:delta_rule", "--length", "4"])
    path = tmp_path / "benchmarks.json"
    main.run_backend(options, "jax", main.Results({"runs": []}, path))
    verified = [job["mechanism"] for job in jobs if job["group"] == "verify"]
    assert verified == ["retention", "delta_rule", "linear_transformer"]
    measured = [job for job in jobs if job["group"] == "times"]
    assert len(measured) == 2
    for job in measured:
        assert job["cases"] == ["floor", "linear:retention"]
    assert not any(job.get("case") == "linear:delta_rule" for job in jobs)

    # Resumed, it runs what failed, and nothing else.
    count, jobs[:] = len(jobs), []
    resumed = main.Results({"runs": []}, path, resume=True)
    main.run_backend(options, "jax", resumed)
    assert [job["mechanism"] for job in jobs] == ["delta_rule"]
    assert len(json.loads(path.read_text())["runs"]) == count


def content():
    sizes = {"backend": "jax", **SIZES}
    results = {
        "floor": {"first": 1.0, "rounds": [0.1, 0.2, 0.1]},
        # The second round was slow for all: the ratios do not care.
        LINEAR: {"first": 2.0, "rounds": [0.15, 0.3, 0.15]},
        "keras_mha": {"refused": "needs about 99 GB of 9 GB free"},
    }
    used = {
        name: {"first": 3.0, "rounds": [t], "processor": [2 * t], "faults": [7]}
        for name, t in (("floor", 0.1), ("step", 0.4))
    }
    used["step"]["peak"] = 5e6
    entries = [{"context": 8, "rounds": [0.001, 0.003], "bytes": 1234}]
    times = {"group": "times", "kind": "forward", "length": 8192}
    memory = {"group": "memory", "kind": "step", "length": 64}
    checks = {"group": "verify", "mechanism": "xca", "failures": ["c: why"]}
    return {
        "command": "python -m tools.bench",
        "verify": "some",
        "runs": [
            {**checks, "backend": "jax"},
            {**times, **sizes, "results": results},
            {**times, **sizes, "kind": "step", "results": results},
            {**memory, "case": "floor", "peak": 5e6, **sizes},
            {**memory, "case": LINEAR, "peak": 6e6, **sizes},
            {
                **{**memory, "group": "profile", "case": "floor", **sizes},
                "operations": [[f"dot.{i}", 1.0, 2.0] for i in range(14)],
                "total": 31.0,
            },
            {"group": "decoding", "results": {LINEAR: entries}, **sizes},
            {"group": "models", "model": "M", "results": used, **sizes},
        ],
    }


@pytest.mark.once
def test_how_much_longer_softmax_takes(bench):
    times = {"group": "times", "kind": "step", "dim": 256}
    results = {"keras_mha": {"rounds": [0.3]}, LINEAR: {"rounds": [0.2]}}
    runs = [{**times, "length": n, "results": results} for n in (512, 1024)]
    table = bench("report").softmax_table(runs)
    assert table[-1] == f"| `{LINEAR}` | 256 | step | 1.50 | 1.50 |"


@pytest.mark.once
def test_page_and_pictures(bench, tmp_path):
    report = bench("report")
    report.write(content(), tmp_path)
    path = tmp_path / "benchmarks.md"
    text = path.read_text(encoding="utf-8")
    for line in (
        f"| `{LINEAR}` | 1.50 (1.50 to 1.50), 150 ms | 2.0 s |",
        "| `floor` | 100 ms | 1.0 s |",
        "| `keras_mha` | needs about 99 GB of 9 GB free |  |",
        "| case | step, n = 64 |",
        "| `floor` | 5 MB |",
        f"| `{LINEAR}` | 1.20, 6 MB |",
        f"| `{LINEAR}` | 8 | 2 ms | 1 to 3 | 1,234 |",
        "- `xca`: c: why",
        "| `M`: floor | 100 ms | 200 ms, 7 faults |  | 3.0 s |",
        "| `M`: step | 4.00 (4.00 to 4.00), 400 ms | 4.00, 7 faults "
        "| 5 MB | 3.0 s |",
        "![time over the floor's](benchmarks_layers.png)",
    ):
        assert line in text.splitlines(), line
    assert "dot.0" not in text
    for line in ("| `dot.0` | 1 | 2.00 ms |", "| all others |  | 7.00 ms |"):
        assert line in report.page(content()).splitlines(), line
    for name in ("layers", "steps", "decoding"):
        picture = tmp_path / f"benchmarks_{name}.png"
        assert picture.read_bytes()[:4] == b"\x89PNG"
    path.write_text(text + "\nWritten by hand.\n", encoding="utf-8")
    report.write(content(), tmp_path)
    assert path.read_text(encoding="utf-8") == text + "\nWritten by hand.\n"


@pytest.mark.once
def test_joins_runs(bench, tmp_path):
    main, report = bench("__main__"), bench("report")
    paths = [tmp_path / "a" / report.JSON, tmp_path / "b" / report.JSON]
    for path in paths:
        path.parent.mkdir()
        part = {**content(), "command": f"bench {path.parent.name}"}
        report.write_json(part, path)
    out = tmp_path / "joined"
    files = map(str, paths)
    assert main.main(["--join", *files, "--out", str(out)]) == 0
    lines = (out / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    # Ratios are within one run: its times have a table of their own.
    assert lines.count("| `floor` | 100 ms | 1.0 s |") == 4
    assert "bench a" in lines and "bench b" in lines
    joined = json.loads((out / report.JSON).read_text(encoding="utf-8"))
    assert [run["part"] for run in joined["runs"]] == [0] * 8 + [1] * 8


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" and HAS_TENSORFLOW,
    reason="one backend is enough: the tests above run on each",
)
def test_smoke_run(bench, tmp_path, capsys, monkeypatch):
    ask = importlib.import_module("tools._process").ask

    def ask_here(module, job, environment):
        """In this process, which is quicker; not the job that fails."""
        if job.get("mechanism") == "nothing":
            return ask(module, job, environment)
        answer = tmp_path / "answer.json"
        importlib.import_module(module).main(json.dumps(job), answer)
        return json.loads(answer.read_text(encoding="utf-8"))

    monkeypatch.setattr("tools._process.ask", ask_here)
    arguments = ["--backend", keras.backend.backend(), "--group", "times"]
    arguments += ["--case", "floor", LINEAR, "linear:nothing", "--length", "8"]
    arguments += ["--dim", "8", "--heads", "2", "--rounds", "2", "--write"]
    # 1: because of the mechanism that is unknown.
    assert bench("__main__").main([*arguments, "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "verify, nothing" in said and "failed" in said
    runs = json.loads((tmp_path / "benchmarks.json").read_text())["runs"]
    times = [run for run in runs if run["group"] == "times"]
    assert [run["kind"] for run in times] == ["forward", "step"]
    for run in times:
        assert list(run["results"]) == ["floor", LINEAR]
        assert run["machine"]["keras"] == keras.__version__
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert f"| `{LINEAR}` | " in page


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the others compile for long"
)
def test_generate_measures_each_call(bench):
    pytest.importorskip("keras_hub")
    generate = bench("generate")
    arguments = ["--prompts", "3", "--longest", "5", "--new", "1"]
    options = generate.parse([*arguments, "--hidden-dim", "4"])
    result = generate.measure(options)
    assert len(result["seconds"]) == 3 and result["shapes"] == 1
    assert list(result["memory"]) == [1] and result["memory"][1] > 1e6
    memory = generate.report({**result, "memory": {1: 5e6, 50: 6e6}})[-1]
    assert memory == "resident MB after calls: 1: 5, 50: 6"


def test_tables_of_two_dtypes_are_apart(bench):
    report = bench("report")
    result = {"floor": {"first": 1.0, "rounds": [0.5, 0.5]}}
    runs = [
        {"backend": "torch", "group": "times", "kind": "forward"}
        | {"length": 9, "dtype": dtype, "batch": 8, "results": result, **SIZES}
        for dtype in ("bfloat16", "float32")
    ]
    page = report.page({"command": "", "verify": "no", "runs": runs})
    assert "batch 8, bfloat16" in page and "batch 8, float32" in page


def test_times_in_half_precision(bench):
    job = {"length": 9, "kind": "step", "cases": [LINEAR], **SIZES}
    policy = keras.config.dtype_policy()
    try:
        found = bench("layers").times({**job, "dtype": "bfloat16", "batch": 2})
    finally:
        keras.config.set_dtype_policy(policy)
    assert min(found["results"][LINEAR]["rounds"]) > 0


@pytest.mark.once
def test_a_variable_of_none_is_not_set_in_a_job(bench, monkeypatch, tmp_path):
    """An allocator reads an empty threshold as 0."""
    process = importlib.import_module("tools._process")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    answer = tmp_path / "answer"
    code = (
        "import os, pathlib, sys; pathlib.Path(sys.argv[1])"
        ".write_text(str('MALLOC_TRIM_THRESHOLD_' in os.environ))"
    )
    for environment, found in (
        ({}, "True"),
        (bench("settings").PLAIN, "False"),
    ):
        process.run(["-c", code, answer], environment)
        assert answer.read_text() == found


@pytest.mark.once
def test_settings_table(bench):
    settings = bench("settings")
    step = {"seconds": 0.5, "processor": 1.0, "faults": 3.0, "tokens": 100}
    first, other = ({"steps": [step] * n} for n in (2, 4))
    row = settings.row("buckets", other, first)
    assert row == ["buckets", "500", "1,000", "3", "200", "1.00"]
    assert len(row) == len(settings.COLUMNS)
    lengths = {batch.shape for batch in settings.batches(buckets=True)}
    assert {rows for rows, _ in lengths} == {settings.BATCH}
    assert all(length % settings.BUCKET == 0 for _, length in lengths)
    assert settings.batches(False)[0].shape == (32, settings.LONGEST)


@pytest.mark.once
def test_converted_models_beside_their_teacher(bench, monkeypatch, tmp_path):
    pytest.importorskip("keras_hub")
    module = bench("converted")
    small = {"vocabulary_size": 256, "num_layers": 1, "num_heads": 2}
    small |= {"hidden_dim": 8, "intermediate_dim": 8}
    monkeypatch.setattr(module, "SIZES", small)
    results = []
    for length in (9, 12):
        for name in module.MODELS:
            job = {"model": name, "length": length, "rounds": 1}
            found = module.measure(job)
            results.append({"model": name, "length": length, **found})
    states = [result["state"] for result in results]
    assert 9 * states[4] == 12 * states[0]  # a cache grows, a state does not
    assert states[6:] == states[2:4]
    for result in results[::4]:
        result["prefill"] = {"refused": "needs more"}
    content = {"command": "a", "machine": {"cores": 2}, "results": results}
    module.write(content, tmp_path)
    text = (tmp_path / "linearize_speed.md").read_text()
    assert "| `softmax` | 12 | needs more |  |  |  |" in text
    assert (tmp_path / "linearize_speed.png").read_bytes()[:4] == b"\x89PNG"
