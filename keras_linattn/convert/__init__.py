"""Turn the attention of trained models linear."""

from keras_linattn.convert._hub import register_names as _register_names
from keras_linattn.convert._linearize import linearize as linearize
from keras_linattn.convert._report import Report as Report
from keras_linattn.convert._report import report as report

_register_names()
