"""The picture of a study: dots for one score, lines for several."""

import matplotlib
import numpy as np

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot  # noqa: E402  (after the choice above)

COLOURS = pyplot.get_cmap("tab10").colors
DODGE = 0.3  # of the distance of two ticks, in which ten lines lie apart
LEAST_SPAN = 4  # points, of an axis in percent
HIGHEST = 1.2  # times the lowest bits per byte; what is above leaves the panel
LONGER = "position in a longer test"
DEPTH = "place of what is asked for in the sequence"
OF_DOTS = "A dot is a seed, a black line the mean of a row."
OF_LINES = (
    "Bars reach from the lowest to the highest seed. Lines are moved sideways "
    "a little so that they do not cover each other."
)


def draw(rows, path):
    """Draws the scores of each task, with the lowest and highest seed.

    Args:
        rows: those of `report.rows_of`.
        path: file to write.

    Returns:
        A caption.
    """
    tasks = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(row)
    lines = [x for group in tasks.values() for x in panels_of(group)]
    dots = [x for x in tasks.items() if not is_series(x[1][0]["metrics"])]
    figure = draw_lines(dots, lines) if lines else draw_dots(tasks)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return " ".join([OF_DOTS] * bool(dots) + [OF_LINES] * bool(lines))


def draw_budget(rows, path):
    """Draws the accuracy of each row and the steps it took beside it.

    Args:
        rows: those of `report.rows_of`, which have a budget.
        path: file to write.

    Returns:
        A caption.
    """
    figure, (left, right) = pyplot.subplots(
        1,
        2,
        figsize=(9, 1.1 + 0.25 * len(rows)),
        sharey=True,
        layout="constrained",
    )
    places = range(len(rows))
    plot_dots(left, rows, places)
    name_lines(left, labels_of(rows))
    right.barh(places, [row["steps"] for row in rows], height=0.6, alpha=0.6)
    right.set_xlabel(f"training steps in {rows[0]['budget']:.0f} s")
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return OF_DOTS


def is_series(metrics):
    """Whether several scores are one score of several sizes: a line.

    Of scores of different kinds, only the first one is drawn.
    """
    return len(metrics) > 1 and all(name.endswith(", %") for name in metrics)


def panels_of(rows):
    """What a task has to be drawn as lines.

    Returns:
        List of pairs: a title, and by row the values of each tick.
    """
    task, panels = rows[0]["task"], []
    series = is_series(rows[0]["metrics"])
    if series:
        panels.append((task, [(row, row["metrics"]) for row in rows]))
    if rows[0]["curve"]:
        curves = [(row, row["curve"]) for row in rows]
        last = list(rows[0]["metrics"])[-1]
        what = last[:-3] if series else "longer test"
        panels.append((f"{task}: {what}", curves))
    return panels


def labels_of(rows):
    """Names of a task's rows; a mechanism's further rows name the backend."""
    names = [row["mechanism"] for row in rows]
    return [
        name + (f", {row['backend']}" if name in names[:place] else "")
        for place, (name, row) in enumerate(zip(names, rows))
    ]


def draw_dots(tasks):
    """A panel for each task, in which each row has a line of its own."""
    if sum(len(rows) == 1 for rows in tasks.values()) > len(tasks) / 2:
        # The tasks are what is compared.
        rows = [row for group in tasks.values() for row in group]
        labels = [f"{row['task']}, {row['mechanism']}" for row in rows]
        panels = [("", rows, labels)]
    else:
        panels = [(name, x, labels_of(x)) for name, x in tasks.items()]
    names = list(dict.fromkeys(x for _, _, labels in panels for x in labels))
    figure, axes = make_panels(
        len(panels), 3, (3.2, 1.1 + 0.3 * len(names)), sharey=True
    )
    for axis, (title, rows, labels) in zip(axes, panels, strict=True):
        plot_dots(axis, rows, [names.index(label) for label in labels])
        axis.set_title(title)
    name_lines(axes[0], names)
    return figure


