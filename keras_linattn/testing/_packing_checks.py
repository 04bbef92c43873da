"""Checks of documents packed into one row: together as each one alone."""

import functools
import itertools

import keras
import numpy as np
from keras import ops

from keras_linattn.testing._backends import compile_where_slow
from keras_linattn.testing._backends import gradients
from keras_linattn.testing._backends import step_of
from keras_linattn.testing._backends import tensors
from keras_linattn.testing._inputs import random_inputs
from keras_linattn.testing._subject import assert_close
from keras_linattn.testing._subject import path_within
from keras_linattn.testing._subject import require
from keras_linattn.testing._subject import run

HEADS = ("query", "key", "value")
# (id, length) of each document. Some end at the edge of a chunk of 64, some
# inside; one is longer than a chunk; two have length 1. Padding has id 0.
ROWS = (
    ((1, 64), (2, 64), (3, 1), (4, 30), (0, 5), (5, 13), (0, 3)),
    ((0, 2), (7, 20), (3, 130), (9, 1), (0, 1), (8, 26)),
)
IDS = np.array(
    [np.repeat(*zip(*row)) for row in ROWS],
    dtype="int32",
)
LENGTH = IDS.shape[1]
HALF = LENGTH // 2  # within a document of each row
PROBE = 5  # positions that tell states apart
# Of queries and keys in cross-attention: some find none of theirs.
PAIR = (
    np.repeat([[1, 0, 2, 5], [0, 1, 3, 2]], (3, 1, 70, 2), axis=1),
    np.repeat([[2, 1, 0, 4], [3, 0, 4, 1]], (80, 30, 2, 1), axis=1),
)


def documents(ids):
    """List of row and bool array of the places of each document, in order."""
    found = []
    for row, numbers in enumerate(ids):
        order = dict.fromkeys(numbers[numbers != 0].tolist())
        found += [(row, numbers == number) for number in order]
    return found


def packed_inputs(subject, **sizes):
    """Inputs of `IDS`, with hidden positions in the documents, too."""
    return subject.inputs(
        queries=LENGTH, keys=LENGTH, value_dim=3, visible=0.85, **sizes
    )


def check_packed_is_separate(subject):
    """Outputs are the reference's of each document, those of padding 0."""
    inputs = packed_inputs(subject)
    large = np.isin(IDS, (2, 3))[:, None, :, None]
    sized = inputs.replace(
        key=np.where(large, 3 * inputs.key, inputs.key),
        value=np.where(large, np.float32(1e30), 1) * inputs.value,
    )
    mechanism = subject.shared(inputs)
    for causal, given in itertools.product(
        subject.traits.forms, (inputs, sized)
    ):
        output = run(mechanism, given, causal, segment_ids=IDS)
        padding = np.broadcast_to((IDS == 0)[:, None, :, None], output.shape)
        require(not output[padding].any(), "padding is not 0")
        _compare_documents(subject, mechanism, given, causal, output, IDS, IDS)


def _compare_documents(
    subject, mechanism, inputs, causal, output, ids, key_ids
):
    key_mask, query_mask = inputs.masks()
    for row, place in documents(ids):
        number = ids[row][place][0]
        keys = key_ids[row] == number
        alone = inputs.replace(
            query=inputs.query[row : row + 1, :, place],
            key=inputs.key[row : row + 1, :, keys],
            value=inputs.value[row : row + 1, :, keys],
            key_mask=key_mask[row : row + 1, keys],
            query_mask=query_mask[row : row + 1, place],
        )
        expected = np.zeros((1, *output.shape[1:2], place.sum(), 3))
        if keys.any():
            expected = subject.expected(mechanism, alone, causal)
        visible = alone.query_mask[0]
        scale = max(1, np.abs(expected).max())
        assert_close(
            output[row : row + 1, :, place][:, :, visible] / scale,
            expected[:, :, visible] / scale,
            subject.traits.tolerance,
            f"document {number} of row {row}, causal={causal}",
        )


