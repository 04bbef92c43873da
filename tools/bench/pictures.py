"""The pictures of a run: ratios to the floor, step times, and decoding."""

import matplotlib
import numpy as np

from tools.bench import report

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot  # noqa: E402  (after the choice above)

LEGEND_ENTRY = 3  # inches


def draw(runs, folder):
    """Draws what there is; returns pairs of file name and title."""
    shown = []
    if any(run["group"] == "times" and "results" in run for run in runs):
        draw_layers(runs, folder / "benchmarks_layers.png")
        shown.append(("benchmarks_layers.png", "time over the floor's"))
    if any(run.get("kind") == "step" and "results" in run for run in runs):
        draw_steps(runs, folder / "benchmarks_steps.png")
        title = "time of a training step against the length"
        shown.append(("benchmarks_steps.png", title))
    if report.decoding_of(runs):
        draw_decoding(runs, folder / "benchmarks_decoding.png")
        title = "time per token and bytes of state against the context"
        shown.append(("benchmarks_decoding.png", title))
    return shown


def draw_layers(runs, path):
    """Ratio to the floor against the length: a panel by backend and kind."""
    runs = [run for run in runs if run["group"] == "times" and "results" in run]
    backends = list(dict.fromkeys(run["backend"] for run in runs))
    figure, axes = pyplot.subplots(
        len(backends),
        len(report.KINDS),
        figsize=(12, 4 * len(backends)),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    lines = styles(runs)
    for row, backend in zip(axes, backends):
        for axis, kind in zip(row, report.KINDS):
            own = [run for run in runs if run["backend"] == backend]
            own = [run for run in own if run["kind"] == kind]
            if not own:
                axis.remove()
                continue
            own = sorted(own, key=lambda run: run["length"])
            draw_ratios(axis, own, lines)
            axis.set_title(f"{backend}, {kind}")
            axis.tick_params(labelbottom=True)
    legend_below(figure)
    save(figure, path)


def styles(runs):
    """By case, how it is drawn: other libraries dashed."""
    names = dict.fromkeys(name for run in runs for name in run["results"])
    colours = pyplot.get_cmap("tab20").colors
    colours = colours[::2] + colours[1::2]  # the strong ones first
    return {
        name: {
            "color": colours[index % len(colours)],
            "linestyle": "--" if name.startswith("peer:") else "-",
            "marker": "o",
            "label": name,
        }
        for index, name in enumerate(names)
    }


def legend_below(figure):
    """One legend of all panels, each case once."""
    lines = {
        label: line
        for axis in figure.axes
        for line, label in zip(*axis.get_legend_handles_labels())
    }
    if lines:
        columns = max(1, int(figure.get_figwidth() // LEGEND_ENTRY))
        figure.legend(
            lines.values(), lines, loc="outside lower center", ncols=columns
        )


def draw_ratios(axis, runs, lines):
    for name in lines:
        if name == report.FLOOR:
            continue
        points = {}  # of a length in several parts, the first
        for run in runs:
            ratio = report.ratios(run["results"], name)
            if ratio is not None:
                points.setdefault(run["length"], np.median(ratio))
        if points:
            axis.plot(*zip(*points.items()), **lines[name])
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("length n")
    axis.set_ylabel("time / floor's time")
    axis.grid(alpha=0.3)


def draw_steps(runs, path):
    """Seconds of a training step against the length: where lines cross."""
    runs = [run for run in runs if run.get("kind") == "step"]
    runs = [run for run in runs if "results" in run]
    backends = list(dict.fromkeys(run["backend"] for run in runs))
    figure, axes = pyplot.subplots(
        1,
        len(backends),
        figsize=(max(6, 4.5 * len(backends)), 5.5),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    lines = styles(runs)
    for axis, backend in zip(axes[0], backends):
        found = {}
        for run in runs:
            for name, result in run["results"].items():
                if run["backend"] == backend and "rounds" in result:
                    points = found.setdefault(name, {})
                    points.setdefault(
                        run["length"], np.median(result["rounds"])
                    )
        for name, points in found.items():
            axis.plot(*zip(*sorted(points.items())), **lines[name])
        axis.set_title(backend)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("length n")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("seconds of a training step")
    legend_below(figure)
    save(figure, path)


def draw_decoding(runs, path):
    """Time per token beside bytes of state, both against the context."""
    figure, (time, state) = pyplot.subplots(
        1, 2, figsize=(12, 4.5), layout="constrained"
    )
    for backend in dict.fromkeys(run["backend"] for run in runs):
        own = [run for run in runs if run["backend"] == backend]
        for name, entries in report.decoding_of(own).items():
            entries = [entry for entry in entries if "rounds" in entry]
            contexts = [entry["context"] for entry in entries]
            times = [1000 * np.median(entry["rounds"]) for entry in entries]
            sizes = [entry["bytes"] for entry in entries]
            label = f"{backend}, {name}"
            time.plot(contexts, times, marker="o", label=label)
            state.plot(contexts, sizes, marker="o", label=label)
    time.set_ylabel("ms for each token")
    state.set_ylabel("bytes of state, batch 1")
    for axis in (time, state):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("context, tokens")
        axis.grid(alpha=0.3)
    time.legend(fontsize="small")
    save(figure, path)


def save(figure, path):
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
