"""The page, the JSON file and the pictures of a run."""

import json

import numpy as np

FLOOR, SOFTMAX = "floor", "keras_mha"
JSON = "benchmarks.json"
BY_HAND = "<!-- Below this line by hand: the tool keeps it. -->"
OPERATIONS = 12  # shown of a profile
KINDS = {
    "forward": "Forward",
    "step": "Training step: forward, and gradients of input and weights",
}
NOTES = """\
- Floor: the four dense projections of a layer (query, key, value, output) as
  bare matrix products, no bias, no attention. Self-attention; batch 1 and
  float32 where a table says nothing else. `linear:NAME` is
  `LinearSelfAttention(mechanism=NAME, causal=True)`, `both:NAME` the same
  with `causal=False`, `packed:NAME` causal in rows of several documents of 100
  to 1,000 positions, `keras_mha` is
  `keras.layers.MultiHeadAttention` with `use_causal_mask=True`,
  `keras_mha_both` without.
- A cell is the median over rounds of each round's ratio to the floor, and the
  lowest and highest; then the median time. The cases take turns in one
  process, round after round, each with a call before the one that is timed.
- Processor: the same ratio of the seconds of all cores, which a busy machine
  changes less; then the page faults of a call.
- First call: compilation and one call, at each length.
- Memory: the largest resident memory during a call over that before it, when
  the input is there, each case in a process of its own, with
  `MALLOC_MMAP_THRESHOLD_=65536` (glibc then keeps no freed tensor). `encoder`
  is four `LinearTransformerEncoder` blocks of intermediate size 4 d_model,
  `encoder_remat` the same with `remat=True`, `linear_in_segments` a causal
  `linear_transformer` that takes its input in pieces of 16,384 positions and
  computes each again in the backward pass (`tools/bench/cases.py`).
- `peer:NAME`: other libraries (`tools/bench/peers.py`); torch, and KerasHub on
  each backend. `gated_delta_as_keras_hub` is ours with all that
  `peer:keras_hub_gated_delta` has.
- Models: `train_on_batch` with Adam at the defaults of each model, beside the
  matrix products of its dense layers and their gradients, bare
  (`tools/bench/models.py`). Peak memory is that of the first two steps, with
  what compiling them takes, over the resident memory before them.
- Decoding: one call of the layer for each token, batch 1. The linear layer
  has taken in the whole context. `keras_hub_cache` is KerasHub's
  `CachedMultiHeadAttention` with a cache as long as the context, whose updated
  keys and values it stacks to a new array at each token.
- Before a mechanism is measured its conformance checks run (verify: {verify});
  one that fails has no numbers here."""


def page(content):
    """The tables of a run, in Markdown."""
    runs = content["runs"]
    lines = [
        "# Benchmarks",
        "",
        "Written by `tools/bench`; every round is in `benchmarks.json`.",
        "",
        "```",
        content["command"],
        "```",
        "",
        *machines(runs),
        NOTES.format(verify=content["verify"]),
    ]
    for backend in dict.fromkeys(run["backend"] for run in runs):
        own = [run for run in runs if run["backend"] == backend]
        lines += ["", f"## {backend}", *failures(own)]
        for part in dict.fromkeys(run.get("part", 0) for run in own):
            of_part = [run for run in own if run.get("part", 0) == part]
            for kind, title in KINDS.items():
                for group in by_dtype(of_part):
                    lines += times_table(group, kind, title)
        lines += softmax_table(own) + models_table(own)
        lines += memory_table(own) + decoding_table(own) + profile_tables(own)
    return "\n".join([*lines, "", ""])


def machines(runs):
    """A line for each backend: processor, versions, load before each job."""
    lines = []
    for backend in dict.fromkeys(run["backend"] for run in runs):
        found = [
            run["machine"]
            for run in runs
            if run["backend"] == backend and "machine" in run
        ]
        if not found:
            continue
        facts = dict(found[0])
        loads = [machine["load"] for machine in found]
        plain = ("processor", "system", "backend", "accelerator")
        facts["load"] = f"{min(loads)} to {max(loads)} as the jobs began"
        said = (v if k in plain else f"{k} {v}" for k, v in facts.items())
        lines.append(f"- {', '.join(said)}")
    return lines


def failures(runs):
    """What was not measured and why."""
    lines = []
    for run in runs:
        if run.get("failures"):
            lines.append(f"- `{run['mechanism']}`: {run['failures'][0]}")
        if run.get("failed"):
            last = run["failed"].splitlines()[-1:]
            lines.append(f"- {run['group']} failed: {' '.join(last)}")
    return ["", *lines] if lines else []