def check_packed_cross_attention(subject):
    """With a pair of ids, in any order."""
    queries, keys = (ids.shape[1] for ids in PAIR)
    inputs = subject.inputs(
        queries=queries, keys=keys, value_dim=3, visible=0.85
    )
    mechanism = subject.shared(inputs)
    output = run(mechanism, inputs, False, segment_ids=PAIR)
    _compare_documents(subject, mechanism, inputs, False, output, *PAIR)


def check_documents_do_not_meet(subject):
    """NaN and infinities in one document leave the others, bit for bit."""
    inputs = packed_inputs(subject)
    mechanism = subject.shared(inputs)
    changes = (
        (HEADS, np.nan, (2, 3)),
        (HEADS, 1e30, (2, 3)),
        (HEADS, -np.inf, (4, 9)),
        (("key",), np.nan, (1, 7)),
        (("value",), np.inf, (5, 8)),
    )
    for causal in subject.traits.forms:
        expected = run(mechanism, inputs, causal, segment_ids=IDS)
        for names, extreme, numbers in changes:  # one document of each row
            place = IDS == np.reshape(numbers, (2, 1))
            altered = _filled_at(inputs, names, place, extreme)
            output = run(mechanism, altered, causal, segment_ids=IDS)
            others = ~place & inputs.masks()[1]
            others = np.broadcast_to(others[:, None, :], output.shape[:3])
            np.testing.assert_array_equal(
                output[others],
                expected[others],
                f"{extreme} of documents {numbers} in {names}, {causal=}",
            )


def _filled_at(inputs, names, place, extreme):
    place = place[:, None, :, None]
    return inputs.replace(
        **{
            name: np.where(place, np.float32(extreme), getattr(inputs, name))
            for name in names
        }
    )


def check_packed_pieces_give_the_whole(subject):
    """Documents go on from a state: whole = two pieces."""
    inputs = packed_inputs(subject)
    mechanism = subject.shared(inputs)
    step = _packed_step(mechanism)
    state = mechanism.initial_state(2, 2, 4, inputs.value.shape[3])
    outputs = []
    for piece in (slice(0, HALF), slice(HALF, None)):
        arrays = [getattr(inputs, name)[:, :, piece] for name in HEADS]
        masks = [inputs.masks()[0][:, piece], IDS[:, piece]]
        output, state = step(state, *tensors([*arrays, *masks]))
        outputs.append(ops.convert_to_numpy(output))
    visible = (inputs.masks()[1] & (IDS != 0))[:, None, :, None]
    expected = run(mechanism, inputs, True, segment_ids=IDS)
    assert_close(
        np.where(visible, np.concatenate(outputs, axis=2), 0),
        np.where(visible, expected, 0),
        subject.traits.tolerance,
    )


@functools.lru_cache(maxsize=4)
def _packed_step(mechanism):
    def step(state, query, key, value, key_mask, ids):
        return mechanism.step(
            state, query, key, value, key_mask=key_mask, segment_ids=ids
        )

    return compile_where_slow(step)


def check_packed_states(subject):
    """A row that ends with a document ends with its state.

    The first document of a row goes on from the state before, as alone.
    """
    inputs = packed_inputs(subject)
    mechanism = subject.shared(inputs)
    if not _ignores_padding(mechanism):
        return
    step = step_of(mechanism)
    packed = _packed_step(mechanism)
    whole = [getattr(inputs, name) for name in HEADS]
    mask, alone = inputs.masks()[0], Alone()
    before = some_state(mechanism)
    _, expected = step(
        keras.tree.map_structure(alone.states, before),
        *(alone.take(ops.convert_to_tensor(x)) for x in whole),
        ops.convert_to_tensor(alone.mask(mask)),
    )
    states = []
    for row, place in documents(IDS):
        end = np.flatnonzero(place)[-1] + 1
        ids = np.where(np.arange(LENGTH) < end, IDS, 0)
        _, after = packed(before, *tensors([*whole, mask, ids]))
        states.append([x[row] for x in _arrays_of(after)])
    found = [ops.convert_to_tensor(np.stack(x)) for x in zip(*states)]
    found = keras.tree.pack_sequence_as(before, found)
    # By what they give: a state may hold what nobody sees any more.
    found, expected = (
        ops.convert_to_numpy(step(state, *probe(len(states)))[0])
        for state in (found, expected)
    )
    assert_close(found, expected, subject.traits.tolerance)


