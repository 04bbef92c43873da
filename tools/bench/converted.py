"""A converted model beside its teacher: time and memory against the length.

    python -m tools.bench.converted --backend torch --out docs

The models are KerasHub's GPT-2 with random weights, softmax attention first.
Keras fuses softmax attention only in layers without dropout, and GPT-2 has it.
Prefill is one pass over a prompt. Decoding is one token behind a context of
that length: from a cache of keys and values, or from the state in its place.
Each length and model is a fresh process; a round is one call.
"""

import argparse
import pathlib
import sys

import keras
import numpy as np
from keras import ops

import keras_linattn
from keras_linattn.testing import timing
from tools import _machine
from tools import _process
from tools.bench import decoding
from tools.bench import report
from tools.bench import runtime

LENGTHS = (512, 4096, 16384)
# By name: arguments of `linearize`. The teacher comes first.
NO_DROPOUT = "softmax, dropout 0"
MODELS = {
    "softmax": None,
    NO_DROPOUT: None,
    "hedgehog": {},
    "hedgehog, window 64": {"window": 64},
}
SIZES = {
    "vocabulary_size": 256,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 256,
    "intermediate_dim": 1024,
}
STEPS = 10  # tokens of a round
COLUMNS = ("model", "length", "seconds", "processor, s", "of softmax")
NOTE = (
    "Medians over rounds. `of softmax` is the ratio of the processor times, "
    "which a busy machine changes less. Memory is the largest resident memory "
    "during a call over that before it; state is the cache of keys and values, "
    "or the state in its place, for one sequence."
)


