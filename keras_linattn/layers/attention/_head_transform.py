"""What happens to projected heads before the mechanism attends to them."""

import typing

import keras
from keras import ops

from keras_linattn.core.numerics import accumulation_dtype
from keras_linattn.core.rotary import count_positions
from keras_linattn.core.rotary import rotate
from keras_linattn.layers._base_layer import BaseLayer
from keras_linattn.layers._base_layer import makes_sublayers
from keras_linattn.layers._caches import with_exact_states
from keras_linattn.layers._norms import make_norm
from keras_linattn.layers.stems.causal_convolution import CausalConvolution


class Places(typing.NamedTuple):
    """Where heads stand: arguments of `HeadTransform`, see there."""

    mask: object = None
    segment_ids: object = None
    positions: object = None


def places_of(x, mask, segment_ids, start, counts):
    """The `Places` of the positions of `x`, and their part of a state.

    Args:
        x: tensor `(B, T, F)`.
        mask: bool tensor `(B, T)`, `True` = visible, or `None`.
        segment_ids: int tensor `(B, T)`, or `None`.
        start: int32 tensor `(B, 1)`, positions before those of `x`, or `None`.
        counts: whether anybody asks for the positions.
    """
    if not counts:
        return Places(mask, segment_ids), {}
    positions, after = count_positions(x, mask, segment_ids, start)
    return Places(mask, segment_ids, positions), {"position": after}


class HeadTransform(BaseLayer):
    """Convolves, normalises, turns and repeats heads, in this order.

    Each step is optional; a sublayer of `LinearMultiHeadAttention`, not for
    use on its own.

    Args:
        kernel_size: int > 1 or `None`, positions of a short causal convolution
            of each feature, with SiLU. Defaults to `None`: none.
        norm_epsilon: float > 0 or `None`, of an RMS norm of each head.
            Defaults to `None`: none.
        rotary: dict of arguments of `core.rotary.rotate`, or `None` for heads
            that do not turn. Defaults to `None`.
        repeats: int > 0, how often each head stands in the output. Defaults
            to 1.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        heads: tensor `(B, ..., G, D)`; `(B, T, G, D)` for all but the norm
            and the repetition.
        mask: optional bool tensor `(B, T)`, `True` = visible.
        segment_ids: optional int tensor `(B, T)`, of packed documents.
        positions: int tensor `(B, T)` or `(1, T)`, for `rotary`.
        initial_state: optional tensor, the convolution's last inputs.
            Defaults to `None`: nothing before.
        return_state: bool, return also the convolution's state, `None` if
            there is no convolution. Defaults to `False`.

    Returns:
        Tensor `(B, ..., G * repeats, D)`.
    """

    def __init__(
        self,
        kernel_size=None,
        norm_epsilon=None,
        rotary=None,
        repeats=1,
        **kwargs,
    ):
        super().__init__(**with_exact_states(kwargs))
        self.supports_masking = True
        self.kernel_size = kernel_size
        self.norm_epsilon = norm_epsilon
        self.rotary = rotary
        self.repeats = repeats

    @makes_sublayers
    def build(self, heads_shape):
        if self.kernel_size is not None:
            self._convolution = CausalConvolution(
                self.kernel_size,
                activation="silu",
                use_bias=False,
                use_residual=False,
                dtype=self.dtype_policy,
                name="convolution",
            )
            self._convolution.build(_side_by_side(heads_shape))
        if self.norm_epsilon is not None:
            self._norm = make_norm(
                "rms", self.norm_epsilon, self.dtype_policy, "norm"
            )
            self._norm.build(heads_shape)

    def call(
        self,
        heads,
        mask=None,
        segment_ids=None,
        positions=None,
        initial_state=None,
        return_state=False,
    ):
        x, state = heads, None
        if self.kernel_size is not None:
            shape = ops.shape(x)
            x, state = self._convolution(
                ops.reshape(x, _side_by_side(shape)),
                mask=mask,
                segment_ids=segment_ids,
                initial_state=initial_state,
                return_state=True,
            )
            x = ops.reshape(x, shape)
        if self.norm_epsilon is not None:
            x = self._norm(x)
        if self.rotary is not None:
            x = rotate(x, positions, **self.rotary)
        if self.repeats > 1:
            x = ops.repeat(x, self.repeats, axis=-2)
        return (x, state) if return_state else x


def convolution_spec(kernel_size, heads, dim, dtype):
    """What the state of a `HeadTransform` with a convolution consists of."""
    shape = (None, kernel_size - 1, heads * dim)
    return keras.KerasTensor(shape, dtype=accumulation_dtype(dtype))


def _side_by_side(shape):
    """`(B, T, G, D)` to `(B, T, G D)`."""
    return (*shape[:-2], shape[-2] * shape[-1])
