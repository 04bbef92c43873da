"""Nothing is made on another device than the inputs', and nothing waits for it.

Under torch only: its device `meta` holds no numbers, so that a tensor on the
CPU among the others, or a number that is read back, raises an error, as the
one does on a GPU and the other takes time there.
"""

import keras
import pytest
from keras import ops

import keras_linattn
from keras_linattn import mechanisms
from keras_linattn import models

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="torch's own device"
)


@pytest.fixture(autouse=True)
def elsewhere():
    with keras.device("meta"):
        yield


def attend(name, causal, **options):
    heads = ops.ones((2, 2, 9, 4))
    output = mechanisms.get(name)(heads, heads, heads, causal=causal, **options)
    assert output.device.type == "meta"


@pytest.mark.parametrize("name", mechanisms.available())
def test_mechanisms_stay_on_the_device(name):
    traits = mechanisms.get(name).traits
    mask = ops.ones((2, 9), "bool")
    for causal in (True, False):
        if not (traits.causal if causal else traits.bidirectional):
            continue
        attend(name, causal)
        attend(name, causal, key_mask=mask, query_mask=mask)
        # `cosformer` reads how long the documents are: it has a longest one.
        if traits.packs and name != "cosformer":
            attend(name, causal, segment_ids=ops.ones((2, 9), "int32"))


@pytest.mark.parametrize("name", mechanisms.available())
def test_states_stay_on_the_device(name):
    mechanism = mechanisms.get(name)
    if not mechanism.traits.recurrent:
        return
    layer = keras_linattn.LinearSelfAttention(
        2, 4, mechanism=mechanism, causal=True
    )
    x = ops.ones((2, 9, 8))
    layer.build(x.shape)
    output, state = layer(
        x, initial_state=layer.get_initial_state(2), return_state=True
    )
    devices = {t.device.type for t in keras.tree.flatten([output, state])}
    assert devices == {"meta"}


def test_models_stay_on_the_device():
    tokens = ops.ones((2, 9), "int32")
    text = models.TextClassifier(3, 100, hidden_dim=16)
    assert text(tokens).device.type == "meta"
    language = models.CausalLM(
        100, hidden_dim=16, mechanism=["gated_delta", "softmax"]
    )
    assert language(tokens).device.type == "meta"
    image = models.VisionTransformer(3, image_shape=(32, 32, 3), hidden_dim=16)
    assert image(ops.ones((2, 32, 32, 3))).device.type == "meta"
