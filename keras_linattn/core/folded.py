"""Attention that is folded into its layer's value and output projections.

Where an output is a_t sum_s b_s^T v_s with the weights a [T, D] and b [S, D] of
a head, and v = x W + c, the sum over the positions is

    sum_s b_s^T v_s = (sum_s b_s^T x_s) W + (sum_s b_s)^T c,

and a_t meets the output projection only after that sum has. So neither the
values nor the heads' outputs are formed: two products of the size of the value
and the output projection do their work and the attention's.
"""

from typing import Any
from typing import NamedTuple

from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.products import product_plus


class Factors(NamedTuple):
    """Weights `a` and `b` of out_t = a_t . scale * sum_s b_s^T v_s.

    Heads last, as they are projected: no axes change places.

    Args:
        query: tensor `[B, T, H, D]`, a.
        key: tensor `[B, S, H, D]`, b, 0 where masked.
        scale: tensor `[B, H, D]` of the sums over the positions, or `None`.
        total: tensor `[B, H, D]`, scale * sum_s b_s.
    """

    query: Any
    key: Any
    scale: Any
    total: Any


def folding_pays(sizes):
    """Are there fewer multiplications than in attention beside projections?

    Args:
        sizes: ints `(T, S, F, D, V, O)`, O features of the output; each head
            of each sequence takes the same.
    """
    t, s, f, d, v, o = sizes
    folded = s * f * d + d * f * v + d * v * o + t * d * o
    beside = s * f * v + s * d * v + t * d * v + t * v * o
    return folded <= beside


def folded_attention(factors, inputs, value, output):
    """The layer's output.

    Args:
        factors: `Factors`.
        inputs: tensor `[B, S, F]`, what values are projected from; finite.
        value: pair of kernel `[F, H, V]` and bias `[H, V]` or `None`.
        output: pair of kernel `[H, V, O]` and bias `[O]` or `None`.

    Returns:
        Tensor `[B, T, O]`.
    """
    kernel, bias = value
    output_kernel, output_bias = output
    heads, dim = factors.key.shape[2:]
    batch, length, features = ops.shape(inputs)
    summed = sum_over_positions(join_heads(factors.key), inputs)
    summed = ops.reshape(summed, (batch, heads, dim, features))
    summary = ops.einsum("bhdf,fhv->bhdv", summed, kernel)
    if factors.scale is not None:  # here, since `summed` has more entries
        summary = summary * ops.expand_dims(factors.scale, -1)
    if bias is not None:
        total = ops.expand_dims(factors.total, -1)  # [B, H, D, 1]
        summary = summary + total * ops.expand_dims(bias, 1)
    mixing = ops.einsum("bhdv,hvo->bhdo", summary, output_kernel)
    mixing = ops.reshape(mixing, (batch, heads * dim, output_kernel.shape[-1]))
    query = join_heads(factors.query)
    if output_bias is None:
        return ops.matmul(query, mixing)
    return product_plus(output_bias, query, mixing)


def join_heads(x):
    """`[B, T, H, D]` to `[B, T, H D]`."""
    batch, length, heads, dim = ops.shape(x)
    return ops.reshape(x, (batch, length, heads * dim))


@backends.with_fast_forms
def sum_over_positions(weights, x):
    """sum_s w_s^T x_s: `[B, S, R]` and `[B, S, F]` to `[B, R, F]`."""
    return ops.matmul(ops.swapaxes(weights, -1, -2), x)
