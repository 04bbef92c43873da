"""The studies run their jobs, resume, report failures, and make their page."""

import functools
import importlib
import itertools
import json
import pathlib
import sys

import keras
import numpy as np
import pytest

import keras_linattn

pytestmark = pytest.mark.once
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = """
import argparse, types
parser = argparse.ArgumentParser()
for name in ("--out", "--mechanism", "--seed"):
    parser.add_argument(name, required=True)
parser.add_argument("--smoke", action="store_true")
args = parser.parse_args()
if args.mechanism == "wrong":
    raise SystemExit("no such mechanism")
model = types.SimpleNamespace(count_params=lambda: 1234)
history = types.SimpleNamespace(history={"loss": [1.0]})
seconds, score = 2.0, {"accuracy": 0.5 + 0.1 * int(args.seed)}
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The module `tools/studies/run.py`, with a study of a tiny example."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    module = importlib.import_module("tools.studies.run")
    (tmp_path / "example.py").write_text(EXAMPLE)
    study = module.Study({"a task": ("example.py",)}, ("softmax", "wrong"))
    monkeypatch.setattr(module, "EXAMPLES", tmp_path)
    monkeypatch.setitem(module.STUDIES, "fake", study)
    return module


def test_study_runs_resumes_and_keeps_what_is_by_hand(run, tmp_path, capsys):
    call = ["fake", "--smoke", "--backend", "torch", "--out", str(tmp_path)]
    assert run.main([*call, "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert "failed: a task, wrong, torch, 0\nno such mechanism" in said
    (first,) = json.loads((tmp_path / "fake.json").read_text())["results"]
    assert first["metrics"] == {"test accuracy, %": 50.0}
    assert first["machine"]["backend"].startswith("torch")
    assert first["example"] == "example.py"  # no path of this machine

    page = tmp_path / "fake.md"
    page.write_text(page.read_text() + "By hand.\n")
    assert run.main([*call, "--mechanism", "softmax"]) == 0
    content = json.loads((tmp_path / "fake.json").read_text())
    assert content["results"] == [first]
    assert "1 of 1 jobs have a result already." in capsys.readouterr().out
    assert content["commands"] == [
        "python -m tools.studies.run fake --smoke --backend torch --jobs 2"
    ]
    text = page.read_text()
    assert "these numbers mean nothing" in text
    assert "| `softmax` | torch | 50.0 | 1 | 1,234 | 2 |" in text
    assert text.endswith("By hand.\n") and text.count("By hand.") == 1
    assert (tmp_path / "fake.png").read_bytes()[:4] == b"\x89PNG"


def test_results_of_other_settings_are_not_in_the_page(run, tmp_path, capsys):
    result = {"mechanism": "softmax", "backend": "torch", "seed": 0}
    result |= {"parameters": 1, "seconds": 1.0, "metrics": {"bits": 1.5}}
    rows = [
        {**result, "task": task, "arguments": arguments}
        for task, arguments in (
            ("a task", []),
            ("a task", ["--smoke"]),
            ("a task", ["--more"]),
            ("a task that is gone", []),
        )
    ]
    results = run.Results(tmp_path / "fake.json")
    for row in rows:
        results.add(row, "a command")
    assert run.main(["fake", "--report-only", "--out", str(tmp_path)]) == 0
    assert "3 results of other settings" in capsys.readouterr().out
    text = (tmp_path / "fake.md").read_text()
    assert text.count("| `softmax` | torch | 1.500 | 1 |") == 1
    assert "## a task that is gone" not in text
    assert json.loads((tmp_path / "fake.json").read_text())["results"] == rows


def test_two_calls_add_to_the_same_results(run, tmp_path):
    calls = [run.Results(tmp_path / "fake.json") for _ in range(2)]
    for number, call in enumerate(calls):
        call.add({"seed": number}, "a command")
    stored = json.loads((tmp_path / "fake.json").read_text())
    assert stored["results"] == [{"seed": 0}, {"seed": 1}]
    assert stored["commands"] == ["a command"]


def test_unknown_names_are_refused_before_any_job(run, capsys):
    for option in ("task", "mechanism"):
        with pytest.raises(SystemExit):
            run.parse(["fake", f"--{option}", "b, c"])
        said = capsys.readouterr().err
        assert f"--{option} must be of the study fake. Received: 'b, c'" in said
        assert {"task": "'a task'", "mechanism": "'kda'"}[option] in said
    with pytest.raises(SystemExit):
        run.parse(["linearize", "--mechanism", "hedgehog"])
    assert "'hedgehog: transfer, LoRA'" in capsys.readouterr().err
    rows = set(run.STUDIES["memory"].rows())
    assert {*keras_linattn.mechanisms.available(), "no_attention"} <= rows
    assert "softmax + gated_delta" in rows and "kda, causal" not in rows


@pytest.mark.parametrize(
    "study",
    [
        "pipelines",
        "listops",
        "document_layout",
        "language_model",
        "linearize",
        "associative_recall",
        "memory",
        "long_range",
        "equal_time",
        "forecasts",
    ],
)
def test_pages_are_those_of_their_results(run, study, tmp_path, monkeypatch):
    # Only pages are compared, not pictures.
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: 0)
    docs, name = ROOT / "docs", run.STUDIES[study].page or study
    for ending in ("json", "md"):
        text = (docs / f"{name}.{ending}").read_text(encoding="utf-8")
        (tmp_path / f"{name}.{ending}").write_text(text, encoding="utf-8")
    assert run.main([study, "--report-only", "--out", str(tmp_path)]) == 0
    text = (docs / f"{name}.md").read_text(encoding="utf-8")
    assert (tmp_path / f"{name}.md").read_text(encoding="utf-8") == text
    for result in json.loads((docs / f"{name}.json").read_text())["results"]:
        task, rate = result["task"], result.get("rate")
        example = run.STUDIES[study].tasks[task][0]
        assert result["example"] == pathlib.Path(example).name
        assert result["arguments"] == run.STUDIES[study].arguments(task, rate)


def test_rows_are_what_an_example_takes(run):
    arguments_of = run.mechanisms.arguments_of
    assert arguments_of("softmax") == ["softmax"]
    first, local = arguments_of("gated_delta + local, 16")
    assert first == "gated_delta"
    assert json.loads(local) == {"name": "local", "window": 16}


def test_linearize_makes_its_rows_from_one_teacher(run, tmp_path):
    study = importlib.import_module("tools.studies.linearize")
    tasks = importlib.import_module("tools.studies.tasks")
    rows = run.mechanisms.LINEARIZE
    assert len(rows) == len(set(rows)) == 19
    made = study.Study(tasks.Recall(0, smoke=True), tmp_path)
    for row, steps in ((rows[-1], 2), (rows[0], 20), (rows[4], 0)):
        model = made.row(row)
        assert made.steps == steps
        assert 0 <= made.task.score(model) <= 100
    names = {path.name for path in tmp_path.glob("*.keras")}
    assert names == {"teacher.keras", "hedgehog-window-16-least-score-10.keras"}
    second = study.Study(tasks.Recall(0, smoke=True), tmp_path)
    second.row(rows[0])
    assert second.seconds == 0  # found, not trained again


def test_a_row_s_part_of_the_teacher_s_gain(run):
    rows = [
        {"task": "a", "mechanism": name, "backend": "torch", "seed": seed}
        | {"parameters": 1, "seconds": 1.0, "metrics": {"bits": value + seed}}
        | {"steps": 40}
        for name, value in (
            (run.mechanisms.TEACHER, 2.0),
            (run.mechanisms.NOTHING, 4.0),
            ("hedgehog: swap only", 2.5),
        )
        for seed in (0, 1)
    ]
    table = run.report.table(run.report.rows_of(rows))
    assert "of the teacher's gain, %" in table[0]
    assert "| 75.0 (75.0 to 75.0) | 40 | 2 |" in table[-1]


def test_a_task_has_one_table_whatever_the_order_of_the_jobs(run, tmp_path):
    results = [
        {"task": task, "mechanism": mechanism, "backend": "jax", "seed": 0}
        | {"parameters": 1, "seconds": 1.0, "metrics": {"accuracy, %": 50.0}}
        for mechanism in ("softmax", "mala")
        for task in ("a", "b")
    ]
    content = {"commands": [], "results": results}
    run.report.write(content, tmp_path / "study")
    text = (tmp_path / "study.md").read_text()
    assert text.count("## a\n") == text.count("## b\n") == 1


def test_a_curve_has_a_table_and_a_picture(run, tmp_path):
    result = {"task": "a", "mechanism": "softmax", "backend": "torch"}
    result |= {"parameters": 1, "seconds": 1.0, "metrics": {"bits": 1.5}}
    results = [
        {
            **result,
            "seed": seed,
            "curve": {"0 to 8": 2.0 + seed, "8 to 16": 3.0},
        }
        for seed in (0, 1)
    ]
    content = {"commands": [], "results": results}
    run.report.write(content, tmp_path / "study")
    text = (tmp_path / "study.md").read_text()
    assert "| mechanism | 0 to 8 | 8 to 16 |" in text
    assert (
        "| `softmax` | 2.500 (2.000 to 3.000) | 3.000 (3.000 to 3.000)" in text
    )


def test_the_language_model_tests_each_byte_once(run, monkeypatch):
    study = importlib.import_module("tools.studies.language_model")
    calls = []

    class Uniform:
        def predict_on_batch(self, tokens):
            calls.append(len(tokens))
            return np.zeros((*tokens.shape, 257), "float32")

    bits = study.bits_at_positions(Uniform(), bytes(range(256)) * 3, 16)
    np.testing.assert_allclose(bits, np.log2(257), rtol=1e-5)
    assert calls == [1024]
    parts = study.by_distance(np.arange(64.0), 16)
    assert parts == {"0 to 16": 7.5, "16 to 32": 23.5, "32 to 64": 47.5}


def test_each_epoch_and_each_stream_has_batches_of_its_own(run):
    tasks = importlib.import_module("tools.studies.tasks")
    rows = np.arange(1000), np.arange(1000)
    draw = functools.partial(tasks.draw_rows, rows, 50)
    data = tasks.Drawn(draw, 2, (0,))
    first = [data[index][0] for index in (0, 1)]
    for x, y in (data[0], data[1]):
        np.testing.assert_array_equal(x, y)
    data.on_epoch_end()
    batches = [*first, data[0][0], tasks.Drawn(draw, 2, (1,))[0][0]]
    assert len({tuple(batch) for batch in batches}) == 4
    np.testing.assert_array_equal(tasks.Drawn(draw, 2, (0,))[0][0], first[0])


def test_equal_time_compares_all_mechanisms(run):
    traits = {
        name: keras_linattn.mechanisms.get(name).traits
        for name in keras_linattn.mechanisms.available()
        if name != "no_attention"  # of tools/studies/job.py
    }
    rows = run.STUDIES["equal_time"].mechanisms
    assert len(set(rows)) == len(rows)
    names = {row.partition(",")[0] for row in rows}
    assert names == {*traits, "no_attention"}
    sees_all = {row.partition(",")[0] for row in rows if "causal" not in row}
    assert sees_all - {"no_attention"} == {
        name for name in traits if traits[name].bidirectional
    }


def test_equal_time_trains_until_the_budget_is_used(run, tmp_path, monkeypatch):
    study = importlib.import_module("tools.studies.equal_time")
    task = study.Short(0, smoke=True)
    model = task.model("modified_linformer")
    model.compile(
        study.adamw_at(0.0),
        task.loss,
        metrics=["accuracy"],
        run_eagerly=True,  # quicker than to compile
    )
    seconds = itertools.count()
    monkeypatch.setattr(study.time, "process_time", lambda: next(seconds))
    steps, losses, curve = study.train(model, task, budget=4.0)
    assert steps == 4 and len(losses) == 3
    assert list(curve) == ["25%", "50%", "100%"]
    assert 0 < float(model.optimizer.learning_rate) < task.learning_rate / 2

    result = {"task": "a", "backend": "torch", "parameters": 1, "curve": curve}
    results = [
        {**result, "seconds": 4.0, "budget": 4.0, "steps": 4 + seed}
        | {"metrics": {"test accuracy, %": score}, "mechanism": name}
        | {"seed": seed}
        for name, score in (("softmax", 40.0), ("kda, causal", 50.0))
        for seed in (0, 2)
    ]
    run.report.write({"commands": [], "results": results}, tmp_path / "study")
    text = (tmp_path / "study.md").read_text()
    assert "By part of the budget, test accuracy, %:" in text
    assert "50.0 (50.0 to 50.0) | 5 | 2 |" in text
    assert text.index("`kda, causal`") < text.index("`softmax`")
    assert (tmp_path / "study.png").read_bytes()[:4] == b"\x89PNG"


def test_names_beside_a_picture_do_not_overlap(run):
    spread_out = run.report.scatter.spread_out
    assert spread_out([0.2, 0.7], 0.1) == [0.2, 0.7]
    assert spread_out([0.5, 0.5, 1.0, 1.0], 0.25) == [0.25, 0.5, 0.75, 1.0]
    assert spread_out([0.0, 0.0, 0.0], 0.9) == [0.0, 0.5, 1.0]


def test_training_chooses_a_learning_rate(run):
    study = run.STUDIES["associative_recall"]
    (task,) = study.rates
    call = ["associative_recall", "--task", task, "--mechanism", "softmax"]
    jobs = run.jobs_of(run.parse(call))
    assert [job["rate"] for job in jobs] == list(study.rates[task])
    jobs = run.jobs_of(run.parse([*call, "--rate", "0.5", "--seed", "0", "1"]))
    assert [job["arguments"][-2:] for job in jobs] == [
        ["--learning-rate", "0.5"]
    ] * 2
    results = [
        {"task": task, "mechanism": "softmax", "backend": "torch"}
        | {"parameters": 1, "seconds": 1.0, "state_bytes": 2048}
        | {"metrics": {"4 pairs, %": tested}, "rate": rate, "seed": seed}
        | {"history": {"accuracy": [0.0, trained]}}
        for rate, seed, trained, tested in (
            (0.01, 1, 0.9, 80.0),  # ended first: does not choose
            (0.01, 0, 0.5, 90.0),
            (0.001, 0, 0.8, 70.0),
            (0.001, 1, 0.2, 60.0),
        )
    ]
    table = run.report.table(run.report.rows_of(results))
    assert (
        "| in training, rate 0.001, % | in training, rate 0.01, % |"
        in (table[0])
    )
    assert "65.0 (60.0 to 70.0) | 2,048 | **80.0** | 50.0 | 2 |" in table[-1]


@pytest.mark.parametrize("name", ["EASIEST", "SMALL"])
def test_pathfinder_labels_are_those_of_the_drawn_paths(run, name):
    pathfinder = importlib.import_module("tools.studies.pathfinder")
    form = getattr(pathfinder, name)
    scenes = pathfinder.make_scenes(np.random.default_rng(0), 500, form)
    images = pathfinder.draw(scenes)
    assert len(images) > 8 and images.dtype == np.uint8
    assert scenes.labels.mean() == 0.5
    for dashes, circles, label, image in zip(
        scenes.dashes, scenes.circles, scenes.labels, images
    ):
        dashes = dashes[~np.isnan(dashes).any(axis=(1, 2))]
        paths = joined(dashes, pathfinder.GAP + 0.01)
        # No dash is nearer to another path than the space that is kept free.
        points = dashes[:, :1] + np.linspace(0, 1, 5)[:, None] * (
            dashes[:, 1:] - dashes[:, :1]
        )
        apart = points[:, None, :, None] - points[None, :, None]
        apart = np.linalg.norm(apart, axis=-1).min(axis=(2, 3))
        others = paths[:, None] != paths
        assert apart[others].min() > pathfinder.MARGIN - 0.5
        # A circle is an end of a path: just one dash touches it.
        ends = np.abs(dashes[None] - circles[:, None, None]).max(axis=-1) < 1e-4
        marked = ends.any(axis=2)
        assert (marked.sum(axis=1) == 1).all()
        first, second = paths[marked.argmax(axis=1)]
        assert (first == second) == label
        for path in (first, second):
            assert (paths == path).sum() == form.dashes
        columns, rows = circles.astype(int).T
        assert (image[rows, columns] == 255).all()


@pytest.mark.parametrize("name", ["EASIEST", "SMALL"])
def test_pathfinder_pairs_differ_between_the_circles_only(run, name):
    pathfinder = importlib.import_module("tools.studies.pathfinder")
    form = getattr(pathfinder, name)
    scenes = pathfinder.make_scenes(np.random.default_rng(1), 500, form)
    assert len(scenes.labels) > 8
    # A path of label 0 at each circle; both ends of the path of label 1.
    apart = scenes.dashes[::2, [0, form.dashes]]
    together = scenes.dashes[1::2, [0, form.dashes - 1]]
    together[:, 1] = together[:, 1, ::-1]
    np.testing.assert_allclose(apart, together, atol=1e-4)
    np.testing.assert_array_equal(scenes.circles[::2], scenes.circles[1::2])
    np.testing.assert_array_equal(scenes.circles, apart[:, :, 0].repeat(2, 0))
    lacking = np.isnan(scenes.dashes).any(axis=(2, 3))
    np.testing.assert_array_equal(lacking[::2], lacking[1::2])
    far = np.linalg.norm(scenes.dashes.mean(axis=2) - form.size / 2, axis=-1)
    far = far[:, : 2 * form.dashes].mean(axis=1)
    assert np.abs(far[::2] - far[1::2]).max() < pathfinder.SAME


def joined(dashes, reach):
    """The number of each dash's path: dashes with near ends are of one."""
    ends = dashes[:, None, :, None] - dashes[None, :, None]
    near = (np.linalg.norm(ends, axis=-1) < reach).any(axis=(2, 3))
    for _ in range(3):  # from the next dash to those eight further
        near = (near.astype(int) @ near) > 0
    return near.argmax(axis=1)


