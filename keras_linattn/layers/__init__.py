"""Keras layers: projections, masks, dropout and config around a mechanism."""

from keras_linattn.layers.attention.linear_attention_cell import (
    LinearAttentionCell as LinearAttentionCell,
)
from keras_linattn.layers.attention.linear_multi_head_attention import (
    LinearMultiHeadAttention as LinearMultiHeadAttention,
)
from keras_linattn.layers.attention.linear_self_attention import (
    LinearSelfAttention as LinearSelfAttention,
)
from keras_linattn.layers.blocks.linear_transformer_decoder import (
    LinearTransformerDecoder as LinearTransformerDecoder,
)
from keras_linattn.layers.blocks.linear_transformer_decoder_group import (
    LinearTransformerDecoderGroup as LinearTransformerDecoderGroup,
)
from keras_linattn.layers.blocks.linear_transformer_encoder import (
    LinearTransformerEncoder as LinearTransformerEncoder,
)
from keras_linattn.layers.stems.causal_convolution import (
    CausalConvolution as CausalConvolution,
)
from keras_linattn.layers.stems.masked_average_pooling import (
    MaskedAveragePooling as MaskedAveragePooling,
)
from keras_linattn.layers.stems.ngram_embedding import (
    NGramEmbedding as NGramEmbedding,
)
from keras_linattn.layers.stems.patch_embedding import (
    PatchEmbedding as PatchEmbedding,
)
from keras_linattn.layers.stems.strided_convolution import (
    StridedConvolution as StridedConvolution,
)
from keras_linattn.layers.stems.token_extension import (
    TokenExtension as TokenExtension,
)
from keras_linattn.layers.stems.token_merging import (
    TokenMerging as TokenMerging,
)
from keras_linattn.layers.stems.waveform_masking import (
    WaveformMasking as WaveformMasking,
)
