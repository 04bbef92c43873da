"""Pictures of where in an image a vision transformer looks."""

import keras
import matplotlib

import keras_linattn

matplotlib.use("Agg")  # files only, no window
from matplotlib import pyplot  # noqa: E402  (after the choice above)

FILE = "attention_maps.png"
PANEL = 1.7  # inches


def draw(model, images, grid, folder):
    """Writes a picture of the images and of what each block attends to.

    Linear attention forms no matrix; `return_attention_scores` gives the one
    that it amounts to. Its mean over heads and queries is the weight that a
    patch has in what all patches receive.

    Args:
        model: `VisionTransformer`.
        images: float array `(N, height, width, channels)` in [0, 1].
        grid: tuple `(rows, columns)` of patches.
        folder: path.

    Returns:
        Dict with the picture's name, or `None` where the mechanism amounts to
        no matrix.
    """
    blocks = [
        layer
        for layer in model.layers
        if isinstance(layer, keras_linattn.LinearTransformerEncoder)
    ]
    traits = keras_linattn.mechanisms.get(model.mechanism).traits
    if not traits.explicit:
        return {"attention_maps": None}
    inputs = keras.Model(model.inputs, [block.input for block in blocks])
    maps = [
        attended(block, x, grid)
        for block, x in zip(blocks, keras.tree.flatten(inputs(images)))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    _plot(images, maps, folder / FILE)
    return {"attention_maps": FILE}


def attended(block, x, grid):
    """Weight of each patch over the mean weight: array `(N, *grid)`."""
    _, scores = block(x, return_attention_scores=True)
    scores = keras.ops.convert_to_numpy(scores)  # (N, heads, T, T)
    weights = scores.mean(axis=(1, 2)) * scores.shape[-1]
    return weights.reshape(-1, *grid)


def _plot(images, maps, path):
    """A row for each image: itself, and a map for each block."""
    rows, columns = len(images), 1 + len(maps)
    figure, axes = pyplot.subplots(
        rows,
        columns,
        figsize=(PANEL * columns + 1, PANEL * rows),
        squeeze=False,
        layout="constrained",
    )
    low, high = min(m.min() for m in maps), max(m.max() for m in maps)
    for number, (row, image) in enumerate(zip(axes, images)):
        row[0].imshow(image, cmap="gray", vmin=0, vmax=1)
        for axis, weights in zip(row[1:], maps):
            shown = axis.imshow(weights[number], vmin=low, vmax=high)
        for axis in row:
            axis.set_axis_off()
    for number in range(len(maps)):
        axes[0, 1 + number].set_title(f"block {number + 1}")
    axes[0, 0].set_title("image")
    figure.colorbar(
        shown, ax=axes, shrink=0.6, label="weight of a patch over the mean"
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
