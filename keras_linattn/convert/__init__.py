"""Trained models of other packages as models of this one."""

from keras_linattn.convert.qwen3_5 import from_qwen3_5 as from_qwen3_5