def by_dtype(runs):
    """Lists of the runs of one dtype each, in the order of the runs."""
    groups = {}
    for run in runs:
        groups.setdefault(run.get("dtype", "float32"), []).append(run)
    return list(groups.values())


def times_table(runs, kind, title):
    runs = [run for run in runs if run.get("kind") == kind and "results" in run]
    if not runs:
        return []
    runs = sorted(runs, key=lambda run: run["length"])
    lengths = [f"n = {run['length']:,}" for run in runs]
    rows, used = [], []
    for name in runs[-1]["results"]:
        cells = [time_cell(run["results"], name) for run in runs]
        cells.append(first_cell([run["results"][name] for run in runs]))
        rows.append([f"`{name}`", *cells])
        cells = [processor_cell(run["results"], name) for run in runs]
        used.append([f"`{name}`", *cells])
    sizes = f"d_model {runs[0]['dim']}, {runs[0]['heads']} heads"
    sizes += f", batch {runs[0].get('batch', 1)}"
    sizes += f", {runs[0].get('dtype', 'float32')}"
    rounds = f"{runs[0]['rounds']} rounds"
    lines = ["", f"{title} ({sizes}, {rounds}):", ""]
    lines += table(["case", *lengths, "first call"], rows)
    if any(any(cells[1:]) for cells in used):
        lines += ["", "Its processor time and page faults:", ""]
        lines += table(["case", *lengths], used)
    return lines


def softmax_table(runs):
    """How many times as long Keras' causal softmax layer takes."""
    rows, lengths = {}, []
    for run in runs:
        results = run.get("results", {})
        if run["group"] != "times" or "rounds" not in results.get(SOFTMAX, ()):
            continue
        lengths.append(run["length"])
        softmax = np.median(results[SOFTMAX]["rounds"])
        for name in results:
            if name.startswith("linear:") and "rounds" in results[name]:
                place = f"`{name}`", f"{run['dim']:,}", run["kind"]
                ratio = softmax / np.median(results[name]["rounds"])
                rows.setdefault(place, {})[run["length"]] = f"{ratio:.2f}"
    if not rows:
        return []
    lengths = sorted(set(lengths))
    heads = ["case", "d_model", "kind", *(f"n = {n:,}" for n in lengths)]
    cells = [
        [*place, *(found.get(n, "") for n in lengths)]
        for place, found in rows.items()
    ]
    title = (
        f"Time of `{SOFTMAX}` over that of a case (above 1 the case is faster):"
    )
    return ["", title, "", *table(heads, cells)]


def ratios(results, name, measure="rounds"):
    """Times of a case over the floor's, round by round; `None` without."""
    rounds = [results.get(case, {}).get(measure) for case in (name, FLOOR)]
    return None if None in rounds else np.divide(*rounds)


def first_cell(results):
    """Seconds of first calls, one for each length."""
    known = [f"{x['first']:.1f}" for x in results if "first" in x]
    return f"{', '.join(known)} s" if known else ""


def processor_cell(results, name):
    """Processor time over the floor's, and page faults, if measured."""
    result = results[name]
    if "processor" not in result:
        return ""
    faults = f"{np.median(result['faults']):,.0f} faults"
    ratio = ratios(results, name, "processor")
    if ratio is None or name == FLOOR:
        seconds = 1000 * np.median(result["processor"])
        return f"{seconds:.3g} ms, {faults}"
    return f"{np.median(ratio):.2f}, {faults}"


def models_table(runs):
    """Training steps of whole models over the products in them."""
    rows = []
    for run in runs:
        if run["group"] != "models" or "results" not in run:
            continue
        results = run["results"]
        for name, result in results.items():
            cells = time_cell(results, name), processor_cell(results, name)
            peak = f"{result['peak'] / 1e6:,.0f} MB" if "peak" in result else ""
            cells = *cells, peak, first_cell([result])
            rows.append([f"`{run['model']}`: {name}", *cells])
    if not rows:
        return []
    heads = ["model", "time", "processor", "peak memory", "first call"]
    return ["", "Training steps of models:", "", *table(heads, rows)]


def time_cell(results, name):
    result = results[name]
    if "refused" in result:
        return result["refused"]
    time = f"{1000 * np.median(result['rounds']):.3g} ms"
    ratio = ratios(results, name)
    if ratio is None or name == FLOOR:
        return time
    spread = f"{ratio.min():.2f} to {ratio.max():.2f}"
    return f"{np.median(ratio):.2f} ({spread}), {time}"


