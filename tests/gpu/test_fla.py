"""fla's kernels give what the portable forms give.

Where there is no GPU, the same calls go to slow functions with fla's arguments
and layouts, so that ours are tested here, too.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_linattn import config
from keras_linattn import mechanisms
from keras_linattn.core import backends

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="fla is for torch"
)

HEADS, LENGTH, DIM = 2, 150, 32
SEGMENTS = [[1] * 70 + [2] * 1 + [3] * 60 + [0] * 19, [1] * 64 + [2] * 86]
NAMES = ("delta_rule", "gated_delta", "gated_linear", "kda", "mamba2")


def one_sequence(q, k, v, g, beta, state):
    """Outputs `[T, H, V]` of heads `[T, H, D]`, position by position."""
    outputs = []
    for t in range(len(q)):
        decay = g[t][..., None] if g.ndim == 3 else g[t][:, None, None]
        state = state * decay.exp()
        new = v[t]
        if beta is not None:
            held = (k[t][..., None] * state).sum(1)
            new = beta[t][:, None] * (new - held)
        state = state + k[t][..., None] * new[:, None]
        outputs.append((q[t][..., None] * state).sum(1))
    return torch.stack(outputs), state


def slow_kernel(
    q,
    k,
    v,
    g,
    beta=None,
    *,
    scale,
    initial_state,
    output_final_state,
    cu_seqlens,
):
    """A function of fla's kind, by its documented arguments."""
    assert scale == 1 and output_final_state
    assert len({x.dtype for x in (q, k, v)}) == 1
    inputs = [q, k, v, g] + ([] if beta is None else [beta])
    if cu_seqlens is None:
        rows = list(zip(*inputs, strict=True))
    else:
        assert len(q) == 1
        sizes = cu_seqlens.diff().tolist()
        rows = list(zip(*(x[0].split(sizes) for x in inputs), strict=True))
    assert len(rows) == len(initial_state)
    outputs, states = [], []
    for row, state in zip(rows, initial_state, strict=True):
        gates = (*row[3:], None)[:2]
        output, state = one_sequence(*row[:3], *gates, state)
        outputs.append(output)
        states.append(state)
    joined = torch.stack if cu_seqlens is None else torch.cat
    output = joined(outputs)
    return output if cu_seqlens is None else output[None], torch.stack(states)


@pytest.fixture
def taken(monkeypatch):
    """Names of the kernels that ran."""
    from keras_linattn.core.backends import _fla

    names = []
    if not torch.cuda.is_available():
        kernels = ("delta", "vector_delta", "decay", "vector_decay")
        monkeypatch.setattr(_fla, "_takes", lambda *_: True)
        monkeypatch.setattr(_fla, "_gradients_work", lambda _: True)
        monkeypatch.setattr(
            backends.current(),
            "_by_fla",
            lambda *arguments: _fla.product(*arguments),
        )
        monkeypatch.setattr(_fla, "HALF", {"float32": torch.float32})
        monkeypatch.setattr(
            _fla, "_kernels", lambda: dict.fromkeys(kernels, slow_kernel)
        )
    elif not _fla._kernels():
        pytest.skip("fla-core is not installed")
    product = _fla.product

    def recorded(name, *args):
        result = product(name, *args)
        if result is not NotImplemented:
            names.append(name)
        return result

    monkeypatch.setattr(_fla, "product", recorded)
    return names


def policy():
    return "bfloat16" if torch.cuda.is_available() else "float32"


def mechanism_and_inputs(name):
    keras.utils.set_random_seed(1)
    mechanism = mechanisms.get(name)
    mechanism = type(mechanism)(dtype=policy())
    rng = np.random.default_rng(1)
    heads = [
        ops.cast(rng.standard_normal((2, HEADS, LENGTH, DIM)), policy())
        for _ in range(3)
    ]
    mechanism.build(*(x.shape for x in heads))
    for weight in mechanism.weights:
        weight.assign(weight + 0.3 * rng.standard_normal(weight.shape))
    state = mechanism.initial_state(2, HEADS, DIM, DIM)
    state = ops.cast(0.3 * rng.standard_normal(state.shape), "float32")
    return mechanism, heads, state


def results(mechanism, heads, state, segments):
    """Output, next state, and gradients of heads and state."""
    tensors = [x.detach().requires_grad_() for x in (*heads, state)]
    *heads, state = tensors
    output, after = mechanism.step(state, *heads, segment_ids=segments)
    # Not the sum of squares: of rows that are normalised it is a constant.
    weights = torch.linspace(-1, 1, output.numel(), device=output.device)
    loss = (output.float().flatten() * weights).sum() + (after**2).sum()
    return [output, after, *torch.autograd.grad(loss, tensors)]


def compare(found, wanted):
    tolerance = 3e-2 if torch.cuda.is_available() else 2e-4
    for one, other in zip(found, wanted, strict=True):
        one, other = one.detach().float(), other.detach().float()
        largest = max(other.abs().max().item(), 1e-3)
        assert (one - other).abs().max().item() <= tolerance * largest


def without_kernels(*args):
    config.set_fast_forms(False)
    try:
        return results(*args)
    finally:
        config.set_fast_forms(True)


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "documents"])
@pytest.mark.parametrize("name", (*NAMES, "retention"))
def test_kernels_equal_the_portable_form(name, packed, taken):
    mechanism, heads, state = mechanism_and_inputs(name)
    segments = ops.convert_to_tensor(SEGMENTS, "int32") if packed else None
    with torch.no_grad():
        found = mechanism.step(state, *heads, segment_ids=segments)
    assert len(taken) == 1
    wanted = without_kernels(mechanism, heads, state, segments)
    compare(found, wanted[:2])
    compare(results(mechanism, heads, state, segments), wanted)


def test_gradients_take_a_kernel_that_is_compiled_rightly(taken, monkeypatch):
    from keras_linattn.core.backends import _fla

    monkeypatch.setattr(_fla, "_gradients_work", lambda name: "vector" in name)
    kernels = _fla._kernels()
    used = []

    def recorded(name):
        def kernel(*args, **kwargs):
            used.append(name)
            return kernels[name](*args, **kwargs)

        return kernel

    by_name = {name: recorded(name) for name in kernels}
    monkeypatch.setattr(_fla, "_kernels", lambda: by_name)
    for name in ("gated_delta", "retention"):
        mechanism, heads, state = mechanism_and_inputs(name)
        wanted = without_kernels(mechanism, heads, state, None)
        compare(results(mechanism, heads, state, None), wanted)
    assert used == ["vector_delta", "vector_decay"]


def test_float32_stays_exact(taken):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    mechanism = mechanisms.get("gated_delta")
    heads = ops.ones((1, 1, LENGTH, DIM))
    mechanism(heads, heads, heads, causal=True)
    assert not taken and backends.given_dtype() is None
