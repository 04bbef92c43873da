"""Functions on `[B, H, T, D]` arrays: `keras.ops` only, no layers, no state."""