def test_pathfinder_images_depend_on_the_seed_only(run):
    pathfinder = importlib.import_module("tools.studies.pathfinder")
    images, labels = pathfinder.make_images(4, seed=1)
    again, _ = pathfinder.make_images(4, seed=1)
    other, _ = pathfinder.make_images(4, seed=2)
    assert (images == again).all() and (images != other).any()
    assert labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("study", "task"),
    [
        ("memory", "selective copying"),
        ("memory", "a needle"),
        ("language_model", "20 Newsgroups, bytes"),
        ("equal_time", "ListOps, 100 tokens"),
        ("long_range", "pixels of MNIST-5k"),
        ("long_range", "Pathfinder, 16 x 16"),
        ("long_range", "ListOps, 500 to 2,000 tokens"),
    ],
)
def test_smoke_form_of_a_study_runs(run, monkeypatch, study, task):
    job = importlib.import_module("tools.studies.job")
    monkeypatch.setattr(run, "EXAMPLES", ROOT / "examples")
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", sys.path[:])
    call = [study, "--smoke", "--mechanism", "linear_transformer"]
    (made,) = run.jobs_of(run.parse([*call, "--task", task]))
    result = job.run(made)
    assert np.isfinite(result["history"]["loss"]).all()
    assert all(np.isfinite(x) for x in result["metrics"].values())
    assert result["parameters"] > 0 and result["seconds"] > 0
    assert isinstance(result["commit"], str)  # empty without git


