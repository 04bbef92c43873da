"""Tensor parallelism: the part of each weight that a device has."""

import keras

from keras_linattn.mechanisms._base import axis_of_heads

# By the end of a variable's path: the axis that is split. Names are those
# of our layers, of Keras' attention and of KerasHub's blocks.
HEADS = {
    "(query|key|value|gate)/kernel": 1,
    "(query|key|value|gate)/bias": 0,
    "attention_output/kernel": 0,
    # Heads are joined along this axis: each part has whole heads.
    "(query|key|value)_heads/convolution/kernel": 1,
}
FEEDFORWARD = {
    "feedforward_(gate|intermediate)_dense/kernel": 1,
    "feedforward_(gate|intermediate)_dense/bias": 0,
    "feedforward_output_dense/kernel": 0,
}
# By features: their number is usually even, a vocabulary often is not (257).
EMBEDDINGS = {"embeddings": 1}
VOCABULARY = {"embeddings": 0, "logits/kernel": 1, "logits/bias": 0}


def layout_map(
    device_mesh: keras.distribution.DeviceMesh,
    model_dim_name: str = "model",
    split_vocabulary: bool = False,
) -> keras.distribution.LayoutMap:
    """Returns the layouts of tensor parallelism, for any model with our layers.

    Four things are split over the devices along one axis of the mesh: the
    heads, the weights of mechanisms that belong to heads, the hidden units of
    the feedforward networks, and the features of embeddings. Every device has
    all other weights. In each block the devices sum the outputs of the
    attention and those of the feedforward network.

    Variables are found by the ends of their paths, as in
    `decoder_0/self_attention/query/kernel`, wherever the block stands in your
    model, and whatever its name is. In the returned map you can replace a
    pattern, or add the path of one variable: Keras looks for the full path
    first.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`.
        model_dim_name: str, the mesh's axis that splits the heads. Its number
            of devices must divide the heads of each layer, else the layer
            raises a `ValueError` when it is built. Defaults to `"model"`.
        split_vocabulary: bool, whether to split embeddings and the layer
            `logits` by token. Otherwise embeddings are split by feature, and
            `logits` is not split. The number of devices must divide the
            vocabulary. Defaults to `False`.

    Returns:
        `keras.distribution.LayoutMap`, for `keras.distribution.ModelParallel`
        or `SequenceParallel`.

    Raises:
        ValueError: if the mesh has no axis of that name.

    Example:

    >>> import numpy as np
    >>> import keras
    >>> from keras_linattn import distribution
    >>> mesh = keras.distribution.DeviceMesh(
    ...     (1, 1), ("batch", "model"), devices=["cpu:0"])
    >>> layouts = distribution.layout_map(mesh)
    >>> layouts["decoder_0/self_attention/query/kernel"].axes
    (None, 'model')

    Source: Shoeybi et al., 2019, arXiv 1909.08053, section 3.
    """
    if model_dim_name not in device_mesh.axis_names:
        raise ValueError(
            "The mesh must have the axis that splits the heads. Received: "
            f"model_dim_name={model_dim_name!r} for a mesh with the axes "
            f"{tuple(device_mesh.axis_names)}. Name one of them, or make the "
            f"mesh with an axis {model_dim_name!r}."
        )
    tables = VOCABULARY if split_vocabulary else EMBEDDINGS
    layouts = HeadLayouts(device_mesh, model_dim_name)
    for pattern, axis in {**HEADS, **FEEDFORWARD, **tables}.items():
        layouts[f"(.*/)?{pattern}"] = (None,) * axis + (model_dim_name,)
    return layouts


class HeadLayouts(keras.distribution.LayoutMap):
    """A `LayoutMap` that also knows the weights of mechanisms.

    A mechanism may have any name, so no pattern describes these paths.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`.
        model_dim_name: str, the mesh's axis that splits the heads.
    """

    def __init__(self, device_mesh, model_dim_name):
        super().__init__(device_mesh)
        self._model_dim_name = model_dim_name

    def __getitem__(self, key):
        layout = super().__getitem__(key)
        axis = axis_of_heads(key) if layout is None else None
        if axis is None:
            return layout
        axes = (None,) * axis + (self._model_dim_name,)
        return keras.distribution.TensorLayout(axes, self.device_mesh)
