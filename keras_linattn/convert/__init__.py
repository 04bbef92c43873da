"""Turn the attention of trained models linear."""

from keras_linattn.convert._distill import distill as distill
from keras_linattn.convert._hub import register_names as _register_names
from keras_linattn.convert._linearize import linearize as linearize
from keras_linattn.convert._transfer import attention_errors as attention_errors

_register_names()