@pytest.mark.parametrize("name", ["pixels", "small_pathfinder", "listops"])
def test_long_range_draws_tokens_and_labels(run, name):
    study = importlib.import_module("tools.studies.long_range")
    task = study.TASKS[name](smoke=True)
    tokens, labels = task.draw(np.random.default_rng(0))
    assert tokens.shape == (2, task.length) and labels.shape == (2,)
    assert tokens.max() < task.vocabulary and labels.max() < task.classes


@pytest.fixture
def rules(run):
    pytest.importorskip("sklearn")
    return importlib.import_module("tools.studies.baselines")


def test_the_rule_of_the_first_token(rules):
    train = np.array([[1, 5], [1, 6], [1, 5], [2, 5]]), np.array([7, 7, 3, 4])
    test = np.array([[1, 9], [2, 9], [2, 9], [8, 9]]), np.array([7, 4, 0, 7])
    assert rules.first_token_rule(train, test) == (0.75, 0.5)
    assert rules.counts_of(test[0], 10)[0].tolist() == [1, *7 * [0], 1]


def test_the_rules_of_bytes(rules):
    generator = np.random.default_rng(0)
    noise = generator.integers(2, size=(2, 4000), dtype="uint8")
    train, test = (bytes(x) for x in noise)
    assert abs(rules.n_gram_bits(train, test, 0)[-1] - 1) < 0.01
    assert abs(rules.n_gram_bits(train, test, 3)[-1] - 1) < 0.02
    seen = b"abc" * 1000
    assert abs(rules.n_gram_bits(seen, seen[:90], 0)[-1] - np.log2(3)) < 0.01
    assert rules.n_gram_bits(seen, seen[:90], 1)[-1] < 0.1
    # "b" follows "a" in 2 of 3: (2 - 0.75 + 0.75 * 2 / 3) / 3, the first half.
    bits = rules.n_gram_bits(b"abacab", b"ab", 1)[-1]
    first = (3 - 0.75) / 6 + 0.75 * 3 / 6 / 3
    shorter = (2 - 0.75) / 6 + 0.75 * 3 / 6 / 3
    second = (2 - 0.75 + 0.75 * 2 * shorter) / 3
    np.testing.assert_allclose(bits, -np.log2([first, second]).mean())
    text = generator.integers(256, size=3000, dtype="uint8").tobytes()
    assert rules.packed(text) > 8 and rules.packed(text, text) < 0.5
    shared = rules.shared_sequences([*"abcd"], [*"bcde"], 3)
    assert shared == 0.5


