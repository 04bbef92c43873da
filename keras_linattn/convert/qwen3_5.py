"""KerasHub's Qwen3.5 as a `CausalLM`: configuration and weights.

In Qwen3.5, three of every four blocks have gated delta attention. The fourth
has full attention with grouped heads, q/k norm, partial rotary positions and a
gate. This package's blocks have options for all of these. Only the layout of
the weights differs. KerasHub has:

- one kernel and one convolution for query, key and value of a gated delta
  layer; this package has one for each, with the taps in reverse order;
- one kernel for query and gate of a full attention layer;
- RMS norms that store their scale minus 1, except the norm of the gated delta
  heads.
"""

from typing import Any

from keras import ops

from keras_linattn.mechanisms import Mechanism
from keras_linattn.models import CausalLM

LINEAR, FULL = "linear_attention", "full_attention"


def from_qwen3_5(
    backbone: Any,
    full_attention: str | dict | type | Mechanism = "softmax",
    **options: Any,
) -> CausalLM:
    """Makes a `CausalLM` with the weights of a Qwen3.5 backbone of KerasHub.

    It returns the logits of `keras_hub.models.Qwen3_5CausalLM`. In addition,
    padding at either end changes nothing, sequences of any length share one
    graph, and documents can be packed (`packed=True`).

    Args:
        backbone: `keras_hub.models.Qwen3_5Backbone`, for text only. Its
            weights are copied.
        full_attention: mechanism of the full attention layers. Defaults to
            `"softmax"`. To generate or to continue from a state, pass
            `{"name": "softmax", "cache_length": N}` with the largest number N
            of tokens in a sequence, or `{"name": "local", "window": W}`, whose
            cost per token is constant. KerasHub limits these layers to a
            window (`sliding_window_size`) on some devices; Qwen3.5 does not.
        **options: further arguments of `CausalLM`, such as `tokenizer`,
            `packed`, `remat`, `dropout`, `dtype` (by default the backbone's)
            and `name`. Without a tokenizer, id 0 is padding.

    Returns:
        `CausalLM`.

    Raises:
        ValueError: if `backbone` is not a Qwen3.5 backbone for text only, or if
            `options` change the weights.

    Example:

    >>> import keras_hub
    >>> from keras_linattn.convert import from_qwen3_5
    >>> backbone = keras_hub.models.Qwen3_5Backbone(
    ...     vocabulary_size=20, num_layers=4, num_query_heads=4,
    ...     num_key_value_heads=2, head_dim=8, hidden_dim=16,
    ...     intermediate_dim=32, linear_num_key_heads=2,
    ...     linear_num_value_heads=4, linear_key_head_dim=8,
    ...     linear_value_head_dim=8)
    >>> model = from_qwen3_5(backbone)
    >>> tuple(model(np.array([[3, 1, 4, 1, 5]])).shape)
    (1, 5, 20)

    Source: keras-team/keras-hub, `models/qwen3_5`; Yang et al., 2025, arXiv
    2412.06464 (gated delta rule).
    """
    _check(backbone)
    model = CausalLM(
        **{
            "dtype": backbone.dtype_policy,
            **_architecture(backbone, full_attention),
            **options,
        }
    )
    for number, theirs in enumerate(backbone.transformer_layers):
        ours = _named(model.get_layer(f"decoder_{number}"))
        theirs = {k: x.value for k, x in _named(theirs).items()}
        _assign(ours, _block_weights(theirs, backbone))
    embedding, norm = backbone.token_embedding, backbone.layer_norm
    ours = {x.path: x for x in model.weights if "decoder_" not in x.path}
    values = {
        "embedding/embeddings": embedding.embeddings.value,
        "final_norm/scale": 1 + norm.scale.value,
    }
    if not backbone.tie_word_embeddings:
        values["logits/kernel"] = embedding.reverse_embeddings.value
    _assign(ours, values)
    return model


def _check(backbone):
    if not getattr(backbone, "text_only_model", False) or not hasattr(
        backbone, "linear_conv_kernel_dim"
    ):
        raise ValueError(
            "`backbone` must be a `keras_hub.models.Qwen3_5Backbone` without "
            f"a vision encoder. Received: backbone={backbone!r}. Pass "
            "`model.backbone` of a `Qwen3_5CausalLM`. For a model with "
            "images, make a backbone with `vision_encoder=None` and copy the "
            "weights of the text layers to it."
        )


