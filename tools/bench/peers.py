"""Other libraries of linear attention as cases: `peer:NAME`.

Each is its library's self-attention with its own projections and the
library's defaults, of the heads and features asked for; what differs is said
at its case. Those of torch modules run under torch only, and `tools/peers.sh`
installs them into an environment of their own; KerasHub's run everywhere.
"""

import dataclasses
import importlib
import warnings
from collections.abc import Callable

import keras
from keras import ops

PREFIX = "peer:"
INSTALL = "Make their environment: bash tools/peers.sh"
CHECKED = 256  # positions of the check before a number is reported
# How much later keys may change an output. performer-pytorch subtracts the
# maximum over all keys, later ones too, from its exponents before it adds
# 1e-4. This changes outputs by up to 2e-4.
SLIGHT = 1e-3
_PEERS = {}


@dataclasses.dataclass(frozen=True)
class Peer:
    """A layer of another library.

    Args:
        make: callable `(Shape) -> torch.nn.Module`, or `-> keras.Layer`.
        causal: bool, whether it may not look ahead.
        largest: as in `cases.Case`.
        keras: bool, whether `make` returns a Keras layer.
    """

    make: Callable
    causal: bool
    largest: Callable | None
    keras: bool


def peer(name, causal=False, largest=None, keras=False):
    """Registers the decorated function as `peer:NAME`; see `Peer`."""

    def register(make):
        _PEERS[PREFIX + name] = Peer(make, causal, largest, keras)
        return make

    return register


def names():
    return tuple(_PEERS)


def options(name):
    """What `cases.Case` needs: how to make the layer, and `largest`."""
    found = _PEERS[name]
    return {
        "make": lambda shape: layer(found, shape),
        "largest": found.largest,
    }


def layer(found, shape):
    """A Keras layer of a peer; raises a `ValueError` where it cannot be."""
    if found.keras:
        return found.make(shape)
    if keras.backend.backend() != "torch":
        raise ValueError(
            "The peers are torch modules. Received: backend "
            f"{keras.backend.backend()!r}. Run them with --backend torch."
        )
    dtype = getattr(library("torch"), keras.config.dtype_policy().compute_dtype)
    return keras.layers.TorchModuleWrapper(found.make(shape).to(dtype))


def library(name):
    """The module of that name, or an error that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{error}. {INSTALL}") from error


def failures(name, make_shape):
    """What is wrong with a peer, before any time of it is reported.

    Args:
        name: str, `peer:NAME`.
        make_shape: callable, length to `cases.Shape`.
    """
    peer = _PEERS[name]
    shape = make_shape(CHECKED)
    keras.utils.set_random_seed(0)  # or a slight fault is found now and then
    attention = layer(peer, shape)
    if not peer.keras:
        # In evaluation: some draw random features anew at each training call.
        attention.module.eval()
    x = keras.random.normal(shape.input, seed=1)
    half = CHECKED // 2
    other = ops.concatenate([x[:, :half], -x[:, half:]], axis=1)
    y, changed = attention(x), attention(other)
    found = []
    if tuple(y.shape) != shape.input:
        found.append(f"{name}: output of shape {tuple(y.shape)}")
    moved = float(ops.max(ops.abs(y[:, :half] - changed[:, :half])))
    if peer.causal and moved > SLIGHT:
        found.append(f"{name}: the future moves the past by {moved:.1e}")
    return found


class KerasHubLayer(keras.layers.Layer):
    """A layer of KerasHub, of which the first output is used."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def build(self, input_shape):
        self.layer.build(input_shape)

    def call(self, x):
        return keras.tree.flatten(self.layer(x))[0]


@peer("keras_hub_gated_delta", causal=True, keras=True)
def keras_hub_gated_delta(shape):
    """Qwen 3.5's: also short convolutions and an output gate."""
    module = "keras_hub.src.models.qwen3_5.qwen3_5_gated_delta_net"
    return KerasHubLayer(
        library(module).Qwen3_5GatedDeltaNet(
            shape.dim, shape.heads, shape.heads, shape.key_dim, shape.key_dim
        )
    )


