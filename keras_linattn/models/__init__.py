"""Keras models built from the layers."""

from keras_linattn.models.audio_classifier import (
    AudioClassifier as AudioClassifier,
)
from keras_linattn.models.causal_lm import CausalLM as CausalLM
from keras_linattn.models.decoding import bucket_length as bucket_length
from keras_linattn.models.packing import (
    next_token_targets as next_token_targets,
)
from keras_linattn.models.quantile_loss import QuantileLoss as QuantileLoss
from keras_linattn.models.text_classifier import (
    TextClassifier as TextClassifier,
)
from keras_linattn.models.time_series_forecaster import (
    TimeSeriesForecaster as TimeSeriesForecaster,
)
from keras_linattn.models.vision_transformer import (
    VisionTransformer as VisionTransformer,
)
