"""Linear-time attention for Keras 3, on TensorFlow, JAX and PyTorch."""

import importlib

from keras_linattn import config as config
from keras_linattn import distribution as distribution
from keras_linattn import export as export
from keras_linattn import layers as layers
from keras_linattn import mechanisms as mechanisms
from keras_linattn import models as models
from keras_linattn._version import __version__ as __version__
from keras_linattn.layers import CausalConvolution as CausalConvolution
from keras_linattn.layers import LinearAttentionCell as LinearAttentionCell
from keras_linattn.layers import (
    LinearMultiHeadAttention as LinearMultiHeadAttention,
)
from keras_linattn.layers import LinearSelfAttention as LinearSelfAttention
from keras_linattn.layers import (
    LinearTransformerDecoder as LinearTransformerDecoder,
)
from keras_linattn.layers import (
    LinearTransformerDecoderGroup as LinearTransformerDecoderGroup,
)
from keras_linattn.layers import (
    LinearTransformerEncoder as LinearTransformerEncoder,
)
from keras_linattn.layers import MaskedAveragePooling as MaskedAveragePooling
from keras_linattn.layers import NGramEmbedding as NGramEmbedding
from keras_linattn.layers import PatchEmbedding as PatchEmbedding
from keras_linattn.layers import StridedConvolution as StridedConvolution
from keras_linattn.layers import TokenExtension as TokenExtension
from keras_linattn.layers import TokenMerging as TokenMerging
from keras_linattn.layers import WaveformMasking as WaveformMasking
from keras_linattn.mechanisms import Mechanism as Mechanism
from keras_linattn.mechanisms import Traits as Traits


def __getattr__(name):
    if name == "testing":  # imported when it is used: models do without
        return importlib.import_module("keras_linattn.testing")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), "testing"})
