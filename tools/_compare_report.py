"""The table and the picture of `compare.py`."""

import matplotlib
import numpy as np
from _common import label_of

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot  # noqa: E402  (after the choice above)
from matplotlib import ticker  # noqa: E402

REFERENCE = "softmax"  # step times are given relative to it
BY_HAND = "<!-- Below this line by hand: the tool keeps it. -->"
TITLES = {
    "text": "Texts: Reuters R8, bytes merged by 4",
    "newsgroups": "Texts: 20 Newsgroups, bytes merged",
    "books": "Texts: excerpts of books, 8,192 bytes, all blocks on all tokens",
    "books_hourglass": "Texts: excerpts of books, 8,192 bytes, hourglass",
    "images": "Images: MNIST-5k",
    "speech": "Speech: prompts in five languages, raw waveforms",
}
HEADS = (
    "mechanism",
    "test accuracy, %",
    "seeds",
    "parameters",
    "training, s",
    "step, ms",
    f"step / {REFERENCE}'s",
    "peak memory, MB",
)
BACKEND_HEADS = ("backend", "test accuracy, %", "seeds", "training, s")
NOTES = (
    "- accuracy: on the test data, looked at once, after training; with more "
    "than one seed the mean, and the lowest and highest. For one seed, all "
    "mechanisms see the same batches",
    "- training: seconds of the epochs, validation left out, the mean over "
    "seeds; trainings may have run side by side, so that steps say more about "
    "speed",
    "- step: forward, backward and update. The mechanisms take turns in one "
    "process, round after round: the median over rounds of each round's "
    f"median. The ratio to {REFERENCE} is taken round by round",
    "- peak memory: the largest resident memory of the training's own "
    "process, less what it held once the data were read: the compiled graph "
    "and the optimizer's state are in it",
)
LEAST_POINTS = 4  # of accuracy that an axis spans
COLUMNS = 2  # of the picture
# Places of a label around its point, in points: near ones are tried first.
DISTANCES = (7, 12, 18, 25, 33, 42, 52)
DIRECTIONS = (
    (1, 0),
    (-1, 0),
    (0, 1),
    (0, -1),
    (1, 1),
    (1, -1),
    (-1, 1),
    (-1, -1),
)


def write(content, settings, backend, stem):
    """Writes the page and the picture.

    Args:
        content: dict, the JSON file.
        settings: dict of the settings of each task; runs with others are left
            out.
        backend: str, of the tables of mechanisms.
        stem: path of the files without their ending.
    """
    tasks = {
        task: select(content, task, chosen, backend)
        for task, chosen in settings.items()
    }
    tasks = {task: results for task, results in tasks.items() if results[0]}
    tables = {task: rows_of(*results) for task, results in tasks.items()}
    path = stem.with_suffix(".md")
    kept = "\n"
    if path.is_file():
        kept = path.read_text(encoding="utf-8").partition(BY_HAND)[2] or kept
    text = page(stem.name, content["commands"], tasks, tables)
    text += backends(content, settings)
    path.write_text(text + BY_HAND + kept, encoding="utf-8")
    timed = {
        task: [row for row in rows if "step_ms" in row]
        for task, rows in tables.items()
    }
    timed = {task: rows for task, rows in timed.items() if rows}
    if any(len(rows) > 1 for rows in timed.values()):
        plot(timed, stem.with_suffix(".png"))


def select(content, task, settings, backend):
    """The runs and the timings that belong together."""
    wanted = {"task": task, "settings": settings, "backend": backend}.items()
    return [
        [result for result in content[kind] if wanted <= result.items()]
        for kind in ("runs", "times")
    ]


