"""Sequence parallelism: each device has a piece of every sequence."""

import keras


class SequenceParallel(keras.distribution.ModelParallel):
    """Splits sequences over devices by their length, inside `fit`.

    Each device has a piece of every sequence, next to its neighbours' pieces.
    Whatever works position by position needs no exchange. In attention each
    device sums its piece up in a state of fixed size; the devices exchange
    these states, never the sequence: the method of LASP-2, and its form for
    states that fade or that are corrected. Windows and convolutions take what
    they need of the neighbour's piece.

    Mechanisms with the trait `splits` work; the others raise a `ValueError`.
    JAX only, as all of `keras.distribution`.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`.
        layout_map: `keras.distribution.LayoutMap` or `None`, for tensor
            parallelism beside it, see `layout_map`. Defaults to `None`: every
            device has all weights.
        batch_dim_name: str, the mesh's axis that shares out the batch.
            Defaults to `"batch"`.
        sequence_dim_name: str, the mesh's axis that shares out the length,
            which it must divide. Defaults to `"sequence"`.
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
        device_mesh,
        layout_map=None,
        batch_dim_name="batch",
        sequence_dim_name="sequence",
        auto_shard_dataset=True,
    ):
        names = tuple(device_mesh.axis_names)
        missing = {batch_dim_name, sequence_dim_name} - set(names)
        if missing:
            raise ValueError(
                "The mesh must have the axes that share out batch and length. "
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

    def get_data_layout(self, data_shape):
        """Splits axis 1 where that divides; labels of a row stay whole."""
        axes = [self.batch_dim_name, *(None,) * (len(data_shape) - 1)]
        place = self.device_mesh.axis_names.index(self.sequence_dim_name)
        count = self.device_mesh.shape[place]
        if len(data_shape) > 1 and data_shape[1] % count == 0:
            axes[1] = self.sequence_dim_name
        return keras.distribution.TensorLayout(axes, self.device_mesh)
