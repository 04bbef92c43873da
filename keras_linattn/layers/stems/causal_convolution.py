"""Short causal convolution: a sense of order that needs no fixed length."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_linattn.core.annotations import Tensor
from keras_linattn.core.boundaries import LookingBack
from keras_linattn.core.boundaries import numbers_and_mask
from keras_linattn.core.devices import current_split
from keras_linattn.core.devices import on_each_device
from keras_linattn.core.lengths import is_empty
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import first_given
from keras_linattn.core.masks import hide
from keras_linattn.core.masks import visible_span
from keras_linattn.core.numerics import accumulation_dtype
from keras_linattn.core.packed_pieces import PackedPieces
from keras_linattn.layers._arguments import above_one
from keras_linattn.layers._arguments import check_floating
from keras_linattn.layers._arguments import check_segment_ids
from keras_linattn.layers._arguments import known_features
from keras_linattn.layers._base_layer import BaseLayer
from keras_linattn.layers._caches import with_exact_states


@keras.saving.register_keras_serializable("keras_linattn")
class CausalConvolution(BaseLayer):
    """Adds to each position a weighted sum of it and the few before it.

    output_t = x_t + f(b + sum over i < kernel_size of w_i x_(t - i)), each
    feature with weights of its own and zeros before the first position; f is
    the activation, and x_t is left out without the residual. In a stack of
    causal attention it tells neighbours apart, as positions would, but for
    sequences of any length, and its state is its last inputs.

    Padding at either end changes nothing: the state comes right before the
    first visible position, and is left as it is by hidden ones. A gap between
    visible positions has no answer: what looks into it is NaN.

    Args:
        kernel_size: int > 1, positions that are summed up. Defaults to 4.
        activation: of the sum. Defaults to `None`: linear.
        use_bias: bool, whether the sum has a bias. Defaults to `True`.
        use_residual: bool, whether the input is added. Defaults to `True`.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: float tensor `(B, T, F)`.
        mask: optional bool tensor `(B, T)`, `True` = visible.
        initial_state: optional tensor, what an earlier call returned as its
            state: the inputs go on where that call ended. Defaults to `None`:
            nothing before.
        return_state: bool, return also the state after the inputs, a float32
            tensor `(B, kernel_size - 1, F)`. Defaults to `False`.
        segment_ids: optional int tensor `(B, T)`, for rows that hold several
            documents: each starts from zeros, but the first goes on from
            `initial_state`, and the last one's state is returned. Equal ids
            stand side by side, and 0 marks padding.

    Returns:
        Tensor `(B, T, F)`; with `return_state=True` also the state.

    Raises:
        ValueError: if `kernel_size` is not an integer above 1.

    Example:

    >>> import numpy as np
    >>> import keras_linattn
    >>> layer = keras_linattn.layers.CausalConvolution(kernel_size=3)
    >>> y, state = layer(np.ones((2, 5, 8), "float32"), return_state=True)
    >>> tuple(y.shape), tuple(state.shape)
    ((2, 5, 8), (2, 2, 8))

    Source: Arora et al., 2024, arXiv 2402.18668; Yang et al., 2024, arXiv
    2412.06464 (short convolutions in place of position embeddings).
    """

    def __init__(
        self,
        kernel_size: int = 4,
        activation: str | Callable | None = None,
        use_bias: bool = True,
        use_residual: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**with_exact_states(kwargs))
        self.supports_masking = True
        self.kernel_size = above_one("kernel_size", kernel_size)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.use_residual = use_residual

    def build(self, inputs_shape):
        features = inputs_shape[-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, features),
            initializer=keras.initializers.RandomUniform(
                -(self.kernel_size**-0.5), self.kernel_size**-0.5
            ),
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(features,), initializer="zeros"
            )

    def get_initial_state(
        self, batch_size: int | Tensor, features: int | None = None
    ) -> Tensor:
        """Returns the state before the first position: zeros.

        Args:
            batch_size: int or scalar tensor, B.
            features: int, F, for a layer that is not built. Defaults to
                `None`: those of the input it was built for.

        Returns:
            Tensor `(B, kernel_size - 1, F)`.
        """
        if self.built:
            features = self.kernel.shape[-1]
        shape = (batch_size, self.kernel_size - 1, known_features(features))
        return ops.zeros(shape, dtype=accumulation_dtype(self.compute_dtype))

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        initial_state: Tensor | None = None,
        return_state: bool = False,
        segment_ids: Tensor | None = None,
        inputs_mask: Tensor | None = None,
    ) -> Tensor | tuple:
        check_floating(initial_state=initial_state)
        # Keras calls it `inputs_mask` where another tensor is passed too.
        mask = combine_masks(first_given(mask, inputs_mask))
        last = self.kernel_size - 1
        documents = None
        if segment_ids is not None and not is_empty(inputs.shape):
            check_segment_ids(segment_ids, inputs)
            numbers, mask = numbers_and_mask(segment_ids, mask)
            documents = LookingBack(numbers, last)
        split = _split(self, inputs, initial_state)
        if split is not None:
            output = self._call_in_pieces(inputs, mask, split, segment_ids)
            if not return_state:
                return output
            # Of the whole sequence, whose output nobody asks for here.
            _, state = self._convolve(inputs, mask, None, documents)
            return output, state
        output, state = self._convolve(inputs, mask, initial_state, documents)
        return (output, state) if return_state else output

    def _call_in_pieces(self, inputs, mask, split, segment_ids):
        """Each device convolves its piece, behind the end of the one before."""
        variables = [x for x in (self.kernel, self.bias) if x is not None]
        features = split.heads
        arrays = [inputs, *(x.value for x in variables)]
        axes = [(split.batch, split.length, features), (None, features)]
        axes = [*axes, (features,)][: len(arrays)]
        given = {"mask": mask, "segment_ids": segment_ids}
        given = {name: x for name, x in given.items() if x is not None}
        arrays += given.values()
        axes += [(split.batch, split.length)] * len(given)

        def convolve(x, *others):
            with keras.StatelessScope() as scope:
                for pair in zip(variables, others):
                    scope.add_update(pair)
                own = dict(zip(given, others[len(variables) :], strict=True))
                return self._convolve_piece(split.pieces, x, **own)

        return on_each_device(convolve, arrays, axes, axes[0], split.mesh)

    def _convolve_piece(self, pieces, x, mask=None, segment_ids=None):
        """The output of this device's piece `(B, T, F)`."""
        last = self.kernel_size - 1
        documents, of_last = None, mask
        if segment_ids is not None:
            pieces = PackedPieces(pieces, segment_ids, mask)
            numbers, mask = pieces.documents.query, pieces.mask
            documents = LookingBack(numbers, last)
            of_last = ops.logical_and(mask, ops.equal(numbers, numbers[:, -1:]))
        before = pieces.from_left(hide(x, of_last)[:, -last:])
        return self._convolve(x, mask, before, documents, moves=False)[0]

    def _convolve(self, inputs, mask, initial_state, documents, moves=True):
        """The output, and the state after the inputs."""
        last = self.kernel_size - 1
        x = past = ops.cast(inputs, self.compute_dtype)
        start = end = None
        if mask is not None:
            start, end, gap = visible_span(mask)
            fill = ops.cast(ops.where(gap, float("nan"), 0.0), x.dtype)
            past = ops.where(
                ops.expand_dims(mask, -1), x, ops.expand_dims(fill, -1)
            )
            # A gap between two documents is seen by neither.
            x = past if documents is None else hide(x, mask)
        # What is 0 may stand anywhere before the first position.
        moves = moves and initial_state is not None and mask is not None
        if initial_state is None:
            initial_state = self.get_initial_state(ops.shape(inputs)[0])
        window = _window(
            ops.cast(initial_state, x.dtype), past, start if moves else None
        )
        # Shifted sums: grouped convolutions are slow under XLA on CPU.
        kernel = ops.cast(self.kernel, x.dtype)
        output = 0
        for shift in range(self.kernel_size):
            shifted = window[:, last - shift : -shift or None]
            if documents is not None:
                # A hidden position sees nothing: it may be in a gap.
                seen = ops.logical_and(documents.same(shift), mask)
                shifted = hide(shifted, seen)
            output = output + shifted * kernel[shift]
        if self.use_bias:
            output = output + ops.cast(self.bias, x.dtype)
        output = self.activation(output)
        if self.use_residual:
            output = output + x
        state = _state_after(window, last, end, documents)
        return output, ops.cast(state, initial_state.dtype)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def compute_output_spec(
        self,
        inputs,
        mask=None,
        initial_state=None,
        return_state=False,
        segment_ids=None,
        inputs_mask=None,
    ):
        check_floating(initial_state=initial_state)
        if segment_ids is not None:
            check_segment_ids(segment_ids, inputs)
        output = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        if not return_state:
            return output
        state = keras.KerasTensor(
            (inputs.shape[0], self.kernel_size - 1, inputs.shape[2]),
            dtype=accumulation_dtype(self.compute_dtype),
        )
        return output, state

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "use_residual": self.use_residual,
        }


