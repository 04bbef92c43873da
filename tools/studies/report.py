"""The table and the picture of a study."""

import collections
import itertools

import numpy as np

from tools.studies import mechanisms
from tools.studies import pictures
from tools.studies import scatter

LEAST_STATES = 4  # rows of a task, to draw them against their states
BY_HAND = "<!-- Everything below this line is written by hand. -->"
HOW_TO = (
    "Run this in a clone, after `bash tools/setup.sh` and `source "
    ".venv/bin/activate`; results are written to `out/studies`. `--smoke` "
    "trains tiny models in seconds, to test the set-up."
)
NOTE = (
    "Results on the test data, computed once in each run, after training: the "
    "mean over the seeds, with the lowest and the highest. Seconds are those "
    "of `fit`, validation included; jobs may have run side by side on a busy "
    "machine, so they do not compare speeds. Peak memory is that of the "
    "process, minus the memory after the imports."
)
SMOKE_NOTE = "**Tiny runs (`--smoke`): these numbers mean nothing.**"
BUDGET_NOTE = (
    "Results on the test data: the mean over the seeds, with the lowest and "
    "the highest. They were computed at each part of the budget, and chose "
    "nothing. Seconds are those that the processor spent on training steps; "
    "jobs may have run side by side. Peak memory is that of the process, minus "
    "the memory after the imports."
)


def write(content, stem, smoke=False):
    """Writes STEM.md, of which the part by hand stays, and STEM.png."""
    rows = rows_of(content["results"])
    path = stem.with_suffix(".md")
    head, by_hand = f"# {stem.name}\n", "\n"
    if path.is_file():
        old = path.read_text(encoding="utf-8")
        head = old.partition("\n")[0] + "\n"  # the title is by hand as well
        by_hand = old.partition(BY_HAND)[2] or by_hand
    text = page(content, rows, stem.name, head, draw(rows, stem), smoke)
    path.write_text(text + BY_HAND + by_hand, encoding="utf-8")


def draw(rows, stem):
    """Draws STEM.png, and STEM_states.png if there is enough to compare.

    Returns:
        Dict from the name of each picture to its caption.
    """
    picture = stem.with_suffix(".png")
    if rows[0]["budget"]:
        drawn = {picture.name: pictures.draw_budget(rows, picture)}
    else:
        drawn = {picture.name: pictures.draw(rows, picture)}
    tasks = [row["task"] for row in rows if row["state_bytes"]]
    many = [x for x in rows if tasks.count(x["task"]) >= LEAST_STATES]
    if many:
        picture = stem.with_name(f"{stem.name}_states.png")
        drawn[picture.name] = scatter.states(many, picture)
    return drawn


def rows_of(results):
    """Returns a row for each task, mechanism and backend: all of its seeds."""
    groups, tried = {}, {}
    for result in results:
        key = result["task"], result["mechanism"], result["backend"]
        groups.setdefault(key, []).append(result)
    # Jobs side by side end in any order: one task after the other, each with
    # its mechanisms in the same order.
    tasks, names, backends = (list(dict.fromkeys(x)) for x in zip(*groups))
    groups = {
        key: groups[key]
        for key in itertools.product(tasks, names, backends)
        if key in groups
    }
    for key, group in groups.items():
        tried[key] = rates_of(group)
        best = max(tried[key], key=tried[key].get, default=None)
        groups[key] = [x for x in group if x.get("rate") == best]
    rows = [
        {
            **dict(zip(("task", "mechanism", "backend"), key)),
            "parameters": group[0]["parameters"],
            "metrics": {
                name: [x["metrics"][name] for x in group]
                for name in group[0]["metrics"]
            },
            "seconds": np.mean([x["seconds"] for x in group]),
            "peak_mb": np.mean([x.get("peak_mb", np.nan) for x in group]),
            "seeds": [x["seed"] for x in group],
            "steps": steps_of(group),
            "budget": group[0].get("budget"),
            "state_bytes": group[0].get("state_bytes"),
            "rates": tried[key],
            "curve": curve_of(group),
        }
        for key, group in groups.items()
    ]
    if rows[0]["budget"]:  # the best first
        rows.sort(key=lambda row: -np.mean([*row["metrics"].values()]))
    return rows


def steps_of(group):
    """The mean, as a budget of time ends each run after steps of its own."""
    if "steps" not in group[0]:
        return None
    return round(np.mean([result["steps"] for result in group]))


def rates_of(group):
    """Dict from each learning rate tried to the accuracy it trained to.

    That is the accuracy of the last epoch, in percent, with the lowest seed:
    test data do not choose a rate, nor does the order in which jobs end.
    """
    rated = [result for result in group if "rate" in result]
    first = min((result["seed"] for result in rated), default=None)
    return {
        result["rate"]: 100 * result["history"]["accuracy"][-1]
        for result in sorted(rated, key=lambda x: x["rate"])
        if result["seed"] == first
    }


def curve_of(group):
    """A list for each part of a longer test, one value for each seed."""
    return {
        name: [x["curve"][name] for x in group]
        for name in group[0].get("curve", {})
    }


