"""Products multiplied right to left, so that no `[T, S]` matrix is formed."""

from keras import ops

from keras_linattn.core import backends
from keras_linattn.core.backends.thresholds import CHUNK_SIZE
from keras_linattn.core.backends.thresholds import DOCUMENT_CHUNK
from keras_linattn.core.chunks import fitting_size
from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.chunks import running_sums
from keras_linattn.core.chunks import split_chunks
from keras_linattn.core.documents import attend_documents
from keras_linattn.core.documents import chunks_of
from keras_linattn.core.documents import earlier_pairs
from keras_linattn.core.documents import of_first
from keras_linattn.core.documents import of_last
from keras_linattn.core.documents import starts_of
from keras_linattn.core.masks import select
from keras_linattn.core.numerics import matmul
from keras_linattn.core.numerics import safe_divide
from keras_linattn.core.numerics import split_at


def key_value_product(key, value):
    """K^T V, the summary of all positions: `[B, H, D, V]`, O(S D V)."""
    return matmul(ops.swapaxes(key, -1, -2), value)


@backends.with_fast_forms
def product_plus(addend, x, y):
    """addend + x y.

    Args:
        addend: tensor that broadcasts against the product.
        x: tensor `[..., T, R]`.
        y: tensor `[..., R, V]`, with the leading axes of `x`.

    Returns:
        Tensor `[..., T, V]`.
    """
    return addend + matmul(x, y)


@backends.with_fast_forms
def dense_product(x, kernel, bias):
    """x W + b over the last axes of x, to all axes of b.

    Args:
        x: tensor `[..., F...]`.
        kernel: tensor `[F..., O...]`.
        bias: tensor `[O...]`.

    Returns:
        Tensor `[..., O...]`.
    """
    bound = len(kernel.shape) - len(bias.shape)  # axes
    return ops.tensordot(x, kernel, axes=bound) + bias


def kernel_attention(query, key, value, documents=None):
    """Normalised attention with the similarity `query . key`.

    out_t = q_t . (sum_s k_s v_s^T) / (q_t . sum_s k_s)

    Args:
        query: tensor `[B, H, T, R]`, features of the queries, >= 0.
        key: tensor `[B, H, S, R]`, features of the keys, 0 where masked.
        value: tensor `[B, H, S, V]`.
        documents: `Documents`, or `None`, its default: each row is one.

    Returns:
        Tensor `[B, H, T, V]`; 0 where no key is visible.
    """
    if documents is not None:
        forms = attend_within, kernel_attention
        return attend_documents(*forms, query, key, value, documents)
    numerator = matmul(query, key_value_product(key, value))
    key_sum = ops.expand_dims(ops.sum(key, axis=2), -1)  # [B, H, R, 1]
    return safe_divide(numerator, matmul(query, key_sum))


def append_ones(value):
    """`[..., V]` to `[..., V + 1]`: the last column sums up the normaliser."""
    return ops.concatenate([value, ops.ones_like(value[..., :1])], axis=-1)


def divide_by_last(x):
    """Divides by the last column and drops it: undoes `append_ones`."""
    # Use `split`: the gradients of two slices would be two arrays to add.
    # One reciprocal for each row is cheaper than a quotient for each entry.
    numerator, denominator = split_at(x, [x.shape[-1] - 1])
    one = ops.ones_like(denominator)
    return numerator * safe_divide(one, denominator)


def move_nan_to_keys(key, value):
    """Sets non-finite values to 0 and their keys to NaN.

    A causal product multiplies later values by 0, and 0 * NaN is NaN. NaN in
    the key makes the scores NaN instead. The causal mask then selects, so only
    later positions get NaN.

    Args:
        key: tensor `[B, H, T, R]`.
        value: tensor `[B, H, T, V]`.

    Returns:
        Tensors of these shapes, the same if all values are finite.
    """
    # The cheapest test of a row is its sum, computed as a product, because
    # TensorFlow's sums of rows are slow. A sum that overflows also counts as
    # non-finite.
    ones = ops.ones((value.shape[-1], 1), value.dtype)
    finite = ops.isfinite(matmul(value, ones))
    nothing = ops.where(finite, 0.0, float("nan"))
    key = key + ops.cast(ops.stop_gradient(nothing), key.dtype)
    return key, ops.where(finite, value, ops.cast(0, value.dtype))


