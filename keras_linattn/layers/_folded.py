"""When and how a layer folds its attention into its projections.

See `core/folded.py`: the same output in fewer operations, for long sequences
whose length is known while the graph is made.
"""

from keras import ops

from keras_linattn.core.folded import folded_attention
from keras_linattn.core.folded import folding_pays
from keras_linattn.core.lengths import is_empty
from keras_linattn.core.masks import hide
from keras_linattn.core.numerics import EXACT
from keras_linattn.layers._projection import project


def folds(layer, query, key, value, training):
    """Can this bidirectional call be folded, and does it pay?

    Args:
        layer: built `AttentionBase`.
        query: tensor `(B, T, F)`.
        key: tensor `(B, S, F)`.
        value: tensor `(B, S, F)`.
        training: bool or `None`.
    """
    plain = (
        offers_factors(layer.mechanism)
        and len(query.shape) == 3
        and layer.compute_dtype == layer.mechanism.compute_dtype
        and layer.compute_dtype in EXACT
        and not layer.use_gate
        and (layer.dropout == 0 or training is None or training is False)
        and layer._activity_regularizer is None
        and all(
            dense.quantization_mode is None
            for dense in (layer.value_dense, layer.output_dense)
        )
    )
    return plain and _long_enough(layer, query.shape, key.shape, value.shape)


def offers_factors(mechanism):
    """Does its very class say how its output factors?

    An inherited `factors` may not be that of an `attend` that a subclass
    writes: such a class loses the speed, and nothing else.
    """
    return mechanism.traits.separable and "factors" in vars(type(mechanism))


def _long_enough(layer, query, key, value):
    if is_empty(query, key, value):
        return False  # the mechanism's call knows what to do
    lengths = (query[1], key[1], value[1])
    # A length that JAX exports is a symbol, which cannot be compared.
    if not all(isinstance(length, int) for length in lengths):
        return False
    batches = {n for n in (query[0], key[0], value[0]) if isinstance(n, int)}
    if lengths[1] != lengths[2] or len(batches) > 1:
        return False  # these are faults, which the usual path finds
    heads = (layer.key_dim, layer.value_dim)
    outputs = layer.output_dense.kernel.shape[2:]
    return len(outputs) == 1 and folding_pays(
        (*lengths[:2], value[-1], *heads, outputs[0])
    )


def attend_folded(layer, query, key, value, query_mask, key_mask):
    """The layer's output `(B, T, O)`, of inputs that are 0 where masked."""
    factors = layer.mechanism.factors(
        project(layer.query_dense, query),
        hide(project(layer.key_dense, key), key_mask, axis=1),
        key_mask,
    )
    weights = hide(factors.query, query_mask, axis=1)
    projections = (layer.value_dense, layer.output_dense)
    # The projections cast what they are called with; this one is not called.
    return folded_attention(
        factors._replace(query=weights),
        ops.cast(value, layer.compute_dtype),
        *((dense.kernel, dense.bias) for dense in projections),
    )
