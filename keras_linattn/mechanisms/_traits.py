"""The properties that a mechanism declares."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Traits:
    """Declares what a mechanism can do; chooses its checks.

    Args:
        causal: has an exact causal form. Defaults to `False`.
        bidirectional: has a form in which a query sees all keys. Defaults to
            `True`.
        cross: queries may have another length than keys. Defaults to `True`.
        recurrent: has `state_spec` and `advance`, so that `step` works.
            Defaults to `False`.
        linear: time and memory grow linearly with the length. Defaults to
            `True`.
        normalised: a constant value gives that constant. Defaults to `True`.
        signed: weights may be negative, so that an output may lie outside the
            range of the values. Defaults to `False`.
        explicit: the output is a matrix `[T, S]` times the values, so that
            `attention_scores` exists. Defaults to `True`.
        key_order_free: permuting keys, values and mask together changes
            nothing. Defaults to `True`.
        pools_queries: an output depends on the other queries too, so that
            hidden queries must be left out through `query_mask`. Defaults to
            `False`.
        separable: without a causal mask an output is a_t . sum_s b_s v_s, and
            `factors` gives a and b: the layers may fold that into their
            projections. Defaults to `False`.
        positional: an output depends on the place where its query stands.
            Defaults to `False`.
        equal_dims: V must be D. Defaults to `False`.
        gated: has gates that depend on the layer's input, which is passed as
            `inputs`. Defaults to `False`.
        packs: keeps documents that are packed into one row apart, see
            `segment_ids` of `Mechanism`. Defaults to `False`.
        splits: defines `attend_pieces`, so that devices can split a sequence by
            its length. Defaults to `False`.
        needs_length: takes an argument `sequence_length` and works up
            to that length, or up to the one it is built with. Defaults to
            `False`. The models pass it, and `grid`, where they know it.
        tolerance: float, largest error in float32 against the float64
            reference, relative and absolute. Defaults to 1e-5.
        cost: time, in the letters of `core/shapes.py`.
        state: size of the summary for each head, in the same letters.
        source: authors, year, arXiv id.
        grid: takes an argument `grid=(rows, columns)`, for sequences that are
            images row by row, beside its other arguments. Defaults to `False`.
        known_failures: pairs `(check, reason)` of conformance checks that are
            expected to fail. Defaults to none.

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