def test_the_rule_of_columns(rules):
    spans = [(0.0, 0.2), (0.21, 0.4), (0.5, 0.9), (0.1, 0.3), (0.45, 0.6)]
    boxes = np.array([(left, 0, right, 0.1) for left, right in spans])
    assert rules.columns_of(boxes).tolist() == [1, 1, 2, 1, 2]
    chances = np.log([[0.9, 0.4, 0.6], [0.1, 0.6, 0.4]])
    named = rules.topics_of(chances, np.array([1, 1, 2]))
    assert named.tolist() == [0, 0, 0]
    assert rules.topics_of(chances, np.array([1, 2, 1])).tolist() == [0, 1, 0]


def test_state_bytes_are_those_of_keys_values_and_states(run):
    job = importlib.import_module("tools.studies.job")
    numbers = {  # width 32, 2 heads, 128 positions, float32
        "softmax": 2 * 128 * 32 + 1,  # and how many there are
        "gated_delta": 2 * 16 * 16,
        "linear_transformer": 2 * 16 * (16 + 1),  # and the sum of keys
        "local": 2 * 15 * (16 + 16 + 1),  # and which there are
    }
    for name, count in numbers.items():
        block = keras_linattn.LinearTransformerDecoder(
            32,
            num_heads=2,
            mechanism={"name": "local", "window": 16}
            if name == "local"
            else name,
        )
        block(keras.Input((None, 32)))
        assert job.state_bytes(block, 128) == 4 * count