def task(name, length):
    """The language model, with random weights."""
    import keras_hub

    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.GPT2Backbone(
        **SIZES,
        max_sequence_length=length,
        dropout=0.0 if name == NO_DROPOUT else 0.1,  # GPT-2's own
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    options = MODELS[name]
    return (
        model if options is None else keras_linattn.linearize(model, **options)
    )


def measure(job):
    """Prefill and decoding of one model at one length, in this process."""
    length = job["length"]
    model = task(job["model"], length)
    ids = np.random.default_rng(0).integers(1, 256, (1, length))
    ids = ops.convert_to_tensor(ids, dtype="int32")
    x = {"token_ids": ids, "padding_mask": ops.ones_like(ids)}
    prefill = runtime.stepper(lambda x: model(x, training=False))
    cache = empty_cache(model, length)
    step = runtime.stepper(model.call_with_cache, donated=(1,))
    place = ops.convert_to_tensor(length - 1, dtype="int32")
    decoder = decoding.Decoder(
        lambda token, cache, place: step(token, cache, place)[::2],
        cache,
        place,
    )
    refused = too_large(job["model"], length)
    return {
        "prefill": {"refused": refused}
        if refused
        else rounds(prefill, x, job["rounds"], 1),
        "decoding": rounds(decoder.step, ids[:, -1:], job["rounds"], STEPS),
        "state": decoder.bytes,
    }


def too_large(name, length):
    """Why the whole pass is not measured, or `None`."""
    if MODELS[name] is not None:
        return None
    needed = timing.softmax_memory(1, SIZES["num_heads"], length, step=False)
    if name == NO_DROPOUT:
        # torch's fused kernel forms no scores; the masks take a third.
        needed *= runtime.pick(jax=1, tensorflow=1, torch=1 / 3)
    else:
        needed *= 1.5  # measured: KerasHub's masks and their sums
    return timing.lack_of_memory(needed)


def empty_cache(model, length):
    """What a model of KerasHub decodes from; its values do not matter."""
    if hasattr(model, "_empty_cache"):
        return model._empty_cache(1, length)
    heads = SIZES["num_heads"]
    size = SIZES["hidden_dim"] // heads
    return ops.zeros((1, SIZES["num_layers"], 2, length, heads, size))


def rounds(function, argument, count, repeats):
    """Seconds and processor seconds of a call, and the bytes at its peak."""
    timing.wait(function(argument))  # compiled
    found = {"seconds": [], "processor": [], "bytes": []}
    for _ in range(count):
        before, used = _machine.forget_peak(), _machine.usage()[0]
        taken = timing.seconds(function, argument, repeats=repeats)
        found["seconds"].append(taken)
        used = _machine.usage()[0] - used
        # `timing.seconds` returns those of one call.
        found["processor"].append(used / repeats)
        found["bytes"].append(_machine.peak_memory() - before)
    return found


def tables(results):
    """The lines of a table of prefill and one of decoding."""
    lines = []
    for kind, last in (
        ("prefill", "memory, MB"),
        ("decoding", "state, bytes"),
    ):
        firsts = {}  # by length, the teacher's
        for result in results:
            firsts.setdefault(result["length"], result[kind])
        rows = [row(x, x[kind], firsts[x["length"]], kind) for x in results]
        lines += ["", f"{kind.capitalize()}:", ""]
        lines += report.table([*COLUMNS, last], rows)
    return lines


def row(result, found, first, kind):
    """The cells of a line of the table of a kind."""
    cells = [f"`{result['model']}`", f"{result['length']:,}"]
    if "refused" in found:
        return [*cells, found["refused"], "", "", ""]
    used, ratio = float(np.median(found["processor"])), ""
    if "refused" not in first:
        ratio = f"{used / float(np.median(first['processor'])):.2f}"
    size = f"{result['state']:,}"
    if kind == "prefill":
        size = f"{np.median(found['bytes']) / 1e6:,.0f}"
    return [*cells, f"{np.median(found['seconds']):.3g}", f"{used:.3g}"] + [
        ratio,
        size,
    ]


def page(content):
    lines = [
        "# Converted models: time and memory",
        "",
        "Written by `tools/bench/converted.py`; every round is in",
        "[linearize_speed.json](linearize_speed.json).",
        "",
        "```sh",
        content["command"],
        "```",
        "",
        "![time and memory](linearize_speed.png)",
        "",
        NOTE,
        "",
        f"- KerasHub's GPT-2: {sizes()}; float32, batch 1",
        f"- {', '.join(f'{k} {v}' for k, v in content['machine'].items())}",
    ]
    return "\n".join([*lines, *tables(content["results"]), "", ""])


def sizes():
    return ", ".join(f"{k} {v:,}" for k, v in SIZES.items())


def processor(found):
    """Median seconds of all cores, or `None` where it was not measured."""
    return None if "refused" in found else np.median(found["processor"])


def draw(results, path):
    """Processor time of prefill and of a token, and state, by the length."""
    import matplotlib

    matplotlib.use("Agg")  # files only, no window
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    figure, axes = pyplot.subplots(
        1, 3, figsize=(13, 4.2), layout="constrained"
    )
    panels = (
        ("prefill, processor s", lambda r: processor(r["prefill"])),
        ("a decoded token, processor s", lambda r: processor(r["decoding"])),
        ("state of a sequence, bytes", lambda r: r["state"]),
    )
    for axis, (title, value) in zip(axes, panels):
        for name in dict.fromkeys(r["model"] for r in results):
            points = [
                (r["length"], value(r)) for r in results if r["model"] == name
            ]
            points = [point for point in points if point[1] is not None]
            if points:  # else all were refused
                axis.plot(*zip(*points), marker="o", label=name)
        axis.set(title=title, xlabel="length")
        if axis.lines:
            axis.set(xscale="log", yscale="log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
        lengths = sorted({r["length"] for r in results})
        axis.set_xticks(lengths, [f"{x:,}" for x in lengths])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[-1].legend()  # which has all models
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.converted",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--backend", default=keras.backend.backend())
    add("--length", nargs="+", type=int, default=LENGTHS)
    add("--rounds", type=int, default=3)
    add("--out", type=pathlib.Path, help="folder for linearize_speed.*")
    return parser.parse_args(arguments)


def main(arguments=None):
    from tools.bench.__main__ import RETURN_MEMORY

    options = parse(arguments)
    environment = {**RETURN_MEMORY, "KERAS_BACKEND": options.backend}
    command = ["python", "-m", "tools.bench.converted"]
    command += ["--backend", options.backend, "--rounds", f"{options.rounds}"]
    content = {"command": " ".join(command), "results": []}
    for length in options.length:
        for name in MODELS:
            job = {"group": "converted", "model": name, "length": length}
            job["rounds"] = options.rounds
            found = _process.ask("tools.bench.worker", job, environment)
            content["machine"] = found.pop("machine")
            content["results"].append(
                {"model": name, "length": length, **found}
            )
            if options.out:
                write(content, options.out)  # what is there, at any time
            print(f"{name}, {length}: done", file=sys.stderr, flush=True)
    print("\n".join(tables(content["results"])))


def write(content, folder):
    """Writes the page, of which the part by hand stays, and its files."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / "linearize_speed"
    report.write_json(content, stem.with_suffix(".json"))
    report.write_page(page(content), stem.with_suffix(".md"))
    draw(content["results"], stem.with_suffix(".png"))


if __name__ == "__main__":
    main()
