"""torch: what a fast form may ask of its inputs, and documents one by one."""

import torch
from torch.autograd.forward_ad import unpack_dual

from keras_linattn.core.backends.thresholds import CHUNK_SIZE


def is_eager_on(device, *tensors):
    """Whether `is_eager`, and all are on the device, `"cpu"` or `"cuda"`."""
    return is_eager(*tensors) and {x.device.type for x in tensors} == {device}


def is_eager(*tensors):
    """Whether these are there, and neither traced nor transformed."""
    return (
        # Not a subclass, which may hold no numbers.
        all(type(x) in (torch.Tensor, torch.nn.Parameter) for x in tensors)
        # Not a symbol of an export.
        and all(isinstance(n, int) for n in tensors[0].shape)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()  # as of vmap
        and all(unpack_dual(x).tangent is None for x in tensors)
    )


def known_finite(*tensors):
    """Without a wait on a CPU only."""
    return is_eager_on("cpu", *tensors) and all(
        x.detach().sum().isfinite() for x in tensors
    )


def split_documents(documents, *tensors):
    """The documents of each row one by one, if they are not too many.

    Args:
        documents: `Documents`.
        *tensors: tensors `[B, H, T, anything]`.

    Returns:
        For each row an iterable of tuples of tensors `[1, H, length,
        anything]`; or `None`, if documents side by side are faster.
    """
    if not (documents.one_sequence and is_eager_on("cpu", *tensors)):
        return None
    lengths = lengths_of_documents(documents.query)
    if sum(map(len, lengths)) * CHUNK_SIZE > documents.query.numel():
        return None
    return rows_of_documents(lengths, *tensors)


def lengths_of_documents(numbers):
    """For each row of `(B, T)` a list of ints."""
    return [
        torch.unique_consecutive(row, return_counts=True)[1].tolist()
        for row in numbers
    ]


def rows_of_documents(lengths, *tensors):
    """For each row an iterable of tuples, one for each document."""
    # Split, since the gradient of each slice would be a whole array.
    rows = zip(lengths, *(x.split(1) for x in tensors), strict=True)
    return [
        zip(*(x.split(sizes, dim=2) for x in row), strict=True)
        for sizes, *row in rows
    ]
