"""Attention that projects queries only, for blocks that share keys."""

from keras_linattn.core.shapes import AxisFolding
from keras_linattn.layers._attention_base import AttentionBase
from keras_linattn.layers._base_layer import makes_sublayers


class QueryAttention(AttentionBase):
    """Queries and an output projection; keys and values are another layer's.

    For use within a block, through `attend_to_heads`. Its mechanism is the
    object of the other layer: a state is read rightly only by the mechanism
    that wrote it.
    """

    @makes_sublayers
    def build(self, query_shape):
        self._folding = AxisFolding(3)
        self._query_dense = self._project(
            "query", 3, (self.num_heads, self.key_dim)
        )
        self._query_dense.build(query_shape)
        heads = (self.num_heads, self.value_dim)
        self._output_dense = self._project(
            "attention_output", 3, (query_shape[-1],), bound_axes=2
        )
        self._output_dense.build((*query_shape[:-1], *heads))
        self._build_mechanism(query_shape, query_shape)
