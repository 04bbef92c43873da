"""Linear-time attention for Keras 3, on TensorFlow, JAX and PyTorch."""

import importlib

from keras_linattn import config as config
from keras_linattn import convert as convert
from keras_linattn import distribution as distribution
from keras_linattn import export as export
from keras_linattn import layers as layers
from keras_linattn import mechanisms as mechanisms
from keras_linattn import models as models
from keras_linattn._version import __version__ as __version__
from keras_linattn.convert import distill as distill
from keras_linattn.convert import linearize as linearize
from keras_linattn.layers import (
    LinearMultiHeadAttention as LinearMultiHeadAttention,
)
from keras_linattn.layers import LinearSelfAttention as LinearSelfAttention
from keras_linattn.layers import (
    LinearTransformerDecoder as LinearTransformerDecoder,
)
from keras_linattn.layers import (
    LinearTransformerEncoder as LinearTransformerEncoder,
)


def __getattr__(name):
    if name == "testing":  # imported when it is used: models do without
        return importlib.import_module("keras_linattn.testing")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), "testing"})
