"""torch: packed documents one by one."""

import torch

from keras_linattn.core.backends._torch_eager import is_eager_on
from keras_linattn.core.backends.thresholds import CHUNK_SIZE


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
