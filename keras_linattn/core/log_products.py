"""Attention to features given as logarithms: exact at any size."""

from keras import ops

from keras_linattn.core.documents import attend_documents
from keras_linattn.core.documents import largest_within
from keras_linattn.core.masks import apply_mask
from keras_linattn.core.masks import select
from keras_linattn.core.numerics import LOWEST
from keras_linattn.core.numerics import exp_of_logs
from keras_linattn.core.numerics import masked_exp
from keras_linattn.core.numerics import masked_softmax
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import max_along
from keras_linattn.core.products import attend_within
from keras_linattn.core.products import key_value_product


def log_kernel_attention(query, key, value, key_mask=None, documents=None):
    """`kernel_attention` of features given as logarithms: exact at any size.

    out_t = sum_r softmax_r(q_tr + log Z_r) sum_s (e^(k_sr) / Z_r) v_s,
    Z_r = sum_s e^(k_sr), whose exponents are relative to the largest.

    Args:
        query: tensor `[B, H, T, R]`, logarithms; `LOWEST` for a feature of 0.
        key: tensor `[B, H, S, R]`, logarithms as in `query`.
        value: tensor `[B, H, S, V]`.
        key_mask: bool tensor `(B, S)`, or `None`.
        documents: `Documents`, or `None`, its default: each row is one.

    Returns:
        Tensor `[B, H, T, V]`; 0 where the features meet no visible key's.
    """
    key = apply_mask(key, key_mask, value=LOWEST)
    if documents is not None:
        forms = log_attend_within, log_kernel_attention
        heads = query, key, value
        return attend_documents(*forms, *heads, documents, LOWEST)
    return read_log_summary(query, *log_summary(key, value))


def log_summary(key, value):
    """The summary of all positions, of features given as logarithms.

    Args:
        key: tensor `[B, H, S, R]`; `LOWEST` for a feature of 0.
        value: tensor `[B, H, S, V]`.

    Returns:
        log Z_r of `log_kernel_attention`, `[B, H, 1, R]`, `LOWEST` where no
        key has the feature; and the mean value of each feature, sum_s
        (e^(k_sr) / Z_r) v_s, `[B, H, R, V]`.
    """
    most = ops.stop_gradient(max_along(key, 2, LOWEST))
    filled = most > LOWEST / 2
    # 0 where no key has the feature: LOWEST - LOWEST would be a weight of 1.
    most = ops.where(filled, most, ops.zeros_like(most))
    weights = exp_of_logs(key - most)
    total = ops.sum(weights, axis=2, keepdims=True)  # >= 1 where filled
    total = ops.where(filled, total, ops.ones_like(total))
    log_sums = ops.where(filled, most + ops.log(total), LOWEST)
    means = key_value_product(weights, value) / ops.swapaxes(total, -1, -2)
    return log_sums, means


def read_log_summary(query, log_sums, means):
    """sum_r softmax_r(q_tr + log Z_r) (mean value of r): `[B, H, T, V]`.

    Args:
        query: tensor `[B, H, T, R]`, logarithms as in `log_summary`.
        log_sums, means: as `log_summary` returns them.
    """
    scores = query + log_sums
    meets = ops.max(scores, axis=-1, keepdims=True) > LOWEST / 2
    output = matmul(masked_softmax(scores), means)
    return ops.where(meets, output, ops.zeros_like(output))


def log_attend_within(query, key, value, documents):
    """`log_kernel_attention` of documents in one sequence, keys hidden."""
    weights, largest = weights_within(key, documents)
    scores = query + largest
    query = masked_exp(scores, scores > LOWEST / 2)
    return attend_within(query, weights, value, documents)


def weights_within(key, documents):
    """exp(k), relative to the largest in the document.

    Args:
        key: tensor `[B, H, T, R]`, `LOWEST` where hidden.
        documents: `Documents` of one sequence.

    Returns:
        The weights, and the largest of each position's document, `LOWEST`
        where it shows no key; both `[B, H, T, R]`.
    """
    largest = largest_within(key, documents)
    filled = largest > LOWEST / 2
    # 0 where there is no key: LOWEST - LOWEST would be a weight of 1.
    weights = exp_of_logs(key - select(filled, largest))
    return weights, ops.where(filled, largest, ops.cast(LOWEST, key.dtype))
