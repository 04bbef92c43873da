"""Sequence parallelism: each device has a piece of every sequence."""

import keras


class SequenceParallel(keras.distribution.ModelParallel):
    """Splits sequences over devices by their length, inside `fit`.

    Each device has a piece of every sequence, next to its neighbours' pieces.
    Layers that work on each position separately send nothing. In attention
    each device computes a state of fixed size from its piece, and the devices
    exchange these states, not the sequence. This is the method of LASP-2,
    extended to states with decay and to delta rules. Windows and convolutions
    get the positions that they need from the neighbour's piece.

    Mechanisms with the trait `splits` work; the others raise a `ValueError`.
    JAX only.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`.
        layout_map: `keras.distribution.LayoutMap` or `None`, for tensor
            parallelism as well, see `layout_map`. Defaults to `None`: every
            device has all weights.
        batch_dim_name: str, the mesh's axis that splits the batch.
            Defaults to `"batch"`.
        sequence_dim_name: str, the mesh's axis that splits the length. Its
            number of devices must divide the length. Defaults to `"sequence"`.
        auto_shard_dataset: see `keras.distribution.ModelParallel`. Defaults to
            `True`.

    Raises:
        ValueError: if the mesh lacks one of these axes.

    Example:

    >>> import keras
    >>> from keras_linattn import distribution
    >>> mesh = keras.distribution.DeviceMesh(
    ...     (1, 1), ("batch", "sequence"), devices=["cpu:0"])
    >>> parallel = distribution.SequenceParallel(mesh)
    >>> parallel.get_data_layout((8, 4096)).axes
    ('batch', 'sequence')

    Source: Sun et al., 2025, arXiv 2502.07563 (LASP-2).
    """

    def __init__(
        self,
        device_mesh: keras.distribution.DeviceMesh,
        layout_map: keras.distribution.LayoutMap | None = None,
        batch_dim_name: str = "batch",
        sequence_dim_name: str = "sequence",
        auto_shard_dataset: bool = True,
    ):
        names = tuple(device_mesh.axis_names)
        missing = {batch_dim_name, sequence_dim_name} - set(names)
        if missing:
            raise ValueError(
                "The mesh must have the axes that split batch and length. "
                f"Received: a mesh with the axes {names}, without "
                f"{sorted(missing)}. An axis may have one device."
            )
        if layout_map is None:
            layout_map = keras.distribution.LayoutMap(device_mesh)
        super().__init__(
            layout_map=layout_map,
            batch_dim_name=batch_dim_name,
            auto_shard_dataset=auto_shard_dataset,
        )
        self.sequence_dim_name = sequence_dim_name

    def get_data_layout(
        self, data_shape: tuple
    ) -> keras.distribution.TensorLayout:
        """Splits axis 1 if the number of devices divides its size.

        Labels that belong to a whole row are not split.
        """
        axes = [self.batch_dim_name, *(None,) * (len(data_shape) - 1)]
        place = self.device_mesh.axis_names.index(self.sequence_dim_name)
        count = self.device_mesh.shape[place]
        if len(data_shape) > 1 and data_shape[1] % count == 0:
            axes[1] = self.sequence_dim_name
        return keras.distribution.TensorLayout(axes, self.device_mesh)
