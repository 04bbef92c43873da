"""torch: softmax attention by its fused kernel, which forms no scores."""

import torch
from keras import ops
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention

from keras_linattn.core import windows
from keras_linattn.core.backends import DISPATCHED
from keras_linattn.core.backends._torch_documents import lengths_of_documents
from keras_linattn.core.backends._torch_documents import rows_of_documents
from keras_linattn.core.backends._torch_eager import is_eager_on
from keras_linattn.core.backends._torch_eager import known_finite
from keras_linattn.core.masks import expand_to_rank
from keras_linattn.core.masks import nan_where
from keras_linattn.core.masks import select
from keras_linattn.core.nonfinite import rows_after
from keras_linattn.core.numerics import LOWEST
from keras_linattn.core.products import move_nan_to_keys

LARGEST_SCORE = 1e3  # whose rounding changes a weight by a ten-thousandth


def run_fused(fused, slow, query, key, value):
    """With gradients of the slow form where scores may be large."""
    heads = query, key, value
    if not is_eager_on("cpu", *heads):
        return NotImplemented
    return _run_kernel(fused, slow, *heads)


def _run_kernel(fused, slow, query, key, value, *others):
    """`core.fused.run_fused` of tensors that are known to be eager.

    Both callables also take the others, which have no gradients.
    """
    heads = query, key, value
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in heads)
    if not wanted or _scores_are_small(query, key):
        return fused(*heads, *others)
    return _SlowGradients.apply(fused, slow, others, *heads)


class _SlowGradients(torch.autograd.Function):
    """A kernel forward, its slow form backward.

    A kernel's backward pass computes scores anew, in another order of
    additions. A score of 1e8 is rounded to a multiple of 8, and a weight of 1
    may become e^8.
    """

    @staticmethod
    def forward(ctx, fused, slow, others, *heads):
        ctx.slow, ctx.others = slow, others
        ctx.save_for_backward(*heads)
        return fused(*heads, *others)

    @staticmethod
    def backward(ctx, gradient):
        again = torch.is_grad_enabled()  # for gradients of gradients
        heads = [
            x if again and x.requires_grad else x.detach().requires_grad_()
            for x in ctx.saved_tensors
        ]
        with torch.enable_grad():
            output = ctx.slow(*heads, *ctx.others)
        gradients = torch.autograd.grad(
            output, heads, gradient, create_graph=again
        )
        return None, None, None, *gradients


def _scores_are_small(query, key):
    """Whether no score of the products can be above `LARGEST_SCORE`."""
    sizes = [x.detach().square().sum(-1).amax() for x in (query, key)]
    return bool(sizes[0] * sizes[1] < query.shape[-1] * LARGEST_SCORE**2)


def attend_blocks(query, key, value, pairs):
    """By the fused kernel, which forms no array of scores.

    Not on a GPU: gradients of large entries were not finite there (H200).
    """
    heads = query, key, value
    if not is_eager_on("cpu", *heads) or not query.numel():
        return NotImplemented
    slow = windows.attend_blocks.portable
    return _run_kernel(_fused_blocks, slow, *heads, pairs)


def _fused_blocks(query, key, value, pairs):
    batch, heads = query.shape[:2]
    # Hidden scores stay finite: a query that sees nothing is not NaN.
    least = torch.zeros_like(pairs, dtype=query.dtype)
    least = least.masked_fill_(~pairs, windows.LEAST)
    if len(least) == 1:  # all heads of all examples have one mask
        least = least[0].expand(batch * heads, query.shape[2], -1, -1)
        flat = (x.flatten(0, 1) for x in (query, key, value))
        output = scaled_dot_product_attention(*flat, attn_mask=least)
        return output.unflatten(0, (batch, heads))
    examples = zip(query, key, value, least, strict=True)
    outputs = [
        scaled_dot_product_attention(
            q, k, v, attn_mask=bias.expand(heads, q.shape[1], -1, -1)
        )
        for q, k, v, bias in examples
    ]
    return torch.stack(outputs)


def attend_earlier(query, key, value, key_mask=None, documents=None):
    """By the fused kernel, which forms no array of scores.

    Not on a GPU, see `attend_blocks`. The kernel takes heads of one size only:
    values much wider than keys would cost more than they save.
    """
    heads = query, key, value
    usable = is_eager_on("cpu", *heads) and query.numel()
    if not usable or value.shape[-1] > 2 * key.shape[-1]:
        return NotImplemented
    if documents is not None and not documents.one_sequence:
        return NotImplemented
    if key_mask is not None:
        key_mask = ops.cast(key_mask, "bool")
    finite = known_finite(*heads)
    if not finite:
        key, value = move_nan_to_keys(key, value)
    forms = _fused_earlier, DISPATCHED["attend_earlier"].portable
    output = _run_kernel(*forms, query, key, value, key_mask, documents)
    if finite:
        return output
    # The kernel takes a row whose only score is NaN for one that sees nothing.
    nan_rows = rows_after(~key.isnan().any(-1, keepdim=True), documents)
    nan_rows = nan_rows | query.isnan().any(-1, keepdim=True)
    output = nan_where(nan_rows, output)
    if key_mask is None:
        return output
    sees_any = expand_to_rank(key_mask.cumsum(1) > 0, rank=4, axis=2)
    return select(sees_any, output)


def _fused_earlier(query, key, value, key_mask, documents):
    dim, value_dim = key.shape[-1], value.shape[-1]
    if key_mask is not None:
        # One feature more hides keys: the kernel takes one mask, the causal.
        hidden = ~expand_to_rank(key_mask, rank=4, axis=2)
        hidden = hidden.to(key.dtype) * LOWEST
        key = torch.cat([key, hidden.expand(*key.shape[:-1], 1)], -1)
        query = torch.cat([query, torch.ones_like(query[..., :1])], -1)
    size = max(key.shape[-1], value_dim)
    heads = [pad(x, (0, size - x.shape[-1])) for x in (query, key, value)]

    def attend(heads):
        return scaled_dot_product_attention(
            *heads, is_causal=True, scale=dim**-0.5
        )

    if documents is None:
        return attend(heads)[..., :value_dim]
    # Each by itself, however many: its digits do not depend on the others.
    numbers = documents.query.expand(len(query), -1)
    rows = rows_of_documents(lengths_of_documents(numbers), *heads)
    rows = [torch.cat([attend(heads) for heads in row], 2) for row in rows]
    return torch.cat(rows)[..., :value_dim]
