"""Recurrences by the Triton kernels of `fla-core`: torch, on CUDA.

fla is flash-linear-attention (`pip install "keras-linattn[cuda]"`). Its
kernels take half precision only: float32 would be rounded to TF32 inside them.
Its layout is `[B, T, H, D]`, its gates are logarithms, its states `[N, H, D,
V]` of N sequences.
"""

import functools

import torch

from keras_linattn.core import backends

LARGEST = 256  # features of a head that fla's kernels take
SMALLEST = 16  # Triton's products have no smaller side
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@functools.cache
def _kernels():
    """fla's functions by our names; empty if fla is not installed."""
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.gla import chunk_gla
        from fla.ops.kda import chunk_kda
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
        return {}
    return {
        "delta": chunk_gated_delta_rule,
        "vector_delta": chunk_kda,
        "decay": chunk_simple_gla,
        "vector_decay": chunk_gla,
    }


@functools.cache
def _gradients_work(name):
    """`False` if Triton miscompiles a gradient: 3.4 to 3.7.0, Hopper GPUs."""
    from fla import utils

    return (
        name in ("vector_delta", "vector_decay")
        or not utils.IS_NVIDIA_HOPPER
        or not utils.TRITON_ABOVE_3_4_0
        or utils.TRITON_ABOVE_3_7_1
    )


def _takes(name, query):
    """Whether the kernel is installed and takes such heads."""
    dim = query.shape[-1]
    return (
        backends.given_dtype() in HALF
        and SMALLEST <= dim <= LARGEST
        and name in _kernels()
    )


def _needs_gradients(tensors):
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def product(name, query, key, value, log_decay, state, starts, beta=None):
    """Computes a recurrence over T positions.

    Args:
        name: `"delta"`, `"decay"`, or `"vector_"` and one of these.
        query: tensor `[B, H, T, D]`.
        key: tensor `[B, H, T, D]`.
        value: tensor `[B, H, T, V]`.
        log_decay: tensor `[B, H, T, 1]` or `[B, H, T, D]`.
        state: tensor `[B, H, D, V]`.
        starts: bool tensor `[B, 1, T, 1]`, or `None`.
        beta: tensor `[B, H, T, 1]`, of delta rules.

    Returns:
        The output `[B, H, T, V]` and the state after it, or `NotImplemented`.
    """
    gates = {"g": log_decay} if beta is None else {"g": log_decay, "beta": beta}
    tensors = (query, key, value, *gates.values(), state)
    if not _takes(name, query):
        return NotImplemented
    if _needs_gradients(tensors) and not _gradients_work(name):
        # A decay of each feature has a kernel of its own, which is sound.
        name = f"vector_{name}"
        gates["g"] = log_decay.expand(*key.shape)
    half = HALF[backends.given_dtype()]
    heads = [x.transpose(1, 2).to(half) for x in (query, key, value)]
    gates = {n: _gate(x) for n, x in gates.items()}
    documents = None if starts is None else _Documents(starts)
    if documents is not None:
        heads = [documents.flat(x) for x in heads]
        gates = {n: documents.flat(x) for n, x in gates.items()}
        state = documents.states(state)
    output, state = _kernels()[name](
        *heads,
        **gates,
        scale=1.0,
        initial_state=state,
        output_final_state=True,
        cu_seqlens=None if documents is None else documents.bounds,
    )
    if documents is not None:
        output = output.unflatten(1, documents.shape)[0]
        state = state[documents.last]
    return output.transpose(1, 2).to(query.dtype), state


def _gate(x):
    """`[B, H, T, D]` as `[B, T, H, D]`, or `[B, T, H]` if D is 1."""
    x = x.transpose(1, 2)
    return x.squeeze(-1) if x.shape[-1] == 1 else x


class _Documents:
    """Documents of all rows as sequences of one long row.

    Args:
        starts: bool tensor `[B, 1, T, 1]`, see `core.documents.starts_of`.
    """

    def __init__(self, starts):
        first = starts[:, 0, :, 0].clone()
        first[:, 0] = True
        self.shape = first.shape
        places = first.flatten().nonzero().flatten()
        end = places.new_tensor([first.numel()])
        self.bounds = torch.cat([places, end])
        count = first.sum(1)
        self.last = count.cumsum(0) - 1  # of each row
        self.first = self.last - count + 1

    def flat(self, x):
        """`[B, T, ...]` as `[1, B T, ...]`."""
        return x.flatten(0, 1)[None]

    def states(self, state):
        """The state of each row for its first document, 0 for the rest."""
        all_of_them = state.new_zeros(len(self.bounds) - 1, *state.shape[1:])
        return all_of_them.index_copy(0, self.first, state)
