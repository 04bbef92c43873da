"""`keras-linattn bench`: what it measures, leaves out and says."""

import pytest
from refusing import refuses

from keras_linattn import mechanisms
from keras_linattn.testing import timing
from keras_linattn_cli import bench
from keras_linattn_cli.main import main

pytest.importorskip("rich")

SMALL = ["--length", "8", "--dim", "8", "--heads", "2"]


def run(capsys, *arguments):
    assert main(["bench", *SMALL, *map(str, arguments)]) == 0
    return capsys.readouterr().out


def row_of(said, name):
    (line,) = [x for x in said.splitlines() if x.split()[:1] == [name]]
    return [float(cell) for cell in line.split()[1:] if cell[0].isdigit()]


def test_times_of_what_is_named_beside_softmax(capsys):
    said = run(capsys, "--mechanism", "linear_transformer", "linformer")
    assert "length 8, dim 8, 2 heads, batch 1, bidirectional" in said
    for name in ("linear_transformer", "linformer", "softmax"):
        forward, ratio, step, step_ratio = row_of(said, name)
        assert min(forward, ratio, step, step_ratio) > 0
        assert name != "softmax" or ratio == step_ratio == 1
    assert "The fastest training step here is" in said


def test_default_are_those_that_have_the_form(capsys, monkeypatch):
    monkeypatch.setattr(
        bench,
        "measure",
        lambda makers, *_: ({case: [1] for case in makers}, {}),
    )
    for flags, wanted, unwanted in (
        (["--causal"], "delta_rule", "xca"),
        ([], "xca", "delta_rule"),
    ):
        names = [line.split()[:1] for line in run(capsys, *flags).splitlines()]
        assert [wanted] in names and [unwanted] not in names
        assert ["modified_linformer"] in names


def test_out_of_time_says_so(capsys, monkeypatch):
    now = iter(range(0, 10**6, 61))  # each look at the clock is a minute later
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(now))
    names = ("linear_transformer", "modified_linformer")
    said = run(capsys, "--mechanism", *names)
    assert (
        f"No time was left (--seconds 60): {bench.SOFTMAX}, {names[0]}" in said
    )
    assert "medians of 1 to 1 rounds" in said


def test_softmax_that_does_not_fit_is_left_out(capsys, monkeypatch):
    monkeypatch.setattr(timing, "free_memory", lambda: 4000)
    said = run(capsys, "--mechanism", "linear_transformer")
    assert "softmax (Keras), step: not measured, needs about" in said
    assert said.rstrip().endswith("softmax was not measured.")
    assert row_of(said, "linear_transformer")


def test_verdict():
    step = {("a", "step"): [2.0, 9.0, 3.0], ("b", "step"): [4.0]}
    said = bench.verdict({**step, (bench.SOFTMAX, "step"): [6.0]})
    assert "is a's: softmax takes 2.0 times as long" in said
    said = bench.verdict({**step, (bench.SOFTMAX, "step"): [1.0]})
    assert "softmax is faster" in said and "does not pay" in said
    assert "was not measured" in bench.verdict(step)
    assert "more --seconds" in bench.verdict({("a", "forward"): [1.0]})


def test_refuses(capsys):
    said = refuses(capsys, "bench", "--dim", 9, "--heads", 2)
    assert "--heads" in said and "--dim 9 --heads 2" in said
    said = refuses(capsys, "bench", *SMALL, "--mechanism", "lineformer")
    assert "lineformer" in said and mechanisms.available()[0] in said
    with pytest.raises(SystemExit):
        main(["bench", "--length", "0"])
    assert "must be a positive integer" in capsys.readouterr().err
