"""Attention layers, and the cell of a `keras.layers.RNN`."""