def some_state(mechanism):
    """A state of two rows that is not the initial one."""
    state = mechanism.initial_state(2, 2, 4, 3)
    return step_of(mechanism)(state, *probe(2))[1]


def probe(count):
    """Heads and mask of a few positions, the same for `count` rows."""
    inputs = random_inputs(batch=1, queries=PROBE, keys=PROBE, value_dim=3)
    arrays = [getattr(inputs, name) for name in HEADS]
    arrays.append(np.ones((1, PROBE), bool))
    return tensors([np.repeat(x, count, axis=0) for x in arrays])


def _arrays_of(state):
    return [ops.convert_to_numpy(x) for x in keras.tree.flatten(state)]


class Alone:
    """The documents of `IDS` as rows of a batch, padded at their ends."""

    def __init__(self):
        found = documents(IDS)
        places = [np.flatnonzero(place) for _, place in found]
        longest = max(map(len, places))
        self.rows = np.array([row for row, _ in found], "int32")
        self.first = np.array([True, *(np.diff(self.rows) > 0)])
        self.last = np.flatnonzero([*(np.diff(self.rows) > 0), True])
        self.shown = np.arange(longest) < np.array([[len(p)] for p in places])
        self.index = np.zeros(self.shown.shape, "int32")
        self.index[self.shown] = np.concatenate(places)
        self.index += LENGTH * self.rows[:, None]

    def take(self, x):
        """`[B, H, T, D]` to `[documents, H, longest, D]`."""
        x = ops.transpose(x, (0, 2, 1, 3))
        x = ops.reshape(x, (-1, *x.shape[2:]))
        return ops.transpose(ops.take(x, self.index, axis=0), (0, 2, 1, 3))

    def mask(self, mask):
        return self.shown & mask.reshape(-1)[self.index]

    def states(self, x):
        """The state of a row for its first document, 0 for the others."""
        first = self.first.reshape(-1, *[1] * (len(x.shape) - 1))
        x = ops.take(x, self.rows, axis=0)
        return ops.where(first, x, ops.zeros_like(x))

    def last_states(self, x):
        """Of the states of all documents those of the last ones of rows."""
        return ops.take(x, self.last, axis=0)


def check_packed_gradients(subject):
    """Those of each document alone, of states and weights too."""
    inputs = packed_inputs(subject)
    mechanism = subject.shared(inputs)
    rng = np.random.default_rng(9)
    cotangent = rng.standard_normal(inputs.value.shape).astype("float32")
    shown = (inputs.masks()[1] & (IDS != 0))[:, None, :, None]
    cotangent = np.where(shown, cotangent, 0)
    arrays = [getattr(inputs, name) for name in HEADS]
    names = [path_within(mechanism, v) for v in mechanism.trainable_variables]
    for causal in subject.traits.forms:
        together, apart, states = _packed_and_alone(
            subject, mechanism, inputs, causal
        )
        variables = mechanism.trainable_variables
        found, expected = (
            sum(gradients(f, [*arrays, *states], variables, [cotangent]), [])
            for f in (together, apart)
        )
        labels = [*HEADS, *["state"] * len(states), *names]
        for name, one, other in zip(labels, found, expected, strict=True):
            scale = max(1, np.abs(other).max())
            assert_close(
                one / scale,
                other / scale,
                10 * subject.traits.tolerance,
                f"gradient of {name}, causal={causal}",
            )
        _compare_without_a_document(
            inputs, together, states, variables, cotangent, causal
        )


def _compare_without_a_document(
    inputs, total, states, variables, cotangent, causal
):
    """NaN in one document leaves the others' gradients, bit for bit.

    Here, where the gradients are compiled already.
    """
    place = IDS == [[2], [3]]
    spread = place[:, None, :, None]
    cotangent = np.where(spread, np.float32(0), cotangent)
    expected, found = (
        gradients(
            total,
            [getattr(given, name) for name in HEADS] + states,
            variables,
            [cotangent],
        )[0]
        for given in (
            _filled_at(inputs, HEADS, place, x) for x in (0.0, np.nan)
        )
    )
    for name, one, other in zip(HEADS, found, expected):
        np.testing.assert_array_equal(
            np.where(spread, 0, one),
            np.where(spread, 0, other),
            f"gradient of {name} next to a document of NaN, causal={causal}",
        )
    for one, other in zip(found[3:], expected[3:], strict=True):
        np.testing.assert_array_equal(one, other, "gradient of the state")