def causal_product(
    query, key, value, state=None, chunk_size=CHUNK_SIZE, starts=None
):
    """sum over s <= t of (q_t . k_s) v_s, in chunks.

    Inside a chunk the product is masked to its lower triangle; between chunks
    an exclusive running sum of K^T V is carried. O(T (C + R) V) time.

    A key or value that is not finite makes the outputs from its position on
    NaN, to the end of its document, and none before it.

    Args:
        query: tensor `[B, H, T, R]`.
        key: tensor `[B, H, T, R]`.
        value: tensor `[B, H, T, V]`.
        state: tensor `[B, H, R, V]`, the sum of K^T V over the positions
            before these. Defaults to `None`: there are none.
        chunk_size: int > 0, C. A shorter sequence is one chunk.
        starts: bool tensor `[B, 1, T, 1]`, see `core.documents.starts_of`.
            Defaults to `None`: each row is one document.

    Returns:
        The output `[B, H, T, V]`, and the state after the last position.
    """
    length = ops.shape(query)[2]
    chunk_size = fitting_size(chunk_size, length)
    if chunk_size > 1:  # else there is no future in a chunk
        key, value = move_nan_to_keys(key, value)
    chunks = chunks_of(starts, chunk_size)
    query, key, value = (
        split_chunks(x, chunk_size) for x in (query, key, value)
    )
    transposed = ops.swapaxes(key, -1, -2)
    # Selects, whatever is above the diagonal.
    scores = earlier_pairs(matmul(query, transposed), chunks)
    inside = matmul(scores, value)
    if chunks is None:
        before, state = running_sums(matmul(transposed, value), state)
        output = product_plus(inside, query, before)
    else:
        update = key_value_product(of_last(key, chunks), value)
        before, state = running_sums(update, state, chunks.breaks)
        output = inside + of_first(matmul(query, before), chunks)
    return join_chunks(output, length), state


def product_within(query, key, value, starts, chunk_size=DOCUMENT_CHUNK):
    """sum over all s in the document of t of (q_t . k_s) v_s, in chunks.

    Inside a chunk by its scores. A document that goes on in the chunks before
    or after is summed up there by two running sums of K^T V. O(T (C + R) V).

    Args:
        query: tensor `[B, H, T, R]`.
        key: tensor `[B, H, T, R]`, 0 where masked.
        value: tensor `[B, H, T, V]`.
        starts: bool tensor `[B, 1, T, 1]`, see `core.documents.starts_of`.
        chunk_size: int > 0, C.

    Returns:
        Tensor `[B, H, T, V]`.
    """
    length = ops.shape(query)[2]
    chunk_size = fitting_size(chunk_size, length)
    key, value = move_nan_to_keys(key, value)
    chunks = chunks_of(starts, chunk_size)
    query, key, value = (
        split_chunks(x, chunk_size) for x in (query, key, value)
    )
    scores = matmul(query, ops.swapaxes(key, -1, -2))
    output = matmul(select(chunks.same(), scores), value)
    if output.shape[2] == 1:
        return join_chunks(output, length)
    summed = key_value_product(of_last(key, chunks), value)
    before, _ = running_sums(summed, None, chunks.breaks)
    output = output + of_first(matmul(query, before), chunks)
    summed = key_value_product(of_first(key, chunks), value)
    after, _ = running_sums(  # from the end of the row
        ops.flip(summed, 2), None, ops.flip(chunks.breaks, 2)
    )
    output = output + of_last(matmul(query, ops.flip(after, 2)), chunks)
    return join_chunks(output, length)


def attend_within(query, key, value, documents):
    """`kernel_attention` of documents in one sequence."""
    value = append_ones(value)
    return divide_by_last(
        product_within(query, key, value, starts_of(documents))
    )


def kernel_attention_in_pieces(query, key, value, pieces):
    """`kernel_attention` of documents that other pieces may hold a part of.

    Args:
        query: tensor `[B, H, T, R]`.
        key: tensor `[B, H, T, R]`, 0 where masked.
        value: tensor `[B, H, T, V]`.
        pieces: `core.packed_pieces.PackedPieces`.

    Returns:
        Tensor `[B, H, T, V]`.
    """
    value = append_ones(value)
    first, last = pieces.in_first, pieces.in_last
    summed = key_value_product(select(last, key), value)
    before = pieces.sum_before(summed)
    summed = key_value_product(select(first, key), value)
    after = pieces.after(summed, ops.add, ops.zeros_like(summed))
    output = product_within(query, key, value, starts_of(pieces.documents))
    output = output + matmul(select(first, query), before)
    return divide_by_last(output + matmul(select(last, query), after))


def sums_within(x, documents):
    """The sums over each document, at all of its positions: `[B, H, T, R]`.

    What is not finite counts as 0.
    """
    batch, heads, length, dim = ops.shape(x)
    x = ops.transpose(select(ops.isfinite(x), x), (0, 2, 1, 3))
    # Heads side by side: the pairs of a chunk are then those of one head.
    x = ops.reshape(x, (batch, 1, length, heads * dim))
    ones = ops.ones_like(x[:, :, :, :1])
    x = product_within(ones, ones, x, starts_of(documents))
    x = ops.reshape(x, (batch, length, heads, dim))
    return ops.transpose(x, (0, 2, 1, 3))
