"""Documents packed into one row give what they give alone: attention, blocks.

The stems are in `test_segments_stems.py`, the models in `test_packing.py`.
"""

import keras
import numpy as np
import pytest
from helpers import PACKING
from helpers import SEGMENT_IDS
from helpers import DocumentSums
from helpers import alone
from helpers import assert_same_documents
from helpers import documents
from helpers import numpy
from helpers import random
from helpers import slow_to_compile
from keras import ops

import keras_linattn as kl
from keras_linattn import mechanisms
from keras_linattn.testing._backends import gradients

FEATURES = 6
# Hidden, beside what the ids hide: the first position of a document.
MASK = np.ones(SEGMENT_IDS.shape, bool)
MASK[0, 6] = False


def outputs(model, *inputs):
    """Compiled as a whole under JAX, see `helpers.predict`."""
    if keras.backend.backend() == "jax":
        return model.predict_on_batch(list(inputs))
    return numpy(model([ops.convert_to_tensor(x) for x in inputs]))


def attention(mechanism, causal):
    layer = kl.LinearSelfAttention(2, 3, mechanism=mechanism, causal=causal)
    return lambda x, mask, ids: layer(x, mask=mask, segment_ids=ids)


def encoder(mechanism, causal):
    block = kl.LinearTransformerEncoder(8, 2, mechanism=mechanism)
    return lambda x, mask, ids: block(x, padding_mask=mask, segment_ids=ids)


def decoder(mechanism, causal):
    block = kl.LinearTransformerDecoder(8, 2, mechanism=mechanism)
    return lambda x, mask, ids: block(
        x, decoder_padding_mask=mask, decoder_segment_ids=ids
    )


def group(mechanism, causal):
    block = kl.layers.LinearTransformerDecoderGroup(
        2, 8, 2, mechanism=mechanism
    )
    return lambda x, mask, ids: block(
        x, decoder_padding_mask=mask, decoder_segment_ids=ids
    )


MADE = {
    ("attention", False): attention,
    ("attention", True): attention,
    ("encoder", False): encoder,
    ("decoder", True): decoder,
    ("group", True): group,
}
CASES = [
    pytest.param(make, mechanism, causal, id=f"{name}-{mechanism}-{causal}")
    for mechanism in PACKING
    for (name, causal), make in MADE.items()
    if causal in mechanisms.get(mechanism).traits.forms
]


def models(call):
    """Functional models of one layer: with ids, and without."""
    x = keras.Input((None, FEATURES))
    mask = keras.Input((None,), dtype="bool")
    ids = keras.Input((None,), dtype="int32")
    packed = keras.Model([x, mask, ids], call(x, mask, ids))
    return packed, keras.Model([x, mask], call(x, mask, None))


@pytest.mark.parametrize(("make", "mechanism", "causal"), CASES)
def test_packed_is_separate(make, mechanism, causal):
    packed, separate = models(make(mechanism, causal))
    x = random(*SEGMENT_IDS.shape, FEATURES)
    expected = outputs(separate, alone(x), alone(MASK))
    x[(SEGMENT_IDS == 0) | ~MASK] = np.nan
    together = outputs(packed, x, MASK, SEGMENT_IDS)
    assert_same_documents(together, expected, atol=1e-5)
    # NaN in one document is no concern of the others, to the last bit.
    altered = (0, slice(6, 10))
    x[altered] = np.nan
    after = outputs(packed, x, MASK, SEGMENT_IDS)
    for place in documents():
        if place != altered:
            np.testing.assert_array_equal(after[place], together[place])
    assert np.isnan(after[0, 7:10]).all()