def rows_of(runs, timings):
    """A dict for each mechanism, the most accurate first."""
    grouped = {}
    for run in runs:
        grouped.setdefault(label_of(run["mechanism"]), []).append(run)
    times = times_of(timings)
    rows = [
        {
            "mechanism": label,
            "accuracies": [100 * run["test_accuracy"] for run in group],
            "accuracy": 100 * mean(group, "test_accuracy"),
            "parameters": group[0]["parameters"],
            "seconds": seconds_of(group),
            "peak_mb": mean(group, "peak_mb"),
            **times.get(label, {}),
        }
        for label, group in grouped.items()
    ]
    return sorted(rows, key=lambda row: -row["accuracy"])


def times_of(timings):
    """Milliseconds, and the median of each round's ratio to softmax."""
    found = {}
    for timing in timings:
        labels = [label_of(identifier) for identifier in timing["mechanisms"]]
        rounds = dict(zip(labels, np.array(timing["milliseconds"])))
        for label, values in rounds.items():
            found[label] = {"step_ms": float(np.median(values))}
            if REFERENCE in rounds:
                ratio = np.median(values / rounds[REFERENCE])
                found[label]["ratio"] = float(ratio)
    return found


def mean(group, name):
    return float(np.mean([run[name] for run in group]))


def seconds_of(group):
    return float(np.mean([sum(run["seconds_per_epoch"]) for run in group]))


def page(name, commands, tasks, tables):
    """The part of the page that the tool writes."""
    lines = [
        "# The mechanisms compared",
        "",
        f"Written by `tools/compare.py`; the numbers are in `{name}.json`.",
        "",
        f"![accuracy against step time]({name}.png)",
        "",
        "```",
        *commands,
        "```",
        "",
    ]
    runs = [run for results in tasks.values() for run in results[0]]
    lines += sorted({f"- machine: {machine(run['machine'])}" for run in runs})
    lines += [budget(task, *results) for task, results in tasks.items()]
    lines += NOTES
    for task, rows in tables.items():
        lines += ["", f"## {TITLES[task]}", "", *table(rows)]
    return "\n".join([*lines, "", ""])


def machine(facts):
    """One line; those whose value says what it is go without their name."""
    plain = ("processor", "system", "backend")
    return ", ".join(
        value if name in plain else f"{name} {value}"
        for name, value in facts.items()
    )


def budget(task, runs, timings):
    settings = ", ".join(f"{k} {v}" for k, v in runs[0]["settings"].items())
    line = f"- {task}: {runs[0]['steps']} training steps ({settings})"
    for timing in timings[-1:]:
        line += (
            f"; timed on a batch {tuple(timing['batch_shape'])}, "
            f"{timing['tokens']} tokens, {timing['rounds']} rounds"
        )
    return line


def table(rows):
    return markdown(
        HEADS,
        [
            [
                f"`{row['mechanism']}`",
                spread(row["accuracies"]),
                str(len(row["accuracies"])),
                f"{row['parameters']:,}",
                f"{row['seconds']:.0f}",
                f"{row['step_ms']:.0f}" if "step_ms" in row else "",
                f"{row['ratio']:.2f}" if "ratio" in row else "",
                f"{row['peak_mb']:.0f}",
            ]
            for row in rows
        ],
    )