def _split(layer, inputs, initial_state):
    """How devices share out the inputs, if they do so by their length.

    `heads` are the features, whose part on a device is whole heads.
    """
    if initial_state is not None:
        return None
    split = current_split(layer.kernel)
    if split is None or split.pieces is None or not ops.is_tensor(inputs):
        return None
    batch, length = inputs.shape[:2]
    count = split.pieces.count
    if length % count or length // count < layer.kernel_size:
        return None
    if batch % split.devices(split.batch):
        split = split._replace(batch=None)
    return split


def _window(before, x, start):
    """`x` after the state, which ends right before position `start`.

    Args:
        before: tensor `(B, kernel_size - 1, F)`, the state.
        x: tensor `(B, T, F)`, 0 before `start`, NaN in gaps.
        start: int tensor `(B, 1)`, or `None`: 0.

    Returns:
        Tensor `(B, kernel_size - 1 + T, F)`.
    """
    if start is None:
        return ops.concatenate([before, x], axis=1)
    last = before.shape[1]
    x = ops.pad(x, [(0, 0), (last, 0), (0, 0)])
    place = ops.arange(ops.shape(x)[1], dtype="int32") - start
    index = ops.expand_dims(ops.clip(place, 0, last - 1), 2)
    moved = ops.take_along_axis(before, index, axis=1)
    is_state = ops.logical_and(place >= 0, place < last)
    return ops.where(ops.expand_dims(is_state, 2), moved, x)


def _state_after(window, size, end, documents):
    """The last `size` positions before `end`, of the last document only.

    Args:
        window: tensor `(B, size + T, F)`, from `_window`.
        size: int > 0.
        end: int tensor `(B, 1)`, or `None`: T.
        documents: `LookingBack`, or `None`.

    Returns:
        Tensor `(B, size, F)`.
    """
    if end is None:
        return window[:, -size:]
    index = end + ops.arange(size, dtype="int32")
    state = ops.take_along_axis(window, ops.expand_dims(index, 2), axis=1)
    if documents is None:
        return state
    return hide(state, documents.in_last(index))