def test_memory_asks_for_what_the_sequence_holds(run):
    study = importlib.import_module("tools.studies.memory")
    generator = np.random.default_rng(0)
    task = study.SelectiveCopying(0, smoke=False)
    tokens, answers = task.draw(generator, 40)
    marks = tokens > task.symbols
    assert (marks == (answers > 0)).all() and marks.sum() == 32 * task.copied
    for row, answer in zip(tokens[:, : -task.copied], answers):
        assert (row[row > 0] == answer[-task.copied :]).all()

    task = study.Needle(0, smoke=False)
    for training in (True, False):
        tokens, answers = task.draw(generator, 40, training)
        rows, places = np.nonzero(tokens == 1 + task.symbols)
        assert rows.tolist() == list(range(32))  # one mark in each
        asked = tokens == 2 + task.symbols
        assert (asked == (answers > 0)).all() and asked[:, -1].all()
        assert (asked.sum() == 32) == (not training)
        after = np.arange(40) > places[:, None] + 1
        assert not (asked & ~after).any()
        needles = tokens[rows, places + 1][:, None]
        assert (
            answers[asked] == np.broadcast_to(needles, (32, 40))[asked]
        ).all()
    tokens, _ = task.draw(generator, 40, depth=0.5)
    assert ((tokens == 1 + task.symbols).argmax(axis=1) == 18).all()