def _packed_and_alone(subject, mechanism, inputs, causal):
    """Two functions of heads, leaves of a state and a cotangent; the leaves."""
    alone = Alone()
    key_mask, query_mask = (ops.convert_to_tensor(x) for x in inputs.masks())
    ids = ops.convert_to_tensor(IDS)
    mask = ops.convert_to_tensor(alone.mask(inputs.masks()[0]))
    recurrent = causal and subject.traits.recurrent
    if not (recurrent and _ignores_padding(mechanism)):

        def together(*tensors):
            *heads, cotangent = tensors
            options = {"key_mask": key_mask, "query_mask": query_mask}
            output = mechanism(
                *heads, causal=causal, segment_ids=ids, **options
            )
            return ops.sum(output * cotangent)

        def apart(*tensors):
            *heads, cotangent = tensors
            options = {"key_mask": mask, "query_mask": mask}
            heads = map(alone.take, heads)
            output = mechanism(*heads, causal=causal, **options)
            return _sum_of_shown(output, alone, cotangent)

        return together, apart, []

    state = some_state(mechanism)
    leaves = [x for x in _arrays_of(state) if x.dtype.kind == "f"]

    def state_of(leaves):
        leaves = iter(leaves)  # numbers of positions stay
        every = [
            next(leaves) if ops.convert_to_numpy(x).dtype.kind == "f" else x
            for x in keras.tree.flatten(state)
        ]
        return keras.tree.pack_sequence_as(state, every)

    def together(query, key, value, *tensors):
        *leaves, cotangent = tensors
        before = state_of(leaves)
        output, after = mechanism.step(
            before, query, key, value, key_mask=key_mask, segment_ids=ids
        )
        return ops.sum(output * cotangent) + _sum_after(mechanism, after)

    def apart(query, key, value, *tensors):
        *leaves, cotangent = tensors
        before = keras.tree.map_structure(alone.states, state_of(leaves))
        heads = map(alone.take, (query, key, value))
        output, after = mechanism.step(before, *heads, key_mask=mask)
        after = keras.tree.map_structure(alone.last_states, after)
        total = _sum_of_shown(output, alone, cotangent)
        return total + _sum_after(mechanism, after)

    return together, apart, leaves


def _sum_of_shown(output, alone, cotangent):
    cotangent = alone.take(cotangent)
    shown = alone.shown[:, None, :, None]
    return ops.sum(ops.where(shown, output * cotangent, 0))


def _sum_after(mechanism, state):
    """A number that depends on a state: outputs of what follows it."""
    *heads, mask = probe(2)
    return ops.sum(mechanism.step(state, *heads, key_mask=mask)[0])


def check_refuses_packed_documents(subject):
    """What sums up a whole row says so."""
    inputs = subject.inputs(queries=8, keys=8)
    ids = np.repeat([[1, 2], [1, 0]], 4, axis=1)
    mechanism = subject.shared(inputs)
    try:
        run(mechanism, inputs, segment_ids=ids)
    except ValueError as error:
        require("segment_ids" in str(error), f"unclear: {error}")
    else:
        raise AssertionError(
            "the traits exclude `segment_ids`, but a call accepts them"
        )


def _ignores_padding(mechanism):
    """Does padding behind a document leave its state as it is?"""
    counts = not getattr(mechanism, "skip_hidden", True)
    return not (mechanism.traits.positional or counts)


CHECKS = {
    check_packed_is_separate: lambda t: t.packs,
    check_packed_cross_attention: lambda t: (
        t.packs and t.cross and t.bidirectional
    ),
    check_documents_do_not_meet: lambda t: t.packs,
    check_packed_gradients: lambda t: t.packs,
    check_packed_pieces_give_the_whole: lambda t: t.packs and t.recurrent,
    check_packed_states: lambda t: t.packs and t.recurrent,
    check_refuses_packed_documents: lambda t: not t.packs,
}
