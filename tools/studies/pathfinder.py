"""Images of Pathfinder: do two circles lie on the same dashed path?

Each image has two long paths of dashes and several short ones. Two circles
mark both ends of one long path (label 1), or one end of each (label 0). Paths
bend from dash to dash, and no path crosses or touches another one.

Images are made in pairs, one of each label. Both have the same circles, the
same dash at each circle and as many short paths, so that none of these tells
the label: a model must look at what lies between.

Source: Linsley, Kim, Veerabadran, Windolf, Serre, "Learning long-range spatial
dependencies with horizontal gated recurrent units", NeurIPS 2018, arXiv
1805.08315, section 4; `EASIEST` is its easiest form, with 6 dashes in a long
path and 2 in a short one. The size is that of Tay et al., 2021, arXiv
2011.04006. Differs from them: our own drawing, with sizes for 32 x 32 pixels,
pairs of images, and short paths only where there is space. `SMALL` is ours.
"""

import dataclasses

import numpy as np

# Lengths are in pixels.
LENGTH, GAP = 1.5, 2.0  # of a dash, and between two dashes of a path
MARGIN = 2.75  # between the dashes of different paths, centre to centre
BORDER = 2.0
TURN = np.pi / 3  # the most from one dash to the next
SAME = 1.0  # how far paths are from the middle differs less for both labels
SHORT = 2  # dashes of a short path
THICKNESS, RADIUS = 0.5, 1.6  # half of a dash's width; of a circle
PLACES, TURNS = 24, 8  # tried for the first dash of a path, for the next ones
CHUNK = 500  # images made at once
FINE = 2  # cells of the grid of taken places in a pixel


@dataclasses.dataclass(frozen=True)
class Form:
    """How large the task is.

    Args:
        size: int, pixels of a row.
        dashes: int, of a long path.
        most_short: int, short paths if all have space.
    """

    size: int
    dashes: int
    most_short: int


EASIEST = Form(size=32, dashes=6, most_short=15)
SMALL = Form(size=16, dashes=3, most_short=6)


@dataclasses.dataclass
class Scenes:
    """Images before they are drawn.

    Args:
        form: `Form`.
        dashes: array `(N, D, 2, 2)`, both ends (x, y) of each dash, NaN where
            a short path had no space in one image of the pair. First come
            those of one long path, then of the other, then of short paths.
        circles: array `(N, 2, 2)`, two centres.
        labels: int array `(N,)`, 1 if the circles lie on the same path.
    """

    form: Form
    dashes: np.ndarray
    circles: np.ndarray
    labels: np.ndarray


def make_images(number, seed, form=EASIEST):
    """Images `(number, size, size)` of uint8; labels, 0 and 1 in turns."""
    images, labels, _ = make_rows(number, seed, form)
    return images, labels.astype("int32")


def make_rows(number, seed, form=EASIEST):
    """Images, labels, and the centres of the circles `(number, 2, 2)`."""
    generator, made, rows = np.random.default_rng(seed), 0, []
    while made < number:
        scenes = make_scenes(generator, CHUNK, form)
        rows.append((draw(scenes), scenes.labels, scenes.circles))
        made += len(scenes.labels)
    return [np.concatenate(arrays)[:number] for arrays in zip(*rows)]


def make_scenes(generator, number, form):
    """Draws `Scenes` in pairs, for those of `number` that had space.

    Their labels are 0 and 1 in turns.
    """
    shape = 2, number, form.size * FINE, form.size * FINE
    taken = np.zeros(shape, bool)  # of both labels
    path = grow(generator, taken[1], form.dashes)
    ends = path[:, 0], path[:, -1, ::-1]  # both run inwards
    paths = [
        [grow(generator, taken[0], form.dashes, end) for end in ends],
        [path, grow(generator, taken[1], form.dashes)],
    ]
    # Two paths that begin at the circles are often nearer to the middle than
    # one of them and a path anywhere. NaN where a path had no space.
    apart = [from_middle(both, form.size) for both in paths]
    apart = np.abs(apart[0] - apart[1])
    rows = np.flatnonzero((apart < SAME).all(axis=0))
    taken, paths = taken[:, rows], [[x[rows] for x in both] for both in paths]
    for _ in range(form.most_short):
        short = [grow(generator, x, SHORT) for x in taken]
        lacking = np.isnan(short).any(axis=0)
        for of_label, path in zip(paths, short):
            of_label.append(np.where(lacking, np.nan, path))
    dashes = [np.concatenate(of_label, axis=1) for of_label in paths]
    circles = np.stack([end[rows, 0] for end in ends], axis=1)
    return Scenes(
        form,
        np.stack(dashes, axis=1).reshape(-1, *dashes[0].shape[1:]),
        np.repeat(circles, 2, axis=0),
        np.arange(2 * len(rows)) % 2,
    )


def from_middle(paths, size):
    """Mean and deviation of dashes' distances from the middle, `(2, N)`."""
    middles = np.concatenate(paths, axis=1).mean(axis=2)
    distances = np.linalg.norm(middles - size / 2, axis=-1)
    return np.stack([distances.mean(axis=1), distances.std(axis=1)])