def gains(rows):
    """What each row has of the teacher's gain over no attention, in percent.

    Args:
        rows: those of a task, from `rows_of`.

    Returns:
        Dict from the number of a row to a value for each seed; empty if there
        is no teacher.
    """
    found = {(row["mechanism"], row["backend"]): scores(row) for row in rows}
    result = {}
    for number, row in enumerate(rows):
        ends = [
            found.get((name, row["backend"]), {})
            for name in (mechanisms.NOTHING, mechanisms.TEACHER)
        ]
        shared = [x for x in row["seeds"] if all(x in end for end in ends)]
        if shared:
            result[number] = [
                100
                * (scores(row)[seed] - ends[0][seed])
                / (ends[1][seed] - ends[0][seed])
                + 0.0  # not -0
                for seed in shared
            ]
    return result


def scores(row):
    """Dict from seed to the first metric."""
    return dict(zip(row["seeds"], next(iter(row["metrics"].values()))))


def page(content, rows, name, head, drawn, smoke):
    lines = [head, "Written by `tools/studies`; the numbers are in"]
    lines += [f"[{name}.json]({name}.json).", "", "```sh"]
    lines += [*content["commands"], "```", "", f"{HOW_TO} {hours(content)}", ""]
    lines += [SMOKE_NOTE, ""] if smoke else []
    for file, caption in drawn.items():
        lines += [f"![{caption}]({file})", "", f"*{caption}*", ""]
    lines += [BUDGET_NOTE if rows[0]["budget"] else NOTE, ""]
    found = (result.get("machine") for result in content["results"])
    machines = [machine(facts) for facts in found if facts]
    lines += [f"- {line}" for line in dict.fromkeys(machines)]
    for task, group in itertools.groupby(rows, lambda row: row["task"]):
        group = list(group)
        lines += ["", f"## {task}", "", *table(group), *curves(group)]
    return "\n".join([*lines, "", ""])


def hours(content):
    """How long training took on each machine, jobs one after the other."""
    totals = collections.Counter()
    for result in content["results"]:
        facts = result.get("machine", {})
        name = facts.get("accelerator") or facts.get("processor")
        totals[name or "a machine not noted"] += result["seconds"] / 3600
    parts = [f"{total:.1f} hours on {name}" for name, total in totals.items()]
    return f"Training took {' and '.join(parts)}, tests not counted."


def machine(facts):
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def table(rows):
    """Returns the lines of a Markdown table."""
    metrics = list(rows[0]["metrics"])
    gained = gains(rows)
    has_state = any(row["state_bytes"] is not None for row in rows)
    rates = sorted({rate for row in rows for rate in row["rates"]})
    heads = ["mechanism", "backend", *metrics]
    heads += ["state, bytes"] if has_state else []
    heads += [f"in training, rate {rate}, %" for rate in rates]
    heads += ["of the teacher's gain, %"] if gained else []
    has_steps = bool(gained or rows[0]["budget"])
    heads += ["steps"] if has_steps else []
    heads += ["seeds", "parameters"]
    heads += ["training, s", "peak memory, MB"]
    lines = [
        f"| {' | '.join(heads)} |",
        f"| --- | --- |{' ---: |' * (len(heads) - 2)}",
    ]
    for number, row in enumerate(rows):
        values = list(row["metrics"].values())
        cells = [f"`{row['mechanism']}`", row["backend"]]
        cells += [spread(*item) for item in row["metrics"].items()]
        if has_state:
            cells += [f"{row['state_bytes'] or 0:,}"]
        cells += [rate_cell(row["rates"], rate) for rate in rates]
        if gained:
            of_row = gained.get(number)
            cells += [spread("%", of_row) if of_row else ""]
        cells += [str(row["steps"])] if has_steps else []
        cells += [str(len(values[0])), f"{row['parameters']:,}"]
        peak = "" if np.isnan(row["peak_mb"]) else f"{row['peak_mb']:.0f}"
        cells += [f"{row['seconds']:.0f}", peak]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def curves(rows):
    """The lines of a table of curves, if there are any."""
    rows = [row for row in rows if row["curve"]]
    if not rows:
        return []
    name, parts = list(rows[0]["metrics"])[-1], list(rows[0]["curve"])
    by = pictures.name_of_parts(parts)
    by = "part of the budget" if rows[0]["budget"] else by
    lines = ["", f"By {by}, {name}:", ""]
    lines += [f"| mechanism | {' | '.join(parts)} |"]
    lines += [f"| --- |{' ---: |' * len(parts)}"]
    for row in rows:
        cells = [spread(name, row["curve"][part]) for part in parts]
        lines.append(f"| `{row['mechanism']}` | {' | '.join(cells)} |")
    return lines


def rate_cell(rates, rate):
    """Formats what was trained at the rate, the best one in bold."""
    if rate not in rates:
        return ""
    bold = "**" if rates[rate] == max(rates.values()) else ""
    return f"{bold}{rates[rate]:.1f}{bold}"


def spread(name, values):
    """Formats the mean, and the lowest and highest of more than one."""
    digits = 1 if name.endswith("%") or np.mean(values) >= 10 else 3
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
    return text