def memory_table(runs):
    """Peaks, and in the rows below the floor's over it."""
    runs = [run for run in runs if run["group"] == "memory"]
    runs = [run for run in runs if "failed" not in run]
    if not runs:
        return []
    found = {}
    for run in runs:
        place = run["length"], run["kind"]
        found.setdefault(run["case"], {})[place] = run
    places = list(dict.fromkeys(p for cells in found.values() for p in cells))
    rows = [
        [f"`{name}`"]
        + [memory_cell(cells, found.get(FLOOR, {}), p) for p in places]
        for name, cells in found.items()
    ]
    heads = [f"{kind}, n = {length:,}" for length, kind in places]
    return ["", "Peak memory:", "", *table(["case", *heads], rows)]


def memory_cell(cells, floor, place):
    if place not in cells:
        return ""
    run, least = cells[place], floor.get(place)
    if "refused" in run:
        return run["refused"]
    cell = f"{run['peak'] / 1e6:,.0f} MB"
    if least is None or run is least:
        return cell
    return f"{run['peak'] / least['peak']:.2f}, {cell}"


def profile_tables(runs):
    """For each case and kind: operations, how often, and their own time.

    Of one call under the backend's profiler, which slows it down. The time of
    an operation leaves out the operations that it calls.
    """
    lines = []
    for run in runs:
        if "operations" not in run:
            continue
        rows = [
            [f"`{name}`", f"{count:g}", f"{taken:.2f} ms"]
            for name, count, taken in run["operations"][:OPERATIONS]
        ]
        others = run["total"] - sum(row[2] for row in run["operations"])
        others += sum(row[2] for row in run["operations"][OPERATIONS:])
        rows.append(["all others", "", f"{others:.2f} ms"])
        title = f"`{run['case']}`, {run['kind']}, n = {run['length']:,}"
        heads = ["operation", "calls", "time"]
        lines += ["", f"{title}:", "", *table(heads, rows)]
    return lines


def decoding_of(runs):
    """By case, entries of contexts: those of the one decoding job."""
    for run in runs:
        if run["group"] == "decoding" and "results" in run:
            return run["results"]
    return {}


def decoding_table(runs):
    rows = []
    for name, entries in decoding_of(runs).items():
        for entry in entries:
            cells = [f"`{name}`", f"{entry['context']:,}"]
            if "refused" in entry:
                rows.append([*cells, entry["refused"], "", ""])
                continue
            rounds = 1000 * np.array(entry["rounds"])
            spread = f"{rounds.min():.3g} to {rounds.max():.3g}"
            rows.append(
                [*cells, f"{np.median(rounds):.3g} ms", spread]
                + [f"{entry['bytes']:,}"]
            )
    if not rows:
        return []
    heads = ["decoding", "context", "time per token", "spread", "state, bytes"]
    return ["", "Decoding:", "", *table(heads, rows)]


def table(heads, rows):
    return [
        f"| {' | '.join(heads)} |",
        f"| --- |{' ---: |' * (len(heads) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def write(content, folder):
    """Writes benchmarks.json, .md and the pictures."""
    from tools.bench import pictures

    write_json(content, folder / JSON)
    shown = pictures.draw(content["runs"], folder)
    # Profiles are for the terminal: they describe one machine on one day.
    runs = [run for run in content["runs"] if run["group"] != "profile"]
    text = page({**content, "runs": runs}) + "".join(
        f"![{t}]({n})\n\n" for n, t in shown
    )
    write_page(text, folder / "benchmarks.md")


def write_page(text, path):
    """Writes a page, of which the part by hand stays as it is."""
    kept = "\n"
    if path.is_file():
        kept = path.read_text(encoding="utf-8").partition(BY_HAND)[2] or kept
    path.write_text(text + BY_HAND + kept, encoding="utf-8")


def joined(paths):
    """The content of several files, each a part with tables of its own."""
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    checks = [part["verify"] for part in parts if part["verify"] != "no"]
    return {
        "command": "\n".join(part["command"] for part in parts),
        "verify": checks[0] if checks else "no",
        "runs": [
            {**run, "part": index}
            for index, part in enumerate(parts)
            for run in part["runs"]
        ],
    }


def write_json(content, path):
    """Whole, or not at all."""
    unfinished = path.with_suffix(".part")
    text = json.dumps(content, indent=1) + "\n"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
