"""The table and the picture of a study."""

import itertools

import matplotlib
import numpy as np

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot  # noqa: E402  (after the choice above)

LEAST_SPAN = 4  # points, of an axis in percent
BY_HAND = "<!-- Everything below this line is written by hand. -->"
NOTE = (
    "Results on the test data, computed once, after training: the mean over "
    "the seeds, with the lowest and the highest. Seconds are those of `fit`, "
    "validation included; jobs may have run side by side. Peak memory is that "
    "of the process, less what the imports took."
)


def write(content, stem):
    """Writes STEM.md, of which the part by hand stays, and STEM.png."""
    rows = rows_of(content["results"])
    path = stem.with_suffix(".md")
    head, by_hand = f"# {stem.name}\n", "\n"
    if path.is_file():
        old = path.read_text(encoding="utf-8")
        head = old.partition("\n")[0] + "\n"  # the title is by hand as well
        by_hand = old.partition(BY_HAND)[2] or by_hand
    text = page(content, rows, stem.name, head)
    path.write_text(text + BY_HAND + by_hand, encoding="utf-8")
    plot(rows, stem.with_suffix(".png"))


def rows_of(results):
    """Returns a row for each task, mechanism and backend: all of its seeds."""
    groups = {}
    for result in results:
        key = result["task"], result["mechanism"], result["backend"]
        groups.setdefault(key, []).append(result)
    return [
        {
            **dict(zip(("task", "mechanism", "backend"), key)),
            "parameters": group[0]["parameters"],
            "metrics": {
                name: [x["metrics"][name] for x in group]
                for name in group[0]["metrics"]
            },
            "seconds": np.mean([x["seconds"] for x in group]),
            "peak_mb": np.mean([x.get("peak_mb", np.nan) for x in group]),
        }
        for key, group in groups.items()
    ]


def page(content, rows, name, head):
    lines = [head, "Written by `tools/studies`; the numbers are in"]
    lines += [f"[{name}.json]({name}.json).", "", "```sh"]
    lines += [*content["commands"], "```", "", f"![results]({name}.png)", ""]
    lines += [NOTE, ""]
    found = (result.get("machine") for result in content["results"])
    machines = [machine(facts) for facts in found if facts]
    lines += [f"- {line}" for line in dict.fromkeys(machines)]
    for task, group in itertools.groupby(rows, lambda row: row["task"]):
        lines += ["", f"## {task}", "", *table(list(group))]
    return "\n".join([*lines, "", ""])


def machine(facts):
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def table(rows):
    """Returns the lines of a Markdown table."""
    metrics = list(rows[0]["metrics"])
    heads = ["mechanism", "backend", *metrics, "seeds", "parameters"]
    heads += ["training, s", "peak memory, MB"]
    lines = [
        f"| {' | '.join(heads)} |",
        f"| --- | --- |{' ---: |' * (len(heads) - 2)}",
    ]
    for row in rows:
        values = list(row["metrics"].values())
        cells = [f"`{row['mechanism']}`", row["backend"]]
        cells += [spread(*item) for item in row["metrics"].items()]
        cells += [str(len(values[0])), f"{row['parameters']:,}"]
        peak = "" if np.isnan(row["peak_mb"]) else f"{row['peak_mb']:.0f}"
        cells += [f"{row['seconds']:.0f}", peak]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def spread(name, values):
    """Formats the mean, and the lowest and highest of more than one."""
    digits = 1 if name.endswith("%") else 3
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
    return text


def plot(rows, path):
    """Draws a panel for each task, with a dot for each seed."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = pyplot.subplots(
        1,
        len(tasks),
        figsize=(1 + 4 * len(tasks), 4.5),
        squeeze=False,
        layout="constrained",
    )
    for axis, task in zip(axes[0], tasks):
        group = [row for row in rows if row["task"] == task]
        if len(group[0]["metrics"]) > 1:
            plot_lines(axis, group)
        else:
            plot_dots(axis, group)
        axis.set_title(task)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_lines(axis, rows):
    """Draws a line for each mechanism, over the metrics."""
    for row in rows:
        means = [np.mean(values) for values in row["metrics"].values()]
        axis.plot(list(row["metrics"]), means, "o-", label=label_of(row))
    axis.legend(fontsize="small")


def plot_dots(axis, rows):
    """Draws a column for each mechanism and backend."""
    for row in rows:
        ((name, values),) = row["metrics"].items()
        axis.plot([label_of(row)] * len(values), values, "o", alpha=0.7)
        axis.set_ylabel(name)
    low, high = axis.get_ylim()
    if (
        name.endswith("%") and high - low < LEAST_SPAN
    ):  # a tenth of a point is not a difference
        middle = (low + high) / 2
        axis.set_ylim(middle - LEAST_SPAN / 2, middle + LEAST_SPAN / 2)
    axis.margins(x=0.3)
    for label in axis.get_xticklabels():
        label.set(rotation=35, ha="right", rotation_mode="anchor")


def label_of(row):
    return f"{row['mechanism']}\n{row['backend']}"
