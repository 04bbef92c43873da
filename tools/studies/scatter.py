"""The picture of accuracy against the size of the state."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from matplotlib.ticker import NullLocator

BARS = "Bars reach from the lowest to the highest seed."
GAP = 0.2  # inches between two names


def states(rows, path):
    """Draws accuracy against bytes of state, a panel for each task.

    Returns a caption.
    """
    groups = {}
    for row in rows:
        groups.setdefault(row["task"], []).append(row)
    figure, axes = _axes(list(groups.values()))
    for axis, group in zip(axes, groups.values()):
        axis.set_xlabel("state, bytes (log)")
        kept = [row for row in group if row["state_bytes"]]
        _draw(axis, kept, [row["state_bytes"] for row in kept])
    figure.savefig(path, dpi=120)
    return f"Left is a smaller state, up is better. {BARS}"


def _axes(groups):
    """A figure with a panel for each group of rows, room for names."""
    height = max(4.5, 1 + GAP * max(map(len, groups)))
    figure = Figure((8 * len(groups), height), layout="constrained")
    return figure, figure.subplots(1, len(groups), squeeze=False)[0]


def _draw(axis, rows, x):
    """Points with bars from the lowest to the highest seed, and names.

    The names stand beside the picture in the order of the points, since many
    points lie close together; a line leads to each.
    """
    name = list(rows[0]["metrics"])[-1]
    values = [row["metrics"][name] for row in rows]
    for place, of_row in zip(x, values):
        axis.vlines(place, min(of_row), max(of_row), color="C0", alpha=0.5)
        axis.plot(place, np.mean(of_row), "o", color="C0")
    # A score such as `32 pairs, %` says at what, not what.
    named = f"test accuracy, {name}" if name[0].isdigit() else name
    axis.set(xscale="log", ylabel=named, title=rows[0]["task"])
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)
    means = [np.mean(of_row) for of_row in values]
    order = np.argsort(means, kind="stable")
    bottom, top = axis.get_ylim()
    heights = [(means[index] - bottom) / (top - bottom) for index in order]
    heights = spread_out(heights, GAP / axis.figure.get_figheight() * 1.2)
    for index, height in zip(order, heights):
        axis.annotate(
            rows[index]["mechanism"],
            (x[index], means[index]),
            (1.04, height),
            textcoords="axes fraction",
            fontsize="small",
            verticalalignment="center",
            arrowprops={
                "arrowstyle": "-",
                "alpha": 0.25,
                "relpos": (0, 0.5),
            },
        )


def spread_out(heights, gap):
    """Moves sorted heights in [0, 1] apart by `gap`, as little as it can."""
    gap = min(gap, 1 / max(1, len(heights) - 1))
    result = []
    for number, height in enumerate(heights):
        least = result[-1] + gap if result else 0.0
        room = 1 - gap * (len(heights) - 1 - number)
        result.append(min(max(height, least), room))
    return result