@slow_to_compile
@pytest.mark.parametrize("mechanism", PACKING)
def test_cross_attention_is_within_pairs_of_documents(mechanism):
    if not mechanisms.get(mechanism).traits.cross:
        pytest.skip("has no cross-attention")
    block = kl.LinearTransformerDecoder(
        8, 2, mechanism="softmax", cross_mechanism=mechanism
    )
    # Encoded documents of other lengths, in an order of their own.
    encoded_ids = np.array([[3, 3, 1, 1, 1, 2], [0, 2, 2, 4, 4, 0]], "int32")
    x = random(*SEGMENT_IDS.shape, FEATURES)
    encoded = random(*encoded_ids.shape, FEATURES, seed=1)
    together = block(
        x,
        encoded,
        decoder_segment_ids=SEGMENT_IDS,
        encoder_segment_ids=encoded_ids,
    )
    rows = [row for row, _ in documents()]
    own = alone(SEGMENT_IDS)
    separate = block(
        alone(x),
        encoded[rows],
        decoder_padding_mask=own > 0,
        encoder_padding_mask=encoded_ids[rows] == own[:, :1],
    )
    assert_same_documents(numpy(together), numpy(separate), atol=1e-5)


def test_scores_are_within_documents():
    layer = kl.LinearMultiHeadAttention(2, 3, mechanism="softmax")
    x = random(*SEGMENT_IDS.shape, FEATURES)
    _, scores = layer(
        x, x, segment_ids=SEGMENT_IDS, return_attention_scores=True
    )
    ids = SEGMENT_IDS
    same = (ids[:, :, None] == ids[:, None]) & (ids[:, :, None] > 0)
    sums = numpy(ops.sum(scores, axis=-1))[:, 0]
    np.testing.assert_allclose(sums, ids > 0, atol=1e-6)
    assert not (numpy(scores)[:, 0] * ~same).any()


# --- States


def streaming(name):
    """A layer with a state, and a callable of inputs, ids and that state."""
    mechanism = DocumentSums()
    if name == "attention":
        layer = kl.LinearSelfAttention(2, 3, mechanism=mechanism, causal=True)
    elif name == "decoder":
        layer = kl.LinearTransformerDecoder(8, 2, mechanism=mechanism)
    else:
        layer = kl.layers.LinearTransformerDecoderGroup(
            2, 8, 2, mechanism=mechanism
        )
    layer.build((2, 1, FEATURES))

    def call(x, ids, state):
        if name == "attention":
            options = {"segment_ids": ids, "initial_state": state}
            return layer(x, return_state=True, **options)
        return layer(x, decoder_segment_ids=ids, self_attention_cache=state)

    return layer, call


def fed(call, x, ids, sizes, state):
    """Outputs and the last state of `x` fed in pieces."""
    parts, start = [], 0
    for size in sizes:
        now = slice(start, start + size)
        part, state = call(x[:, now], ids[:, now], state)
        parts.append(numpy(part))
        start += size
    return np.concatenate(parts, axis=1), numpy(state)


@slow_to_compile
@pytest.mark.parametrize("name", ["attention", "decoder", "group"])
def test_the_first_document_goes_on_and_the_last_is_kept(name):
    layer, call = streaming(name)
    x = random(*SEGMENT_IDS.shape, FEATURES)
    start = random(*layer.get_initial_state(2).shape)
    whole, state = fed(call, x, SEGMENT_IDS, (11,), start)
    # Cut inside documents, which then are the first of their piece.
    pieces, after = fed(call, x, SEGMENT_IDS, (3, 6, 2), start)
    np.testing.assert_allclose(pieces, whole, atol=1e-5)
    np.testing.assert_allclose(after, state, atol=1e-5)
    first = numpy(layer.get_initial_state(1))
    for row, place in dict(documents()).items():  # the last of each row
        ids, own = SEGMENT_IDS[row : row + 1, place], x[row : row + 1, place]
        _, separate = fed(call, own, ids, own.shape[1:2], first)
        np.testing.assert_allclose(state[row], separate[0], atol=1e-5)


# --- Policies, recomputation, refusals


