"""Images of Pathfinder: do two circles lie on the same dashed path?

Each image has two long paths of dashes and several short ones. Two circles
mark both ends of one long path (label 1), or one end of each (label 0). Paths
bend from dash to dash, and no path crosses or touches another one.

Source: Linsley, Kim, Veerabadran, Windolf, Serre, "Learning long-range spatial
dependencies with horizontal gated recurrent units", NeurIPS 2018, arXiv
1805.08315, section 4; its easiest form, with 6 dashes in a long path and 2 in
a short one. The size is that of Tay et al., 2021, arXiv 2011.04006. Differs
from them: our own drawing, with sizes for 32 x 32 pixels, and short paths only
where there is space.
"""

import dataclasses

import numpy as np

SIZE = 32  # pixels; all lengths below are in pixels
LENGTH, GAP = 1.5, 2.0  # of a dash, and between two dashes of a path
MARGIN = 2.75  # between the dashes of different paths, centre to centre
BORDER = 2.0
TURN = np.pi / 3  # the most from one dash to the next
SAME = 1.5  # distances of the circles for both labels differ by less
LONG, SHORT, MANY_SHORT = 6, 2, 15
THICKNESS, RADIUS = 0.5, 1.6  # half of a dash's width; of a circle
PLACES, TURNS = 24, 8  # tried for the first dash of a path, for the next ones
CHUNK = 500  # images made at once
FINE = 2  # cells of the grid of taken places in a pixel


@dataclasses.dataclass
class Scenes:
    """Images before they are drawn.

    Args:
        dashes: array `(N, D, 2, 2)`, both ends (x, y) of each dash, NaN where
            a short path had no space. The first `LONG` are one long path, the
            next `LONG` the other one, then come short paths.
        circles: array `(N, 2, 2)`, two centres.
        labels: int array `(N,)`, 1 if the circles lie on the same path.
    """

    dashes: np.ndarray
    circles: np.ndarray
    labels: np.ndarray


def make_images(number, seed):
    """Images `(number, 32, 32)` of uint8, and labels, 0 and 1 in turns."""
    generator = np.random.default_rng(seed)
    images, made = np.zeros((number, SIZE, SIZE), "uint8"), 0
    while made < number:
        found = draw(make_scenes(generator, CHUNK))[: number - made]
        images[made : made + len(found)] = found
        made += len(found)
    return images, (np.arange(number) % 2).astype("int32")


def make_scenes(generator, number):
    """Draws `Scenes`, fewer than `number`: those whose long paths had space.

    Their labels are 0 and 1 in turns, and do not depend on the paths.
    """
    taken = np.zeros((number, SIZE * FINE, SIZE * FINE), bool)
    paths = [grow(generator, taken, LONG) for _ in range(2)]
    together, apart, misfit = circles_of(generator, *paths)
    rows = np.flatnonzero(misfit < SAME)  # NaN where a path had no space
    rows = rows[: len(rows) // 2 * 2]
    labels = np.arange(len(rows)) % 2
    circles = np.where(labels[:, None, None], together[rows], apart[rows])
    paths, taken = [path[rows] for path in paths], taken[rows]
    paths += [grow(generator, taken, SHORT) for _ in range(MANY_SHORT)]
    return Scenes(np.concatenate(paths, axis=1), circles, labels)


def circles_of(generator, first, second):
    """The centres of the circles for both labels, at ends of the long paths.

    The distance of the circles must not tell the label: of the four pairs of
    ends of different paths we take the one whose distance is most like that of
    the ends of one path.

    Returns:
        Two arrays `(N, 2, 2)`: both ends of one path, an end of each; and how
        much their distances differ, `(N,)`.
    """
    swapped = generator.integers(2, size=len(first))[:, None, None] == 1
    ends = [path[:, [0, -1], [0, 1]] for path in (first, second)]
    one, other = np.where(swapped, *ends), np.where(swapped, *ends[::-1])
    pairs = [np.stack([one[:, i], other[:, j]], 1) for i, j in np.ndindex(2, 2)]
    pairs = np.stack(pairs, axis=1)
    misfits = np.abs(span(pairs) - span(one)[:, None])
    rows, best = np.arange(len(pairs)), misfits.argmin(axis=1)
    return one, pairs[rows, best], misfits[rows, best]


def span(pairs):
    """Distances of pairs of points `(..., 2, 2)`."""
    return np.linalg.norm(pairs[..., 0, :] - pairs[..., 1, :], axis=-1)


def grow(generator, taken, number):
    """Draws a path in each image, and notes its places in `taken`.

    Args:
        generator: of random numbers.
        taken: bool array `(N, cells, cells)`, changed in place.
        number: int, dashes.

    Returns:
        Array `(N, number, 2, 2)`, NaN in images where the path had no space.
    """
    count = len(taken)
    dashes = np.full((count, number, 2, 2), np.nan, "float32")
    angles = 2 * np.pi * generator.random((count, PLACES), "float32")
    starts = SIZE * generator.random((count, PLACES, 2), "float32")
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
    inside = (points >= BORDER) & (points <= SIZE - BORDER)  # NaN is outside
    inside = inside.all(axis=(2, 3))
    cells = np.where(inside[..., None, None], points * FINE, 0).astype(int)
    rows = np.arange(len(dashes))[:, None, None]
    return inside & ~taken[rows, cells[..., 1], cells[..., 0]].any(axis=2)


def take(taken, dashes):
    """Notes the surroundings of dashes `(N, 2, 2)`, of which some are NaN."""
    rows = np.flatnonzero(~np.isnan(dashes).any(axis=(1, 2)))
    reach = int(np.ceil((LENGTH / 2 + MARGIN) * FINE)) + 1
    places, distances = near(dashes[rows] * FINE, reach, SIZE * FINE)
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
    """Images `(N, 32, 32)` of uint8, smooth at the edges."""
    images = np.zeros((len(scenes.labels), SIZE, SIZE), "uint8")
    for dash in range(scenes.dashes.shape[1]):
        paint(images, scenes.dashes[:, dash], THICKNESS)
    for circle in range(2):
        centre = scenes.circles[:, circle]
        paint(images, np.stack([centre, centre], axis=1), RADIUS)
    return images


def paint(images, dashes, radius):
    """Draws a dash `(N, 2, 2)` with round ends in each image, if not NaN."""
    rows = np.flatnonzero(~np.isnan(dashes).any(axis=(1, 2)))
    places, distances = near(dashes[rows], 4, SIZE)
    light = np.clip(radius + 0.5 - distances, 0, 1) * 255
    here = rows[:, None, None], places[1], places[0]
    images[here] = np.maximum(images[here], light.astype("uint8"))