def test_no_row_of_a_test_is_one_of_training(run):
    study = importlib.import_module("tools.studies.memory")
    tasks = importlib.import_module("tools.studies.tasks")

    class Model:  # notes what it is given
        def fit(self, data, **options):
            self.train = rows_of(data)

        def evaluate(self, data, **options):
            self.tested |= rows_of(data)
            return {"accuracy": 0.0}

    for make in (tasks.Recall, study.SelectiveCopying, study.Needle):
        task, model = make(2, smoke=True), Model()
        model.tested, task.test_steps = set(), 20
        if make is tasks.Recall:
            model.fit(task.batches(20, 0))
            task.score(model)
        else:
            task.train(model)
            task.metrics(model)
        assert len(model.tested) > 100
        assert not model.train & model.tested


def rows_of(data):
    batches = [data[index][0] for index in range(len(data))]
    return {row.tobytes() for batch in batches for row in batch}


def test_rules_of_pathfinder_and_of_pixels(rules):
    pathfinder = importlib.import_module("tools.studies.pathfinder")
    images, labels, centres = pathfinder.make_rows(100, seed=0)
    assert centres.shape == (100, 2, 2) and labels.mean() == 0.5
    assert images.shape == (100, 32, 32)
    assert rules.tree_rule(labels[:, None], labels, 20) == 1
    assert rules.black_ink(np.array([0, 249, 250, 255])) == 2 / 3


def test_a_changed_image_of_pathfinder_has_the_same_pixels(run):
    study = importlib.import_module("tools.studies.long_range")
    task = study.SmallPathfinder(smoke=True)
    images = np.random.default_rng(0).integers(256, size=(16, task.length))
    changed = task.vary(images, np.random.default_rng(1))
    assert changed.shape == images.shape
    np.testing.assert_array_equal(np.sort(changed), np.sort(images))
    assert 1 < (changed == images).all(axis=1).sum() < 4  # two of 16 stay
