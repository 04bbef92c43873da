"""Turn the attention of trained models linear."""

from keras_linattn.convert._linearize import linearize as linearize
