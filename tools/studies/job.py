"""Runs an example in this process: `python -m tools.studies.job JOB ANSWER`.

JOB is JSON, as `run.py` makes it; the answer is written to the path ANSWER. An
example leaves `model`, `history`, `seconds` and its scores in its namespace.
"""

import json
import math
import pathlib
import runpy
import sys
import tempfile

import keras
import numpy as np

import keras_linattn
from tools import _machine
from tools.studies.mechanisms import arguments_of


@keras_linattn.mechanisms.register("no_attention", package="studies")
class NoAttention(keras_linattn.mechanisms.Mechanism):
    """Returns zeros: shows what a model can do without attention."""

    traits = keras_linattn.mechanisms.Traits(causal=True, explicit=False)

    def state_spec(self, num_heads, key_dim, value_dim):
        return {}

    def attend(self, query, key, value, **unused):
        return 0 * (query + key + value)  # not zeros_like: all get gradients


def run(job):
    """Runs the job's example and returns a dict of results."""
    example = pathlib.Path(job["example"])
    before = _machine.forget_peak()
    commit = _machine.commit()  # now: files may change while it trains
    with tempfile.TemporaryDirectory() as out:
        sys.argv = [example.name, *job["arguments"], "--out", out]
        sys.argv += ["--mechanism", *arguments_of(job["mechanism"])]
        sys.argv += ["--seed", str(job["seed"])]
        sys.path.insert(0, str(example.resolve().parent))  # for data.py
        names = runpy.run_path(str(example), run_name="__main__")
    return {
        "metrics": metrics_of(names),
        "parameters": names["model"].count_params(),
        "seconds": round(names["seconds"], 1),
        "peak_mb": round((_machine.peak_memory() - before) / 1e6),
        "history": names["history"].history,
        "machine": _machine.machine(),
        "commit": commit,
        **{x: names[x] for x in ("curve", "budget") if x in names},
        # Those of an example may be of an epoch.
        **(
            {"steps": names["steps"]}
            if {"metrics", "steps"} <= {*names}
            else {}
        ),
        **state_of(names),
    }


def state_of(names):
    """Bytes that the recall model's attention keeps of the longest sequence.

    They are what a stream of tokens needs: the states of linear mechanisms,
    and the keys and values of softmax.
    """
    if not isinstance(names.get("accuracy"), dict):
        return {}
    length = names["test"][0][0].shape[1]
    blocks = [
        layer
        for layer in names["model"].layers
        if isinstance(layer, keras_linattn.LinearTransformerDecoder)
    ]
    return {"state_bytes": sum(state_bytes(x, length) for x in blocks)}


def state_bytes(block, length):
    """Bytes of one block's state, for one sequence."""
    mechanism = block.mechanism
    if keras_linattn.mechanisms.name_of(mechanism) == "softmax":
        entry = {"name": "softmax", "cache_length": length}
        mechanism = keras_linattn.mechanisms.get(entry)
    size = block.input.shape[-1] // block.num_heads
    spec = mechanism.state_spec(block.num_heads, size, size)
    return sum(
        math.prod(leaf.shape[1:]) * np.dtype(leaf.dtype).itemsize
        for leaf in keras.tree.flatten(spec)
    )


def metrics_of(names):
    """Finds the scores in an example's namespace, accuracies in percent."""
    if "metrics" in names:
        return names["metrics"]
    if "bits" in names:
        return {"bits per byte": names["bits"]}
    if "accuracy" in names:
        return {f"{n} pairs, %": 100 * x for n, x in names["accuracy"].items()}
    return {"test accuracy, %": 100 * names["score"]["accuracy"]}


def main(job, answer):
    result = run(json.loads(job))
    pathlib.Path(answer).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