def _architecture(backbone, full_attention):
    """Arguments of `CausalLM`."""
    linear_options = {
        "num_heads": backbone.linear_num_value_heads,
        "num_query_key_heads": backbone.linear_num_key_heads,
        "key_dim": backbone.linear_key_head_dim,
        "value_dim": backbone.linear_value_head_dim,
        "kernel_size": backbone.linear_conv_kernel_dim,
        "output_norm": True,
        "use_gate": True,
        "gate_activation": "silu",
    }
    full_options = {
        "num_heads": backbone.num_query_heads,
        "num_key_value_heads": backbone.num_key_value_heads,
        "key_dim": backbone.head_dim,
        "qk_norm": True,
        "rope_max_wavelength": backbone.rope_max_wavelength,
        "rope_scaling_factor": backbone.rope_scaling_factor,
        "partial_rotary_factor": backbone.partial_rotary_factor,
        "use_gate": True,
    }
    gated_delta = {
        "name": "gated_delta",
        "activation": None,  # the convolutions have it
        "scale": backbone.linear_key_head_dim**-0.5,
        "epsilon": 1e-6,
        "output_norm": False,  # the layer has one, with a scale
    }
    of_kind = {
        LINEAR: (gated_delta, linear_options),
        FULL: (full_attention, full_options),
    }
    blocks = [of_kind[kind] for kind in backbone.layer_types]
    return {
        "vocabulary_size": backbone.vocabulary_size,
        "hidden_dim": backbone.hidden_dim,
        "num_layers": backbone.num_layers,
        "num_heads": backbone.num_query_heads,
        "intermediate_dim": backbone.intermediate_dim,
        "mechanism": [mechanism for mechanism, _ in blocks],
        "attention_options": [options for _, options in blocks],
        "kernel_size": None,
        "normalization": "rms",
        "layer_norm_epsilon": backbone.layer_norm_epsilon,
        "use_bias": False,
        "activation": "silu",
        "use_feedforward_gate": True,
        "tie_embeddings": backbone.tie_word_embeddings,
    }


def _named(block):
    """The variables of a block by their paths in it.

    A mechanism is called `mechanism` here, because Keras numbers its name.
    """
    named = {}
    for weight in block.weights:
        path = weight.path.split(f"{block.name}/", 1)[-1]
        if hasattr(block, "mechanism"):
            path = path.replace(f"/{block.mechanism.name}/", "/mechanism/")
        named[path] = weight
    return named


def _assign(ours, values):
    """Assigns each variable its value, reshaped if its heads are joined."""
    if set(ours) != set(values):
        raise ValueError(
            "The weights of the model must be those of KerasHub's. Received: "
            f"{sorted(set(ours) ^ set(values))} in one of them only. Leave the "
            "arguments that change the blocks out of `options`."
        )
    for name, weight in ours.items():
        # A copy: a training step under JAX donates the arrays of variables.
        weight.assign(ops.copy(ops.reshape(values[name], weight.shape)))


def _block_weights(theirs, backbone):
    """The values of a block's weights by their paths, from KerasHub's."""
    is_linear = any(name.startswith("linear_attn/") for name in theirs)
    attention = _gated_delta(theirs, backbone) if is_linear else _full(theirs)
    dense = {
        f"feedforward_{name}/kernel": theirs[f"feedforward_{name}/kernel"]
        for name in ("gate_dense", "intermediate_dense", "output_dense")
    }
    return {
        **{f"self_attention/{name}": x for name, x in attention.items()},
        **dense,
        "self_attention_layer_norm/scale": 1 + theirs["input_layernorm/scale"],
        "feedforward_layer_norm/scale": 1
        + theirs["post_attention_layernorm/scale"],
    }


def _gated_delta(theirs, backbone):
    theirs = {k.removeprefix("linear_attn/"): x for k, x in theirs.items()}
    size = backbone.linear_num_key_heads * backbone.linear_key_head_dim
    ends = [size, 2 * size]  # of query and key
    roles = ("query", "key", "value")
    kernels = ops.split(theirs["in_proj_qkv/kernel"], ends, axis=1)
    taps = ops.split(theirs["conv1d_kernel"], ends, axis=0)
    # Their last tap is for the current position; ours is the first.
    taps = [ops.flip(ops.transpose(x), axis=0) for x in taps]
    return {
        **{f"{role}/kernel": x for role, x in zip(roles, kernels)},
        **{
            f"{role}_heads/convolution/kernel": x
            for role, x in zip(roles, taps)
        },
        "gate/kernel": theirs["in_proj_z/kernel"],
        "attention_output/kernel": theirs["out_proj/kernel"],
        "output_norm/scale": theirs["norm/scale"],
        "mechanism/beta_kernel": theirs["in_proj_b/kernel"],
        "mechanism/beta_bias": ops.zeros_like(theirs["dt_bias"]),
        "mechanism/decay_kernel": theirs["in_proj_a/kernel"],
        "mechanism/decay_bias": theirs["dt_bias"],
        "mechanism/log_rate": theirs["A_log"],
    }


def _full(theirs):
    theirs = {k.removeprefix("self_attention/"): x for k, x in theirs.items()}
    query, gate = ops.split(theirs["query/kernel"], 2, axis=-1)
    return {
        "query/kernel": query,
        "gate/kernel": gate,
        "key/kernel": theirs["key/kernel"],
        "value/kernel": theirs["value/kernel"],
        "attention_output/kernel": theirs["attention_output/kernel"],
        "query_heads/norm/scale": 1 + theirs["query_norm/scale"],
        "key_heads/norm/scale": 1 + theirs["key_norm/scale"],
    }
