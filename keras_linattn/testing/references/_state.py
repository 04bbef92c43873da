"""What references with a state S `[D, V]` share: a loop over positions."""

import numpy as np


def loop(query, key, value, decay, write, key_mask):
    """o_t = q_t S_t for every position; hidden ones leave S as it is.

    Args:
        query: array `[B, H, T, D]`.
        key: array `[B, H, T, D]`.
        value: array `[B, H, T, V]`.
        decay: array `[B, H, T, D or 1]`, factors of S.
        write: callable `(state, k, v, t)` that returns the state with the
            columns k `[B, H, D, 1]` and rows v `[B, H, 1, V]` written.
        key_mask: bool array `(B, T)`.
    """
    batch, heads, length, key_dim = query.shape
    state = np.zeros((batch, heads, key_dim, value.shape[3]))
    outputs = []
    for t in range(length):
        faded = decay[:, :, t, :, None] * state
        after = write(faded, key[:, :, t, :, None], value[:, :, t, None], t)
        state = np.where(key_mask[:, t, None, None, None], after, state)
        outputs.append((query[:, :, t, None] @ state)[:, :, 0])
    return np.stack(outputs, axis=2)


def add(state, k, v, t):
    return state + k * v


def delta(beta):
    """Writes what is missing to v, times beta `[B, H, T]`."""

    def write(state, k, v, t):
        held = np.swapaxes(k, -1, -2) @ state
        return state - beta[:, :, t, None, None] * k * (held - v)

    return write


def side_by_side(heads):
    """`[B, H, T, D]` to `(B, T, H D)`, what gates read without a layer."""
    batch, _, length, _ = heads.shape
    return np.swapaxes(heads, 1, 2).reshape(batch, length, -1)


def normalise(mechanism, output):
    """Rows divided by their root mean square, if the mechanism does so."""
    if not mechanism.output_norm:
        return output
    return output / np.sqrt(np.mean(output**2, axis=-1, keepdims=True) + 1e-5)


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def unit_rows(mechanism, x):
    """silu, if the mechanism has it, then rows of length 1."""
    if mechanism.activation == "silu":
        x = x * sigmoid(x)
    square = np.sum(x**2, axis=-1, keepdims=True)
    return x / np.sqrt(square + mechanism.epsilon)
