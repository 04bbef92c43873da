"""Draws how attention computes, as SVG files: `python -m tools.site.drawings`.

Every drawing is 480 units wide, so that it can be read on a phone.
"""

import html

from tools.site import sources

INK, GRID = "#263238", "#90a4ae"
QUERY, KEY, VALUE = "#bbdefb", "#ffe0b2", "#c8e6c9"
STATE, OUTPUT, PLAIN = "#ffccbc", "#d1c4e9", "#eceff1"


class Drawing:
    """Collects shapes; knows nothing of attention."""

    def __init__(self, height):
        self.height, self.parts = height, []

    def box(self, x, y, width, height, fill, label="", note=""):
        """A matrix: `label` stands in it, `note` (its shape) below it."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="2" '
            f'fill="{fill}" stroke="{INK}"/>'
        )
        if label:
            self.text(x + width / 2, y + height / 2 + 5, label)
        if note:
            self.text(x + width / 2, y + height + 15, note, size=12)

    def text(self, x, y, words, size=14, anchor="middle", weight="normal"):
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" '
            f'text-anchor="{anchor}" fill="{INK}">{html.escape(words)}</text>'
        )

    def arrow(self, x1, y1, x2, y2):
        self.parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" '
            'stroke-width="1.5" marker-end="url(#head)"/>'
        )

    def cells(self, x, y, size, weight):
        """A square of cells, each as dark as `weight(row, column)` says."""
        count, side = 12, size / 12
        for row in range(count):
            for column in range(count):
                opacity = weight(row, column)
                self.parts.append(
                    f'<rect x="{x + column * side:.1f}" '
                    f'y="{y + row * side:.1f}" width="{side:.1f}" '
                    f'height="{side:.1f}" fill="#3949ab" '
                    f'fill-opacity="{opacity:.2f}" stroke="{GRID}" '
                    'stroke-width="0.3"/>'
                )

    def save(self, name, title):
        path = sources.ROOT / "docs" / "assets" / name
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 '
            f'{self.height}" font-family="sans-serif" role="img">'
            f"<title>{html.escape(title)}</title>"
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" '
            'markerWidth="7" markerHeight="7" orient="auto"><path '
            f'd="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
            f'<rect width="480" height="{self.height}" fill="white"/>'
        )
        path.write_text(
            "\n".join([head, *self.parts, "</svg>"]) + "\n", encoding="utf-8"
        )


def shapes():
    """The arrays of one attention layer, from its input to its output."""
    d = Drawing(520)
    d.box(190, 12, 100, 34, PLAIN, "inputs", "(B, T, F)")
    columns = ((70, "query", QUERY, "D"), (240, "key", KEY, "D"))
    columns += ((410, "value", VALUE, "V"),)
    for x, name, fill, size in columns:
        d.arrow(240, 64, x, 92)
        d.box(x - 55, 94, 110, 34, PLAIN, "Dense")
        d.arrow(x, 128, x, 156)
        length = "T" if name == "query" else "S"
        d.box(x - 55, 158, 110, 34, fill, name, f"[B, H, {length}, {size}]")
        d.arrow(x, 212, 240 + (x - 240) * 0.7, 246)
    d.box(70, 248, 340, 56, STATE)
    d.text(240, 272, "mechanism", weight="bold")
    d.text(240, 292, "gated_delta, modified_linformer, ...", size=12)
    d.arrow(240, 304, 240, 332)
    d.box(175, 334, 130, 34, OUTPUT, "heads", "[B, H, T, V]")
    d.arrow(240, 386, 240, 412)
    d.box(185, 414, 110, 34, PLAIN, "Dense")
    d.arrow(240, 448, 240, 472)
    d.box(190, 474, 100, 26, PLAIN, "outputs")
    d.text(300, 492, "(B, T, F)", size=12, anchor="start")
    d.save("shapes.svg", "Shapes through an attention layer")


def product(d, y, title, note):
    d.text(12, y, title, anchor="start", weight="bold")
    d.text(12, y + 18, note, size=12, anchor="start")


def families():
    """How each family gets from queries, keys and values to outputs."""
    d = Drawing(775)
    product(d, 22, "softmax", "forms a T x S matrix: quadratic")
    d.box(12, 56, 40, 110, QUERY, "Q", "T x D")
    d.text(64, 114, "x")
    d.box(76, 91, 110, 40, KEY, "Kᵀ", "D x S")
    d.arrow(192, 111, 214, 111)
    d.box(218, 56, 110, 110, STATE, "softmax", "T x S")
    d.text(340, 114, "x")
    d.box(352, 56, 40, 110, VALUE, "V", "S x V")
    d.arrow(398, 111, 420, 111)
    d.box(424, 56, 40, 110, OUTPUT, "out", "T x V")

    top = 210
    product(d, top, "kernel", "sums keys and values first, then φ(Q) x state")
    d.box(12, top + 69, 110, 40, KEY, "φ(K)ᵀ", "R x S")
    d.text(134, top + 94, "x")
    d.box(146, top + 34, 40, 110, VALUE, "V", "S x V")
    d.arrow(192, top + 89, 214, top + 89)
    d.box(218, top + 69, 50, 40, STATE, "state", "R x V")
    d.text(304, top + 94, "and", size=13)
    d.box(340, top + 34, 50, 110, QUERY, "φ(Q)", "T x R")
    d.arrow(396, top + 89, 420, top + 89)
    d.box(424, top + 34, 40, 110, OUTPUT, "out", "T x V")

    top = 400
    product(
        d,
        top,
        "low rank, landmarks",
        "shortens keys and values to k rows; A = softmax(Q K'ᵀ)",
    )
    d.box(12, top + 34, 40, 110, KEY, "K", "S x D")
    d.arrow(58, top + 89, 80, top + 89)
    d.box(84, top + 74, 40, 30, KEY, "K'", "k x D")
    d.box(146, top + 34, 40, 110, VALUE, "V", "S x V")
    d.arrow(192, top + 89, 214, top + 89)
    d.box(218, top + 74, 40, 30, VALUE, "V'", "k x V")
    d.arrow(280, top + 89, 306, top + 89)
    d.box(310, top + 34, 46, 110, STATE, "A", "T x k")
    d.text(388, top + 94, "A x V'", size=13)
    d.box(424, top + 34, 40, 110, OUTPUT, "out", "T x V")

    top = 590
    product(d, top, "recurrence", "one state: fades, is corrected, is read")
    for index, name in enumerate(("S₀", "S₁", "S₂", "S₃")):
        x = 22 + 118 * index
        d.box(x, top + 66, 52, 44, STATE, name, "D x V")
        if index < 3:
            d.arrow(x + 54, top + 88, x + 114, top + 88)
            d.text(x + 84, top + 80, "gate", size=11)
        if index:
            d.arrow(x + 26, top + 50, x + 26, top + 64)
            d.text(x + 26, top + 46, f"k{index}, v{index}", size=13)
            d.arrow(x + 26, top + 130, x + 26, top + 152)
            d.text(x + 26, top + 168, f"out{index} = q{index} {name}", size=13)
    d.save("families.svg", "How each family of mechanisms computes")


def matrices():
    """The matrix from keys to queries that each family amounts to."""
    d = Drawing(360)
    patterns = (
        ("any key, both ways", "softmax, kernels", lambda t, s: 0.45),
        ("causal", "causal=True", lambda t, s: 0.45 * (s <= t)),
        (
            "causal with decay",
            "retention, gated_delta",
            lambda t, s: (s <= t) * 0.9 * 0.72 ** (t - s),
        ),
        (
            "window",
            "local",
            lambda t, s: 0.6 * (0 <= t - s < 4),
        ),
        (
            "window + linear rest",
            "hybrid_window",
            lambda t, s: (s <= t) * (0.7 if t - s < 4 else 0.2),
        ),
        (
            "packed documents",
            "segment_ids",
            lambda t, s: 0.45 * ((t < 5) == (s < 5)),
        ),
    )
    for index, (title, note, weight) in enumerate(patterns):
        x, y = 20 + 156 * (index % 3), 14 + 176 * (index // 3)
        d.cells(x, y, 126, weight)
        d.text(x + 63, y + 144, title, size=13)
        d.text(x + 63, y + 159, note, size=11)
    d.save("matrices.svg", "Which keys a query sees, rows are queries")


if __name__ == "__main__":
    shapes()
    families()
    matrices()
