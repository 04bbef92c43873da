"""Attention in parts: keys and values are projected once and read later.

Two blocks may read the same keys, values and state with queries of their own,
and the summary of an encoder's output is made once for all steps of decoding.
The layers here are built `LinearMultiHeadAttention`s, without a gate of the
output, on inputs `(B, T, F)`; a `QueryAttention` where only queries are made.
"""

from keras import ops

from keras_linattn.core.masks import combine_masks
from keras_linattn.core.masks import hide
from keras_linattn.core.masks import key_mask_from_attention_mask
from keras_linattn.core.shapes import heads_first
from keras_linattn.core.shapes import heads_last
from keras_linattn.layers._projection import project


def project_heads(layer, value, value_mask=None, attention_mask=None):
    """All that a query needs to know of the positions of `value`.

    Args:
        layer: the attention layer with the projections.
        value: tensor `(B, S, F)`.
        value_mask: optional bool tensor `(B, S)`, `True` = visible.
        attention_mask: optional tensor `(B, S)` or `(B, 1, S)`.

    Returns:
        Dict of the heads `key` and `value`, and of `key_mask` and `inputs`
        where there are any.
    """
    if attention_mask is not None:
        attention_mask = key_mask_from_attention_mask(attention_mask)
    mask = combine_masks(value_mask, attention_mask)
    value = hide(value, mask)
    heads = {
        "key": heads_first(project(layer.key_dense, value)),
        "value": heads_first(project(layer.value_dense, value)),
        "key_mask": mask,
    }
    if layer.mechanism.traits.gated:
        heads["inputs"] = value
    return heads


def attend_to_heads(
    layer, query, heads, query_mask=None, state=None, training=None
):
    """Causal attention of `query` to heads that need not be the layer's own.

    Args:
        layer: the attention layer with the queries and the output.
        query: tensor `(B, T, F)`.
        heads: dict from `project_heads`, of T positions.
        query_mask: optional bool tensor `(B, T)`.
        state: optional tree of tensors, the state before them.
        training: optional bool, whether dropout is active.

    Returns:
        Tensor `(B, T, F)`, and the state after the positions, `None` if there
        was none before.
    """
    query = heads_first(project(layer.query_dense, query))
    if state is None:
        attended = layer.mechanism(
            query,
            **heads,
            query_mask=query_mask,
            causal=True,
            training=training,
        )
    else:
        attended, state = layer.mechanism.step(state, query, **heads)
    attended = hide(attended, query_mask)
    return _output(layer, attended, training), state


def attend_to_summary(layer, query, summary, value, training=None, **masks):
    """Attention to a summary, which is made first if there is a `value`.

    Args:
        layer: the attention layer.
        query: tensor `(B, T, F)`.
        summary: tree of tensors, a state of the layer's mechanism.
        value: tensor `(B, S, E)` to sum up anew, or `None`.
        training: optional bool, whether dropout is active.
        **masks: `value_mask` and `attention_mask` of `value`.

    Returns:
        Tensor `(B, T, F)`, and the summary.
    """
    if value is not None:
        summary = layer.get_initial_state(ops.shape(value)[0])
        heads = project_heads(layer, value, **masks)
        # Any queries do: what they read is not used.
        _, summary = layer.mechanism.step(summary, heads["key"], **heads)
    return _read(layer, summary, query, training), summary


def _read(layer, state, query, training):
    query = heads_first(project(layer.query_dense, query))
    # Reading is a step whose new keys are all hidden.
    value = ops.zeros_like(query[..., :1])
    attended, _ = layer.mechanism.step(
        state,
        query,
        key=ops.zeros_like(query),
        value=ops.repeat(value, layer.value_dim, axis=-1),
        key_mask=ops.zeros_like(query[:, 0, :, 0], dtype="bool"),
    )
    return _output(layer, attended, training)


def _output(layer, attended, training):
    attended = layer._dropout_layer(attended, training=training)
    return project(layer.output_dense, heads_last(attended))
