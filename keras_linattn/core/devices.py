"""Several devices: the axes that are split over them, and what they send.

A `keras.distribution` splits arrays over a mesh of devices. Here a function of
whole arrays becomes a function of each device's part, with explicit
communication. Only JAX can do this; see `core/backends/jax.py`.
"""

import contextlib
import math
import typing

import keras
from keras import ops

from keras_linattn.core import backends


class Split(typing.NamedTuple):
    """Names of the mesh's axes that split the axes of heads `[B, H, T, .]`.

    `None` means that every device has the whole axis.

    Args:
        mesh: `keras.distribution.DeviceMesh`.
        batch: str or `None`.
        heads: str or `None`.
        length: str or `None`.
    """

    mesh: object
    batch: object = None
    heads: object = None
    length: object = None

    def devices(self, name):
        """The number of parts: devices along an axis of the mesh."""
        if name is None:
            return 1
        return self.mesh.shape[self.mesh.axis_names.index(name)]

    @property
    def pieces(self):
        """The pieces of the length, `Pieces`, or `None` if it is whole."""
        count = self.devices(self.length)
        return Pieces(self.length, count) if count > 1 else None


def current_split(kernel=None):
    """How the current distribution splits heads; `None` without one.

    Args:
        kernel: variable `[F, H, D]` whose layout says how heads are split, or
            `None`, its default: every device has all heads.
    """
    distribution = keras.distribution.distribution()
    if distribution is None or distribution.device_mesh is None:
        return None
    mesh = distribution.device_mesh
    if math.prod(mesh.shape) == 1:
        return None
    heads = None
    if kernel is not None:
        axes = distribution.get_variable_layout(kernel).axes
        heads = axes[1] if len(axes) > 1 else None
    length = getattr(distribution, "sequence_dim_name", None)
    return Split(mesh, distribution.batch_dim_name, heads, length)


@contextlib.contextmanager
def no_distribution():
    """A scope without a distribution, for the arrays of one device."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


@backends.per_backend
def on_each_device(function, arrays, axes, output_axes, mesh):
    """Returns `function(*arrays)`; each device computes its part.

    Args:
        function: callable of arrays.
        arrays: list of arrays.
        axes: list of tuples, for each array the names of the mesh's axes that
            split its axes, `None` for axes that stay whole. A tuple may
            be shorter than the array's rank.
        output_axes: tuple, the same for the output.
        mesh: `keras.distribution.DeviceMesh`.

    Returns:
        The output, split over the devices.
    """
    return function(*arrays)


@backends.per_backend
def whole_features(x):
    """`x` `(B, ..., F)` with all features on each device.

    The features of an embedding may be split. Each normalisation and each
    product of a block would then have to gather them.
    """
    return x


class Pieces:
    """One sequence cut into equal pieces, in order; inside `on_each_device`.

    Args:
        name: str, the mesh's axis.
        count: int > 1, pieces.
    """

    def __init__(self, name, count):
        self.name = name
        self.count = count

    @property
    def place(self):
        """int32 scalar, which piece this device has."""
        return piece_place(self.name)

    def all(self, x):
        """`x` of all pieces, along a new first axis: one all-gather."""
        return gather_pieces(x, self.name)

    def sum(self, x):
        """The sum over all pieces."""
        return sum_pieces(x, self.name)

    def max(self, x):
        """The largest of all pieces, entry by entry, without gradients."""
        return max_pieces(ops.stop_gradient(x), self.name)

    def from_left(self, x):
        """`x` of the piece before, zeros for the first one."""
        return shift_pieces(x, self.name, self.count, 1)

    def from_right(self, x):
        """`x` of the next piece, zeros for the last one."""
        return shift_pieces(x, self.name, self.count, -1)

    def sum_before(self, x):
        """The sum over the pieces before this one."""
        every = self.all(x)
        number = ops.arange(self.count, dtype="int32")
        earlier = ops.reshape(
            number < self.place, (-1,) + (1,) * (len(every.shape) - 1)
        )
        # Selected: 0 * NaN is NaN, and the past must not see the future.
        nothing = ops.cast(0, x.dtype)
        return ops.sum(ops.where(earlier, every, nothing), axis=0)

    def before(self, own, merge, start):
        """Returns the state after all pieces before this one.

        Args:
            own: tensor, the effect of this piece on a state.
            merge: callable `(own, state)` that returns the next state.
            start: tensor, the state before the first piece.
        """
        every, place, state = self.all(own), self.place, start
        for number in range(self.count - 1):
            after = merge(every[number], self._kept(number, state, start))
            state = ops.where(number < place, after, state)
        return state

    def _kept(self, number, state, start):
        """What a piece leaves of the state of the others, before its own."""
        return state


def _needs_jax():
    return NotImplementedError(
        "Arrays are split over devices under JAX only. Received: backend "
        f"{keras.config.backend()!r}."
    )


@backends.per_backend
def piece_place(name):
    """The number of this device along an axis of the mesh."""
    raise _needs_jax()


@backends.per_backend
def gather_pieces(x, name):
    """`x` of all devices along an axis of the mesh, `[P, ...]`."""
    raise _needs_jax()


@backends.per_backend
def sum_pieces(x, name):
    """The sum of `x` over the devices along an axis of the mesh."""
    raise _needs_jax()


@backends.per_backend
def max_pieces(x, name):
    """The largest `x` over the devices along an axis of the mesh."""
    raise _needs_jax()


@backends.per_backend
def shift_pieces(x, name, count, by):
    """`x` of the device `by` places before; zeros where there is none."""
    raise _needs_jax()
