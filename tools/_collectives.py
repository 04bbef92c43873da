"""What a compiled JAX program sends between devices, from its HLO text."""

import math
import re
import typing

WIDTHS = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "f16": 2, "bf16": 2}
OPERATION = re.compile(
    r"= (?P<shapes>\(.*?\)|\S+) (?P<kind>all-gather|all-reduce|reduce-scatter"
    r"|all-to-all|collective-permute)(?:-start)?\("
)
ARRAY = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\]")


class Collective(typing.NamedTuple):
    """One exchange between devices.

    Args:
        kind: str, such as `"all-gather"`.
        shapes: list of tuples, of its results on one device.
        size: int, bytes of these results.
        devices: int, of the group that exchanges them.
        sent: float, bytes that each device sends, by a ring.
    """

    kind: str
    shapes: list
    size: int
    devices: int
    sent: float


def collectives(text, num_devices):
    """The exchanges of a program, in the order of its text.

    Args:
        text: str, `compiled.as_text()`.
        num_devices: int, of the mesh.

    Returns:
        List of `Collective`. One inside a loop counts once.
    """
    found = []
    for line in text.splitlines():
        match = OPERATION.search(line)
        if match:
            found.append(_collective(match, line, num_devices))
    return found


def _collective(match, line, num_devices):
    shapes, size = [], 0
    for dtype, sizes in ARRAY.findall(match["shapes"]):
        shapes.append(tuple(map(int, filter(None, sizes.split(",")))))
        size += WIDTHS.get(dtype, 1) * math.prod(shapes[-1])
    devices = _group_size(line, num_devices)
    part = (devices - 1) / devices
    factor = {
        "all-gather": part,
        "all-reduce": 2 * part,
        "reduce-scatter": devices - 1,
        "all-to-all": part,
        "collective-permute": 1,
    }[match["kind"]]
    return Collective(match["kind"], shapes, size, devices, factor * size)


def _group_size(line, num_devices):
    groups = re.search(r"replica_groups=\[([0-9]+),([0-9]+)\]", line)
    if groups:
        return int(groups[2])
    groups = re.search(r"replica_groups=\{\{([0-9,]+)\}", line)
    return groups[1].count(",") + 1 if groups else num_devices
