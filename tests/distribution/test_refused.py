"""What devices cannot split is refused; the checks need no device."""

import keras
import numpy as np
import pytest
from helpers import random
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.core.devices import Split
from keras_linattn.mechanisms._devices import attend_on_devices

pytestmark = pytest.mark.once
IDS = np.ones((2, 8), "int32")


class WithoutDocuments(mechanisms.LinearTransformer):
    """From before packed rows could be split."""

    def attend_pieces(self, pieces, query, key, value, *, key_mask, causal):
        return value


def attend(mechanism, length=8, **options):
    places = [f"cpu:{i}" for i in range(4)]
    mesh = keras.distribution.DeviceMesh(
        (1, 4), ("batch", "sequence"), devices=places
    )
    heads = [ops.convert_to_tensor(random(2, 2, length, 4))] * 3
    split = Split(mesh, "batch", length="sequence")
    attend_on_devices(mechanisms.get(mechanism), heads, split, **options)


@pytest.mark.parametrize(
    "mechanism, options, message",
    [
        ("xca", {}, "`XCA` cannot attend to a sequence whose length is split"),
        ("linear_transformer", {"length": 6}, r"lengths \[6, 6, 6\], 4 dev"),
        (
            "linear_transformer",
            {"segment_ids": (IDS, IDS)},
            "Received: a pair of `segment_ids`. Give each document a row",
        ),
        (
            WithoutDocuments(),
            {"segment_ids": IDS},
            "`attend_pieces` has no argument `documents`",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(mechanism, options, message):
    with pytest.raises(ValueError, match=message):
        attend(mechanism, **options)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX splits it")
def test_another_backend_is_refused():
    with pytest.raises(NotImplementedError, match="under JAX only"):
        attend("linear_transformer")