def make_panels(count, most, size, **options):
    """A figure and its panels, in lines of nearly the same length.

    Args:
        count: int, of the panels.
        most: int, of the panels beside each other: more are hard to read.
        size: width and height of a panel, in inches.
        **options: those of `pyplot.subplots`.
    """
    height = -(-count // most)
    columns = -(-count // height)
    figure, axes = pyplot.subplots(
        height,
        columns,
        figsize=(2.5 + size[0] * columns, size[1] * height),
        squeeze=False,
        layout="constrained",
        **options,
    )
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def name_lines(axis, names):
    """Names the lines of dots; the first one is on top."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def plot_dots(axis, rows, places):
    """Draws a dot for each seed and a line at their mean."""
    for row, place in zip(rows, places):
        name, values = next(iter(row["metrics"].items()))
        axis.plot(values, [place] * len(values), "o", color="C0", alpha=0.6)
        axis.plot(np.mean(values), place, "|", color="black", markersize=12)
    low, high = axis.get_xlim()
    if name.endswith("%") and high - low < LEAST_SPAN:
        # A tenth of a point is not a difference.
        middle = (low + high) / 2
        axis.set_xlim(middle - LEAST_SPAN / 2, middle + LEAST_SPAN / 2)
    if name.endswith("%"):
        axis.set_xlim(right=min(axis.get_xlim()[1], 100.5))
    axis.set_xlabel(with_direction(name))
    axis.grid(alpha=0.3)


def draw_lines(dots, lines):
    """A panel for each group of dots and of lines, and one legend."""
    figure, axes = make_panels(len(dots) + len(lines), 2, (5.5, 3.7))
    for task, rows in dots:
        axis = axes.pop(0)
        plot_dots(axis, rows, range(len(rows)))
        name_lines(axis, labels_of(rows))
        axis.set_title(task)
    styles = {}
    for title, curves in lines:
        axis = axes.pop(0)
        plot_lines(axis, curves, styles)
        axis.set_title(title)
    handles = [
        pyplot.Line2D([], [], label=name, **style)
        for name, style in styles.items()
    ]
    figure.legend(handles=handles, loc="outside right center")
    return figure


def plot_lines(axis, curves, styles):
    """Draws a line for each row, beside each other where they are equal.

    Args:
        axis: where.
        curves: pairs of a row and the dict from ticks to values of its seeds.
        styles: dict from the names of rows to how they are drawn, completed.
    """
    labels = labels_of([row for row, _ in curves])
    offsets = np.arange(len(curves)) * DODGE / 10
    offsets -= offsets.mean()
    for label, offset, (_, values) in zip(labels, offsets, curves):
        style = styles.setdefault(label, new_style(len(styles)))
        x = np.arange(len(values)) + offset
        axis.plot(x, [np.mean(v) for v in values.values()], **style)
        axis.vlines(
            x,
            [min(v) for v in values.values()],
            [max(v) for v in values.values()],
            color=style["color"],
            alpha=0.5,
        )
    row, values = curves[0]
    ticks, x_name, y_name = axis_names(list(values), list(row["metrics"])[-1])
    axis.set_xticks(range(len(ticks)), ticks)
    axis.set(xlabel=x_name, ylabel=y_name)
    if y_name.endswith("%"):
        axis.set_ylim(0, 105)
    else:
        cut(axis)
    axis.grid(alpha=0.3)


def new_style(number):
    """Ten colours, then the same ones dashed."""
    dashed = number >= len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": "--" if dashed else "-",
        "marker": "s" if dashed else "o",
        "markersize": 5,
    }


def axis_names(ticks, metric):
    """Takes what all ticks share, such as `pairs, %`, to the axes.

    Args:
        ticks: list of strings, such as `4 pairs, %`.
        metric: name of the score, for ticks that are parts of a test.

    Returns:
        Ticks, name of the x axis, name of the y axis.
    """
    parts = [tick.partition(" ") for tick in ticks]
    tails = {tail for _, _, tail in parts}
    if len(tails) == 1 and (tail := tails.pop()).endswith(", %"):
        return [head for head, _, _ in parts], tail[:-3], "test accuracy, %"
    y_name = "test accuracy, %" if metric.endswith("%") else metric
    ticks = [tick.replace(" to ", "\nto ") for tick in ticks]
    return ticks, name_of_parts(ticks), with_direction(y_name)


def name_of_parts(parts):
    """What the parts of a longer test are, by their names."""
    return DEPTH if parts[0].endswith("%") else LONGER


def with_direction(name):
    return name if name.endswith("%") else f"{name} (lower is better)"


def cut(axis):
    """Leaves out what would flatten all others; says so."""
    values = [y for line in axis.lines for y in line.get_ydata()]
    if max(values) > 1.5 * min(values):
        axis.set_ylim(top=HIGHEST * min(values))
        axis.annotate(
            "cut here; the table has all values",
            (0.98, 0.97),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize="small",
        )