@slow_to_compile
def test_ids_are_not_rounded_in_half_precision():
    """Which would make one document of 256 and 257."""
    ids = np.repeat([[256, 257]], 3, axis=1)
    x = random(1, 6, FEATURES)
    x[:, :3] = np.nan
    for layer in (
        kl.LinearSelfAttention(2, 3, mechanism="softmax", dtype="bfloat16"),
        kl.LinearTransformerEncoder(
            8, 2, mechanism="softmax", dtype="mixed_bfloat16"
        ),
    ):
        y = layer(ops.convert_to_tensor(x), segment_ids=ids)
        assert np.isfinite(numpy(ops.cast(y, "float32"))[:, 3:]).all()


def test_recomputation_has_the_same_gradients():
    x = random(*SEGMENT_IDS.shape, FEATURES)
    ids = ops.convert_to_tensor(SEGMENT_IDS)
    found = []
    for remat in (False, True):
        keras.utils.set_random_seed(0)
        block = kl.LinearTransformerEncoder(
            8, 2, dropout=0.5, mechanism="softmax", remat=remat
        )
        block.build(x.shape)
        weights = block.trainable_variables

        def loss(x):
            y = block(x, segment_ids=ids, training=True)
            return ops.sum(ops.square(y[:, 1:4]))

        found.append(gradients(loss, [x], weights))
    for without, with_remat in zip(*(keras.tree.flatten(g) for g in found)):
        np.testing.assert_allclose(with_remat, without, atol=1e-6)
    # A document has no gradient from another one.
    assert not found[0][0][0][0, 5:].any()


X = np.ones((2, 5, FEATURES), "float32")
IDS = np.ones((2, 5), "int32")


def attend(*inputs, mechanism="softmax", **options):
    layer = kl.LinearMultiHeadAttention(2, 3, mechanism=mechanism)
    return layer(*inputs, **options)


def decode(*inputs, **options):
    block = kl.LinearTransformerDecoder(
        8, 2, mechanism="linear_transformer", cross_mechanism="softmax"
    )
    return block(*inputs, **options)


REFUSED = {
    "floats": (lambda: attend(X, X, segment_ids=X[..., 0]), "dtype float32"),
    "numbers": (lambda: attend(X, X, segment_ids=[1, 2]), "dtype float32"),
    "length": (
        lambda: attend(X, X, segment_ids=IDS[:, :4]),
        r"shape \(2, 4\), expected \(2, 5\)",
    ),
    "rank": (
        lambda: attend(X[None], X[None], segment_ids=IDS[None]),
        "an input of rank 4",
    ),
    "causal pair": (
        lambda: attend(X, X, segment_ids=(IDS, IDS), use_causal_mask=True),
        "Received: 2 of them, causal=True",
    ),
    "mechanism": (
        lambda: attend(X, X, segment_ids=IDS, mechanism="nystromformer"),
        "cannot keep the documents of a row apart",
    ),
    "other keys": (
        lambda: attend(X, X[:, :3], segment_ids=IDS),
        r"shape \(2, 5\), expected \(2, 3\).* pass a pair",
    ),
    "no encoder": (
        lambda: decode(X, encoder_segment_ids=IDS),
        "`decoder_segment_ids` and `encoder_segment_ids`, or none",
    ),
    "one of two": (
        lambda: decode(X, X, decoder_segment_ids=IDS),
        "encoder_segment_ids of None. Pass both",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_refuse(name):
    call, message = REFUSED[name]
    error = TypeError if "dtype" in message else ValueError
    with pytest.raises(error, match=message):
        call()


def test_refused_while_the_model_is_made():
    x, ids = keras.Input((None, FEATURES)), keras.Input((None,))
    with pytest.raises(TypeError, match='dtype="int32"'):
        kl.LinearSelfAttention(2, 3, mechanism="softmax")(x, segment_ids=ids)
    ids = keras.Input((None,), dtype="int32")
    with pytest.raises(ValueError, match="cannot keep the documents"):
        kl.LinearTransformerEncoder(8, 2, mechanism="xca")(x, segment_ids=ids)
    ids = keras.Input((4,), dtype="int32")
    with pytest.raises(ValueError, match="one entry for each position"):
        kl.layers.CausalConvolution()(keras.Input((3, 2)), segment_ids=ids)
