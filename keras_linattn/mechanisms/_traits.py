"""The properties that a mechanism declares."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Traits:
    """Declares what a mechanism can do. `testing` chooses its checks by it.

    Arguments without a type are bools.

    Args:
        causal: has an exact causal form. Defaults to `False`.
        bidirectional: has a form in which a query sees all keys. Defaults to
            `True`.
        cross: queries may have another length than keys. Defaults to `True`.
        recurrent: has `state_spec` and `advance`, so that `step` works.
            Defaults to `False`.
        linear: time and memory grow linearly with the length. Defaults to
            `True`.
        normalised: if all values are equal, the output is that value.
            Defaults to `True`.
        signed: weights may be negative, so that an output may lie outside the
            range of the values. Defaults to `False`.
        explicit: the output is a matrix `[T, S]` times the values, so that
            `attention_scores` exists. Defaults to `True`.
        key_order_free: permuting keys, values and mask together changes
            nothing. Defaults to `True`.
        pools_queries: an output also depends on the other queries, so that
            calls must exclude masked queries by `query_mask`. Defaults to
            `False`.
        separable: without a causal mask an output is a_t . sum_s b_s v_s, and
            `factors` returns a and b. The layers may then merge this product
            with their projections. Defaults to `False`.
        positional: an output depends on the position of its query. Defaults
            to `False`.
        equal_dims: V must equal D. Defaults to `False`.
        gated: has gates that depend on the layer's input. A call then takes
            this input as `inputs`. Defaults to `False`.
        packs: accepts rows of several documents, which do not see each other,
            see `segment_ids` of `Mechanism`. Defaults to `False`.
        splits: defines `attend_pieces`, so that devices can split a sequence by
            its length. Defaults to `False`.
        needs_length: takes an argument `sequence_length`, and inputs up to
            that length, or up to the length it is built with. The models pass
            this argument, and `grid`, if they know it. Defaults to `False`.
        tolerance: float, largest error in float32 against the float64
            reference, relative and absolute. Defaults to 1e-5.
        cost: str, time as a formula in the letters of `core/shapes.py`.
            Defaults to `""`.
        state: str, size of the state of a head, as such a formula. Defaults
            to `""`.
        source: str, authors, year, arXiv id. Defaults to `""`.
        grid: takes an argument `grid=(rows, columns)`, for sequences that are
            images row by row. Defaults to `False`.
        known_failures: tuple of pairs `(check, reason)`, the checks that are
            expected to fail. Defaults to `()`.

    Example:

    >>> from keras_linattn import mechanisms
    >>> mechanisms.get("linear_transformer").traits.causal
    True
    """

    causal: bool = False
    bidirectional: bool = True
    cross: bool = True
    recurrent: bool = False
    linear: bool = True
    normalised: bool = True
    signed: bool = False
    explicit: bool = True
    key_order_free: bool = True
    pools_queries: bool = False
    separable: bool = False
    positional: bool = False
    equal_dims: bool = False
    gated: bool = False
    packs: bool = False
    splits: bool = False
    needs_length: bool = False
    tolerance: float = 1e-5
    cost: str = ""
    state: str = ""
    source: str = ""
    grid: bool = False
    known_failures: tuple = ()

    @property
    def forms(self) -> tuple[bool, ...]:
        """The values of the argument `causal` that the mechanism accepts."""
        return (False,) * self.bidirectional + (True,) * self.causal
