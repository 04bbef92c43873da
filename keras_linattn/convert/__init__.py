"""Converts trained models to linear attention, and loads other packages'."""

from keras_linattn.convert._distill import distill as distill
from keras_linattn.convert._hub import register_names as _register_names
from keras_linattn.convert._linearize import linearize as linearize
from keras_linattn.convert._report import Report as Report
from keras_linattn.convert._report import report as report
from keras_linattn.convert._transfer import attention_errors as attention_errors
from keras_linattn.convert.qwen3_5 import from_qwen3_5 as from_qwen3_5

_register_names()
