"""Splits models over several devices with `keras.distribution`."""

from keras_linattn.distribution.layouts import layout_map as layout_map
from keras_linattn.distribution.sequence_parallel import (
    SequenceParallel as SequenceParallel,
)