@peer("keras_hub_rwkv7", causal=True, keras=True)
def keras_hub_rwkv7(shape):
    """RWKV-7's time mixing, without the CUDA kernels of `rwkv_ops`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that they are missing
        layer = library("keras_hub.src.models.rwkv7.rwkv7_layer")
        return KerasHubLayer(layer.RWKV7TimeMix(shape.dim, shape.key_dim))


def _summaries(shape, step):
    # K^T V of each position and its running sum, and their gradients.
    count = shape.batch * shape.heads * shape.length
    return (6 if step else 3) * 4 * count * shape.key_dim**2


def _fast_transformers(shape, causal):
    """`AttentionLayer` around (Causal)LinearAttention, features elu + 1.

    Its masks are made once, beforehand.
    """
    attention = library("fast_transformers.attention")
    masking = library("fast_transformers.masking")
    torch = library("torch")
    kind = "CausalLinearAttention" if causal else "LinearAttention"
    mask = masking.TriangularCausalMask if causal else masking.FullMask

    class SelfAttention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = attention.AttentionLayer(
                getattr(attention, kind)(shape.dim), shape.dim, shape.heads
            )
            self.masks = {}

        def forward(self, x):
            length = x.shape[1]
            if length not in self.masks:
                lengths = torch.full((x.shape[0],), length)
                padding = masking.LengthMask(lengths)
                self.masks[length] = mask(length), padding
            visible, padding = self.masks[length]
            return self.layer(x, x, x, visible, padding, padding)

    return SelfAttention()


@peer("fast_transformers")
def fast_transformers(shape):
    return _fast_transformers(shape, causal=False)


@peer("fast_transformers_causal", causal=True)
def fast_transformers_causal(shape):
    return _fast_transformers(shape, causal=True)


def _linear_attention_transformer(shape, causal):
    package = "linear_attention_transformer.linear_attention_transformer"
    return library(package).SelfAttention(shape.dim, shape.heads, causal=causal)


@peer("linear_attention_transformer")
def linear_attention_transformer(shape):
    return _linear_attention_transformer(shape, causal=False)


@peer("linear_attention_transformer_causal", causal=True, largest=_summaries)
def linear_attention_transformer_causal(shape):
    """With `blindspot_size=1`: larger ones hide near positions."""
    return _linear_attention_transformer(shape, causal=True)


def _performer(shape, causal):
    return library("performer_pytorch").SelfAttention(
        shape.dim, causal, shape.heads, dim_head=shape.key_dim
    )


@peer("performer")
def performer(shape):
    return _performer(shape, causal=False)


@peer("performer_causal", causal=True)
def performer_causal(shape):
    """Without CUDA, it takes its form "for reader's reference"."""
    return _performer(shape, causal=True)


@peer("nystrom_attention")
def nystrom_attention(shape):
    return library("nystrom_attention").NystromAttention(
        shape.dim, shape.key_dim, shape.heads
    )


@peer("linformer")
def linformer(shape):
    """Keys and values projected to k = 256 positions."""
    return library("linformer").LinformerSelfAttention(
        shape.dim, shape.length, k=256, heads=shape.heads
    )


def _fla(shape, kernel, decays):
    """One of flash-linear-attention's kernels between projections like ours.

    It needs CUDA.

    Args:
        shape: `cases.Shape`.
        kernel: str, module and function below `fla.ops`.
        decays: callable, the decays of a head to the argument `g`.
    """
    torch = library("torch")
    module, function = kernel.split(":")
    rule = getattr(library(f"fla.ops.{module}"), function)

    class SelfAttention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            linear, dim = torch.nn.Linear, shape.dim
            self.projections = torch.nn.ModuleList(
                linear(dim, dim) for _ in range(3)
            )
            self.gates = torch.nn.ModuleList(
                linear(dim, shape.heads) for _ in range(2)
            )
            self.output = linear(dim, dim)

        def forward(self, x):
            heads = (shape.heads, shape.key_dim)
            query, key, value = (
                project(x).unflatten(-1, heads) for project in self.projections
            )
            step, decay = (gate(x) for gate in self.gates)
            attended, _ = rule(
                query,
                key,
                value,
                g=decays(torch.nn.functional.logsigmoid(decay.float())),
                beta=step.sigmoid(),
                scale=1.0,
                use_qk_l2norm_in_kernel=True,
            )
            attended = torch.nn.functional.rms_norm(
                attended, (shape.key_dim,), eps=1e-5
            )
            return self.output(attended.flatten(-2))

    return SelfAttention()


@peer("fla_gated_delta", causal=True)
def fla_gated_delta(shape):
    return _fla(shape, "gated_delta_rule:chunk_gated_delta_rule", lambda g: g)


@peer("fla_kda", causal=True)
def fla_kda(shape):
    """The same decays, by the kernel that has one for each feature."""
    return _fla(
        shape,
        "kda:chunk_kda",
        lambda g: g[..., None].expand(*g.shape, shape.key_dim),
    )