def grow(generator, taken, number, first=None):
    """Draws a path in each image, and notes its places in `taken`.

    Args:
        generator: of random numbers.
        taken: bool array `(N, cells, cells)`, changed in place.
        number: int, dashes.
        first: array `(N, 2, 2)`, the first dash. Defaults to `None`: anywhere.

    Returns:
        Array `(N, number, 2, 2)`, NaN in images where the path had no space.
    """
    count, size = len(taken), taken.shape[-1] / FINE
    dashes = np.full((count, number, 2, 2), np.nan, "float32")
    angles = 2 * np.pi * generator.random((count, PLACES), "float32")
    starts = size * generator.random((count, PLACES, 2), "float32")
    if first is not None:
        x, y = (first[:, 1] - first[:, 0]).T
        angles, starts = np.arctan2(y, x)[:, None], first[:, :1]
    for place in range(number):
        ways = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        if place:
            starts = dashes[:, place - 1, None, 1] + GAP * ways
        tried = np.stack([starts, starts + LENGTH * ways], axis=2)
        free = is_free(tried, taken)
        rows, best = np.arange(count), free.argmax(axis=1)
        found = free[rows, best]
        dashes[found, place] = tried[rows, best][found]
        heading = angles[rows, best]
        turns = 2 * generator.random((count, TURNS), "float32") - 1
        angles = heading[:, None] + TURN * turns
        if place:  # the next dash must be able to begin near this one
            take(taken, dashes[:, place - 1])
    take(taken, dashes[:, -1])
    dashes[np.isnan(dashes).any(axis=(1, 2, 3))] = np.nan
    return dashes


def is_free(dashes, taken):
    """Whether dashes `(N, K, 2, 2)` lie in the image where nothing else is."""
    parts = np.linspace(0, 1, 3, dtype="float32")[:, None]
    points = dashes[:, :, :1] * (1 - parts) + dashes[:, :, 1:] * parts
    most = taken.shape[-1] / FINE - BORDER
    inside = (points >= BORDER) & (points <= most)  # NaN is outside
    inside = inside.all(axis=(2, 3))
    cells = np.where(inside[..., None, None], points * FINE, 0).astype(int)
    rows = np.arange(len(dashes))[:, None, None]
    return inside & ~taken[rows, cells[..., 1], cells[..., 0]].any(axis=2)


def take(taken, dashes):
    """Notes the surroundings of dashes `(N, 2, 2)`, of which some are NaN."""
    rows = np.flatnonzero(~np.isnan(dashes).any(axis=(1, 2)))
    reach = int(np.ceil((LENGTH / 2 + MARGIN) * FINE)) + 1
    places, distances = near(dashes[rows] * FINE, reach, taken.shape[-1])
    # Half of a cell's diagonal more: a point may be anywhere in its cell.
    close = distances <= MARGIN * FINE + 2**-0.5
    taken[rows[:, None, None], places[1], places[0]] |= close


def near(dashes, reach, size):
    """The cells around dashes, and their distances from the dashes.

    Args:
        dashes: array `(N, 2, 2)`, in cells.
        reach: int, cells on each side of a dash's middle.
        size: int, cells of a row.

    Returns:
        Their x and y `(2, N, 2 reach + 1, 2 reach + 1)`, and as many
        distances. Places outside become the nearest ones inside.
    """
    middle = np.floor(dashes.mean(axis=1)).astype(int)
    around = np.mgrid[-reach : reach + 1, -reach : reach + 1][::-1, None]
    places = middle.T[:, :, None, None] + around
    places = np.minimum(np.maximum(places, 0), size - 1)
    start, stop = dashes.transpose(1, 2, 0)[..., None, None]
    way = stop - start
    from_start = places.astype("float32") + 0.5 - start
    squares = np.maximum((way**2).sum(axis=0), 1e-9)  # a circle is a point
    part = (from_start * way).sum(axis=0) / squares
    part = np.minimum(np.maximum(part, 0), 1)
    return places, np.sqrt(((from_start - part * way) ** 2).sum(axis=0))


def draw(scenes):
    """Images `(N, size, size)` of uint8, smooth at the edges."""
    shape = len(scenes.labels), scenes.form.size, scenes.form.size
    images = np.zeros(shape, "uint8")
    for dash in range(scenes.dashes.shape[1]):
        paint(images, scenes.dashes[:, dash], THICKNESS)
    for circle in range(2):
        centre = scenes.circles[:, circle]
        paint(images, np.stack([centre, centre], axis=1), RADIUS)
    return images


def paint(images, dashes, radius):
    """Draws a dash `(N, 2, 2)` with round ends in each image, if not NaN."""
    rows = np.flatnonzero(~np.isnan(dashes).any(axis=(1, 2)))
    places, distances = near(dashes[rows], 4, images.shape[-1])
    light = np.clip(radius + 0.5 - distances, 0, 1) * 255
    here = rows[:, None, None], places[1], places[0]
    images[here] = np.maximum(images[here], light.astype("uint8"))
