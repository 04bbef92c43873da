"""The interface of a mechanism."""

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras import tree

from keras_linattn.core.annotations import Shape
from keras_linattn.core.annotations import Tensor
from keras_linattn.core.annotations import Tree
from keras_linattn.core.arguments import takes_numpy
from keras_linattn.core.backends import current
from keras_linattn.core.backends import fast_forms
from keras_linattn.core.devices import Pieces
from keras_linattn.core.documents import documents_of
from keras_linattn.core.folded import Factors
from keras_linattn.core.lengths import empty_sum
from keras_linattn.core.lengths import is_empty
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.masks import combine_masks
from keras_linattn.core.nonfinite import NotSanitized
from keras_linattn.core.nonfinite import Sanitized
from keras_linattn.core.nonfinite import known_finite
from keras_linattn.core.numerics import accumulation_dtype
from keras_linattn.core.packed_pieces import PackedPieces
from keras_linattn.mechanisms._checks import check_heads
from keras_linattn.mechanisms._checks import check_other_lengths
from keras_linattn.mechanisms._states import check_state_dtype
from keras_linattn.mechanisms._states import stored
from keras_linattn.mechanisms._states import widened
from keras_linattn.mechanisms._traits import Traits


class Mechanism(keras.layers.Layer):
    """Base class of mechanisms: attention on projected heads.

    The layers project inputs to heads and call a mechanism. A subclass declares
    `traits` and defines `attend`, which receives heads in the accumulation
    dtype (float32 under half-precision policies), with 0 in all masked
    positions.

    Args:
        state_dtype: str or `None`, the dtype of states between calls, for
            mechanisms with the trait `recurrent`. Within a call sums are at
            least float32. `"bfloat16"` halves the memory of states and rounds
            them once in each call. `"float16"` rounds less, but its largest
            number is 65,504. Defaults to `None`: the dtype of the sums.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, S, D]`.
        value: tensor `[B, H, S, V]`.
        key_mask: optional bool tensor `(B, S)`, `True` = visible.
        query_mask: optional bool tensor `(B, T)`, `True` = visible. Only
            mechanisms with the trait `pools_queries` need it.
        causal: bool. Query t sees the keys s <= t only. Defaults to `False`.
        training: optional bool, as for any Keras layer.
        segment_ids: optional int tensor `(B, T)`, for rows that hold several
            documents: a query sees the keys of its own id only, and 0 marks
            padding. Positions with equal ids must be adjacent. Pass a pair of
            tensors `(B, T)` and `(B, S)` for cross-attention. Needs the trait
            `packs`.

    Returns:
        Tensor `[B, H, T, V]` in the dtype of `query`. A row that sees no key
        is 0.

    Raises:
        ValueError: if shapes do not fit each other, or if a call needs a
            causal form or cross-attention and the mechanism does not have it.

    Example:

    >>> import numpy as np
    >>> from keras_linattn import mechanisms
    >>> x = np.ones((2, 4, 10, 8), "float32")
    >>> tuple(mechanisms.get("linear_transformer")(x, x, x).shape)
    (2, 4, 10, 8)
    """

    traits = Traits()
    # Dict from the name of each weight to its axis of heads, or to `None` if
    # all heads share the weight. Such a dict also declares that heads are
    # independent, so that devices can split them. `None`: unknown.
    head_axes: dict[str, int | None] | None = None
    num_hosts = 0  # layers that attend through this object, set by them
    keeps_near = False  # whether NaN in a key reaches near queries only

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        takes_numpy(cls)

    def __init__(self, state_dtype: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self._state_dtype = check_state_dtype(state_dtype)
        _LIVING.add(self)
        current()  # `torch.compile` cannot look through the import

    @property
    def state_dtype(self) -> str:
        """str, the dtype of all sums in a state, for `state_spec`."""
        return self._state_dtype or accumulation_dtype(self.compute_dtype)

    def build(
        self, query_shape: Shape, key_shape: Shape, value_shape: Shape
    ) -> None:
        """Creates the weights, if the mechanism has any.

        A mechanism with the trait `gated` also takes `inputs_shape`, a tuple
        `(B, T, F)`.

        Args:
            query_shape: tuple, `(B, H, T, D)`.
            key_shape: tuple, `(B, H, S, D)`.
            value_shape: tuple, `(B, H, S, V)`.
        """

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        causal: bool,
        training: bool | None,
    ) -> Tensor:
        """Computes the output of the heads. Subclasses define this formula.

        The arguments are those of a call. Query, key and value are already
        cast, and 0 at masked positions. A mechanism with the trait `packs`
        also gets `documents`: `core.documents.Documents`, or `None` (the
        default). Returns a tensor `[B, H, T, V]`.
        """
        raise self._must_define("attend")

    def factors(
        self, query: Tensor, key: Tensor, key_mask: Tensor | None = None
    ) -> Factors:
        """Returns the factors a and b of the output a_t . sum_s b_s v_s.

        A mechanism with the trait `separable` must define it. The factors are
        float32 or float64.

        Args:
            query: tensor `[B, T, H, D]`, heads last, as they are projected.
            key: tensor `[B, S, H, D]`, 0 where masked.
            key_mask: optional bool tensor `(B, S)`, `True` = visible.

        Returns:
            `core.folded.Factors`.
        """
        raise self._must_define("factors")

    def call(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        causal: bool = False,
        training: bool | None = None,
        segment_ids: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        dtype = query.dtype
        options, key_mask, query_mask = self._packed(
            segment_ids, key_mask, query_mask
        )
        query, key, value = self._prepare(
            query, key, value, key_mask, causal, segment_ids is not None
        )
        if is_empty(query.shape, key.shape):
            return ops.cast(self._see_nothing(query, key, value), dtype)
        # NaN behind the mask must not reach a product, nor its gradients.
        query = apply_mask(query, query_mask)
        sanitized = self._sanitized(query, key, value, options, causal)
        output = self.attend(
            *sanitized.heads,
            key_mask=key_mask,
            query_mask=query_mask,
            causal=causal,
            training=training,
            **options,
        )
        if segment_ids is not None:
            output = apply_mask(sanitized.write_nan(output), query_mask)
        return ops.cast(output, dtype)

    def call_pieces(
        self,
        pieces: Pieces,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        causal: bool = False,
        training: bool | None = None,
        segment_ids: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Calls the mechanism on this device's piece of the sequence.

        Args:
            pieces: `core.devices.Pieces`.
            query, key, value, key_mask, query_mask, segment_ids: this device's
                piece.
            causal, training: see `Mechanism`.
            **options: further arguments of `attend_pieces`.
        """
        dtype = query.dtype
        packed = {}
        if segment_ids is not None:
            pieces = PackedPieces(pieces, segment_ids)
            packed = {"documents": pieces.documents}
            key_mask = combine_masks(key_mask, pieces.mask)
            query_mask = combine_masks(query_mask, pieces.mask)
        query, key, value = self._prepare(query, key, value, key_mask, causal)
        query = apply_mask(query, query_mask)
        sanitized = self._sanitized(query, key, value, packed, causal)
        sanitized.include_pieces(pieces, causal)
        query, key, value = sanitized.heads
        output = self.attend_pieces(
            pieces,
            query,
            key,
            value,
            key_mask=key_mask,
            causal=causal,
            **packed,
            **options,
        )
        if packed:
            output = apply_mask(sanitized.write_nan(output), query_mask)
        return ops.cast(output, dtype)

    def attend_pieces(
        self,
        pieces: Pieces,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Tensor | None,
        causal: bool,
        **options: Any,
    ) -> Tensor:
        """Computes the output for a piece of the sequence on this device.

        A mechanism with the trait `splits` must define it. It takes the
        arguments of `attend`, for this piece. `pieces`, a
        `core.devices.Pieces`, sends arrays between devices.

        If the method has an argument `documents`, it also gets packed rows.
        Then `pieces` is a `core.packed_pieces.PackedPieces`, and a document
        may continue from other devices.
        """
        raise self._must_define("attend_pieces")

    def rematerialized_call(
        self, layer_call: Callable, *args: Any, **kwargs: Any
    ) -> Callable:
        """Returns `layer_call`: only the layer around it is recomputed."""
        return layer_call

    def attention_scores(
        self,
        query: Tensor,
        key: Tensor,
        key_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Computes the attention matrix that the mechanism implies.

        The output of a call is this matrix times the values. It is quadratic
        in time and memory, for inspection only.

        Args:
            query: tensor `[B, H, T, D]`.
            key: tensor `[B, H, S, D]`.
            key_mask: optional bool tensor `(B, S)`, `True` = visible.
            **options: further arguments of a call, such as `causal`.

        Returns:
            Tensor `[B, H, T, S]`.

        Raises:
            ValueError: if the mechanism has no such matrix (trait `explicit`).
        """
        self.check_scores()
        # The output is linear in the values: identity as values gives it.
        batch, heads, length, _ = ops.shape(key)
        identity = ops.eye(length, dtype=accumulation_dtype(key.dtype))
        identity = ops.broadcast_to(identity, (batch, heads, length, length))
        return self(query, key, identity, key_mask=key_mask, **options)

    def state_spec(self, num_heads: int, key_dim: int, value_dim: int) -> Tree:
        """Returns the shapes and dtypes of a state.

        Returns:
            Tree of `keras.KerasTensor` with the batch, `None`, as axis 0. Sums
            have the dtype `self.state_dtype`. No size depends on the length.

        Raises:
            ValueError: if the mechanism has no recurrent form.
        """
        self.check_recurrent()
        raise self._must_define("state_spec")

    def initial_state(
        self,
        batch_size: int | Tensor,
        num_heads: int,
        key_dim: int,
        value_dim: int,
    ) -> Tree:
        """Returns the state before the first position: zeros.

        Its shapes and dtypes are those of `state_spec`.
        """
        spec = self.state_spec(num_heads, key_dim, value_dim)
        return keras.tree.map_structure(
            lambda x: ops.zeros((batch_size, *x.shape[1:]), dtype=x.dtype),
            spec,
        )

    def initial_state_for(self, query: Tensor, value: Tensor) -> Tree:
        """Returns the `initial_state` for heads of these sizes.

        Its sums have the accumulation dtype, as `advance` expects.

        Args:
            query: tensor `[B, H, T, D]`.
            value: tensor `[B, H, T, V]`.
        """
        sizes = (query.shape[1], query.shape[3], value.shape[3])
        state = self.initial_state(ops.shape(query)[0], *sizes)
        dtype = accumulation_dtype(query.dtype)
        return widened(state, self.state_spec(*sizes), dtype)

    def advance(
        self,
        state: Tree,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_mask: Tensor | None,
    ) -> tuple[Tensor, Tree]:
        """Computes the causal output after a state, and the next state.

        A mechanism with the trait `recurrent` must define it. Arguments and
        results are those of `step`, which has checked and cast heads and state
        and has set masked keys and values to 0. Queries are never masked. With
        the trait `packs` it also takes `documents`, see `attend`: `state`
        belongs to document 0, and the next state to the last document.
        """
        raise self._must_define("advance")

    def step(
        self,
        state: Tree,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tree]:
        """Advances the state by any number of new positions.

        Args:
            state: tree of tensors from `initial_state` or an earlier `step`.
            query: tensor `[B, H, T, D]`, T >= 1 new positions.
            key: tensor `[B, H, T, D]`.
            value: tensor `[B, H, T, V]`.
            key_mask: optional bool tensor `(B, T)`, `True` = visible.
            segment_ids: optional int tensor `(B, T)`, see `Mechanism`. The
                first document of a row continues from the state; the new state
                is that of the last document.
            **options: further arguments of `advance`.

        Returns:
            The output `[B, H, T, V]` and the new state.

        Raises:
            ValueError: if the mechanism has no recurrent form.
        """
        self.check_recurrent()
        dtype = query.dtype
        packed, key_mask, _ = self._packed(segment_ids, key_mask)
        query, key, value = self._prepare(
            query, key, value, key_mask, packed=segment_ids is not None
        )
        spec = self.state_spec(query.shape[1], query.shape[3], value.shape[3])
        state = widened(state, spec, query.dtype)
        if is_empty(query.shape):
            output = self._see_nothing(query, key, value)
        else:
            sanitized = self._sanitized(query, key, value, packed, state=state)
            state = tree.map_structure(sanitized.sanitize_state, state)
            query, key, value = sanitized.heads
            output, state = self.advance(
                state,
                query,
                key,
                value,
                key_mask=key_mask,
                **packed,
                **options,
            )
            output = sanitized.write_nan(output)
            state = tree.map_structure(sanitized.write_nan_into_state, state)
        return ops.cast(output, dtype), stored(state, spec)

    def compute_output_shape(self, query_shape, key_shape, value_shape):
        return (*query_shape[:-1], value_shape[-1])

    def compute_output_spec(
        self,
        query,
        key,
        value,
        key_mask=None,
        query_mask=None,
        causal=False,
        segment_ids=None,
        **options,
    ):
        # Refuse while the model is made, not when the first batch arrives.
        shapes = query.shape, key.shape, value.shape
        self.check_call(*shapes, causal, packed=segment_ids is not None)
        for x in (query, key, value):
            accumulation_dtype(x.dtype)
        shape = self.compute_output_shape(*shapes)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self) -> dict:
        """Returns the config, with each constructor argument under its name.

        A subclass stores each argument as an attribute of the same name. It
        overrides `get_config` only if an argument is not JSON.
        """
        own = constructor_arguments(type(self))
        return {
            **super().get_config(),
            "state_dtype": self._state_dtype,
            **{name: getattr(self, name) for name in own},
        }

    def _prepare(self, query, key, value, key_mask, causal=True, packed=False):
        """Checked, in the accumulation dtype, nothing behind a masked key."""
        shapes = query.shape, key.shape, value.shape
        self.check_call(*shapes, causal, packed)
        key, value = check_other_lengths(
            self, query, key, value, causal, packed
        )
        # Of all three: a cast would let integers pass.
        dtype, *_ = [accumulation_dtype(x.dtype) for x in (query, key, value)]
        query, key, value = (ops.cast(x, dtype) for x in (query, key, value))
        if key_mask is not None:
            key, value = apply_mask(key, key_mask), apply_mask(value, key_mask)
        return query, key, value

    def _sanitized(self, query, key, value, packed, causal=True, state=None):
        """Heads in which NaN of one document cannot reach another."""
        documents = packed.get("documents")
        apart = documents is None or not documents.one_sequence
        if apart or self.keeps_near:
            return NotSanitized(query, key, value)
        if state is None and fast_forms() and known_finite(query, key, value):
            return NotSanitized(query, key, value)
        return Sanitized(query, key, value, documents, causal)

    def _packed(self, segment_ids, key_mask, query_mask=None):
        """`documents` as an option of `attend`, and the masks with padding."""
        if segment_ids is None:
            return {}, key_mask, query_mask
        self.check_packs()
        one = not isinstance(segment_ids, (tuple, list))
        if not (one or self.traits.cross):
            raise ValueError(
                f"`{type(self).__name__}` supports self-attention only. "
                "Received: a pair of `segment_ids`. Pass one tensor `(B, T)`."
            )
        documents, of_queries, of_keys = documents_of(segment_ids)
        return (
            {"documents": documents},
            combine_masks(key_mask, of_keys),
            combine_masks(query_mask, of_queries),
        )

    def _see_nothing(self, query, key, value):
        """The output where there are no keys, no queries, or no batch: 0."""
        shape = (*ops.shape(query)[:3], value.shape[3])
        tensors = (query, key, value, *self.trainable_variables)
        return ops.zeros(shape, query.dtype) + empty_sum(*tensors)

    def _must_define(self, method):
        return NotImplementedError(
            f"`{type(self).__name__}` must define `{method}`, as its traits "
            "and its base class demand."
        )

    def check_recurrent(self) -> None:
        """Raises a `ValueError` if this configuration has no states."""
        if not self.traits.recurrent:
            raise ValueError(
                f"`{type(self).__name__}` has no recurrent form, so it has no "
                "states. Use a mechanism with the trait `recurrent`, such as "
                "'linear_transformer'."
            )

    def check_scores(self) -> None:
        """Raises a `ValueError` if the mechanism has no attention matrix."""
        if not self.traits.explicit:
            raise ValueError(
                f"`{type(self).__name__}` has no equivalent attention matrix. "
                "Received: return_attention_scores=True. Use a mechanism with "
                "the trait `explicit`, or leave the scores out."
            )

    def check_packs(self) -> None:
        """Raises a `ValueError` without the trait `packs`."""
        if not self.traits.packs:
            raise ValueError(
                f"`{type(self).__name__}` cannot keep the documents of a row "
                "apart: it summarizes the whole row at once. Received: "
                "`segment_ids`. Give each document a row of its own, padded, "
                "or use a mechanism with the trait `packs`, such as "
                "'linear_transformer'."
            )

    def check_call(
        self,
        query: Shape,
        key: Shape,
        value: Shape,
        causal: bool = False,
        packed: bool = False,
    ) -> None:
        """Raises a `ValueError` if heads of these shapes cannot be attended.

        It checks static shapes only, not values or unknown sizes.

        Args:
            query: tuple, shape `[B, H, T, D]`; sizes may be `None`.
            key: tuple, shape `[B, H, S, D]`.
            value: tuple, shape `[B, H, S, V]`.
            causal: bool. Defaults to `False`.
            packed: bool, whether rows hold several documents. A maximum length
                then applies to documents, not rows. Defaults to `False`.
        """
        check_heads(self, query, key, value, causal, packed)


_LIVING = weakref.WeakSet()  # all mechanisms, for `axis_of_heads`


def axis_of_heads(path):
    """The axis of the heads in a mechanism's weight; `None` if it has none.

    Args:
        path: str, such as `"decoder_0/self_attention/delta_rule/beta_bias"`.
    """
    owner, weight = ["", *path.split("/")][-2:]
    for mechanism in _LIVING:
        axes = mechanism.head_axes or {}
        if mechanism.name == owner and weight in axes:
            return axes[weight]
    return None


def constructor_arguments(cls):
    """Names and defaults of the arguments that a mechanism adds to Keras'."""
    return {
        p.name: p.default
        for base in cls.__mro__[: cls.__mro__.index(Mechanism)]
        if "__init__" in vars(base)
        for p in inspect.signature(base.__init__).parameters.values()
        if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