def markdown(heads, rows):
    """Lines of a table: the first column to the left, numbers right."""
    return [
        f"| {' | '.join(heads)} |",
        f"| --- |{' ---: |' * (len(heads) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def spread(accuracies):
    """The mean, and the lowest and highest of more than one."""
    text = f"{np.mean(accuracies):.1f}"
    if len(accuracies) > 1:
        text += f" ({min(accuracies):.1f} to {max(accuracies):.1f})"
    return text


def backends(content, settings):
    """Tables of what was trained alike on more than one backend."""
    lines = []
    for task, chosen in settings.items():
        grouped = {}
        for run in content["runs"]:
            if (run["task"], run["settings"]) == (task, chosen):
                found = grouped.setdefault(label_of(run["mechanism"]), {})
                found.setdefault(run["backend"], []).append(run)
        for label, found in grouped.items():
            if len(found) > 1:
                title = f"## {TITLES[task]}: `{label}` on each backend"
                lines += [title, "", *backend_table(found), ""]
    return "\n".join([*lines, ""]) if lines else ""


def backend_table(found):
    return markdown(
        BACKEND_HEADS,
        [
            [
                backend,
                spread([100 * run["test_accuracy"] for run in group]),
                str(len(group)),
                f"{seconds_of(group):.0f}",
            ]
            for backend, group in sorted(found.items())
        ],
    )


def plot(tables, path):
    """Accuracy, lowest to highest, against step time; memory as colour."""
    tables = {task: rows for task, rows in tables.items() if len(rows) > 1}
    columns = min(COLUMNS, len(tables))
    lines = -(-len(tables) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(8 * columns, 6.5 * lines), squeeze=False
    )
    for axis, (task, rows) in zip(axes.flat, tables.items()):
        ranges = [
            (
                row["accuracy"] - min(row["accuracies"]),
                max(row["accuracies"]) - row["accuracy"],
            )
            for row in rows
        ]
        axis.errorbar(
            [row["step_ms"] for row in rows],
            [row["accuracy"] for row in rows],
            yerr=np.transpose(ranges),
            fmt="none",
            ecolor="grey",
            capsize=4,
            zorder=2,
        )
        points = axis.scatter(
            [row["step_ms"] for row in rows],
            [row["accuracy"] for row in rows],
            c=[row["peak_mb"] for row in rows],
            s=60,
            cmap="viridis_r",
            norm="log",
            edgecolors="black",
            linewidths=0.5,
            zorder=3,
        )
        bar = figure.colorbar(points, ax=axis, label="peak memory (MB)")
        axis.set_xscale("log")  # the slowest are several times slower
        for scale in (axis.xaxis, bar.ax.yaxis):
            plain_ticks(scale)
        axis.set_title(TITLES[task])
        axis.set_xlabel("training step (ms)")
        axis.set_ylabel("test accuracy (%)")
        axis.margins(0.15)
        low, high = axis.get_ylim()
        if high - low < LEAST_POINTS:  # a tenth of a point is no difference
            middle = (low + high) / 2
            axis.set_ylim(middle - LEAST_POINTS / 2, middle + LEAST_POINTS / 2)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.canvas.draw()  # places are known from here on
    for axis in axes.flat[len(tables) :]:
        axis.remove()
    for axis, rows in zip(axes.flat, tables.values()):
        label_points(axis, rows)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plain_ticks(axis):
    """50, 100, 200 on a logarithmic axis, not powers of ten."""
    axis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.set_major_formatter(ticker.ScalarFormatter())
    axis.set_minor_locator(ticker.NullLocator())


def label_points(axis, rows):
    """Writes each name where it covers no point and no other name."""
    centres = axis.transData.transform(
        [(row["step_ms"], row["accuracy"]) for row in rows]
    )
    taken = [
        matplotlib.transforms.Bbox.from_bounds(x - 6, y - 6, 12, 12)
        for x, y in centres
    ]
    for row in rows:
        for text in candidates(axis, row):
            box = letters(text)
            inside = axis.bbox.contains(box.x0, box.y0)
            inside = inside and axis.bbox.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            text = next(candidates(axis, row))  # better covered than missing
        taken.append(letters(text))


def letters(text):
    """The box of an annotation without its line, which may cross others."""
    text.get_window_extent()  # moves the letters to their place
    return matplotlib.text.Text.get_window_extent(text)


def candidates(axis, row):
    """The name at one place after another, with a line to its point."""
    for distance in DISTANCES:
        for x, y in DIRECTIONS:
            yield axis.annotate(
                row["mechanism"].replace("-reading=", "\n"),
                (row["step_ms"], row["accuracy"]),
                (x * distance, y * distance),
                textcoords="offset points",
                ha={1: "left", 0: "center", -1: "right"}[x],
                va={1: "bottom", 0: "center", -1: "top"}[y],
                fontsize=8,
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "grey"},
            )
