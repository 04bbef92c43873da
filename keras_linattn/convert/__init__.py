"""Turn the attention of trained models linear."""

from keras_linattn.convert._hub import register_names as _register_names
from keras_linattn.convert._linearize import linearize as linearize

_register_names()
