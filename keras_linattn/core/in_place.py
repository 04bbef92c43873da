"""Causal kernel attention under torch without gradients, on a CPU.

What an eager library allocates for each operation is most of the time of
operations as small as these. Here each head, one after the other, uses the same
few arrays, which stay in the cache; heads are read and written where they lie.
The portable form is `core.causal.attend_at_once`.
"""

import math

from keras import backend

from keras_linattn.core.chunks import num_chunks
from keras_linattn.core.chunks import pad_to_chunks
from keras_linattn.core.numerics import EXACT
from keras_linattn.core.numerics import SMALLEST_SUM
from keras_linattn.core.products import CHUNK_SIZE


def can_attend(*tensors):
    """Are these torch tensors of one kind on a CPU, and is this no trace?"""
    if backend.backend() != "torch":
        return False
    import torch

    return (
        all(isinstance(x, torch.Tensor) for x in tensors)
        and {x.device.type for x in tensors} == {"cpu"}
        and len({x.dtype for x in tensors}) == 1
        and backend.standardize_dtype(tensors[0].dtype) in EXACT
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()  # as of vmap
    )


def attend_causally(query, key, value, state=None):
    """`core.causal.attend_causally`, of tensors that `can_attend`."""
    batch, heads, length, rank = query.shape
    count = num_chunks(length, CHUNK_SIZE)
    query, key, value = (
        pad_to_chunks(x, CHUNK_SIZE, 2) for x in (query, key, value)
    )
    dim = value.shape[-1]
    # As the output projection reads it: [B, T, H, V].
    output = value.new_empty((batch, value.shape[2], heads, dim))
    after = value.new_empty((batch, heads, rank, dim + 1))
    arrays = Arrays(value, count, rank)
    for place in ((b, h) for b in range(batch) for h in range(heads)):
        example, head = place
        arrays.take_in(key[place], value[place])
        before = None if state is None else state[place]
        arrays.attend(query[place], before, after[place])
        arrays.divide(output[example, :, head])
    return output.transpose(1, 2)[:, :, :length], after


class Arrays:
    """What one head after the other is computed in.

    Args:
        like: tensor `[B, H, T, V]`, for sizes and dtype.
        count: int, N chunks of C positions, N C = T.
        rank: int, R.
    """

    def __init__(self, like, count, rank):
        new = like.new_empty
        length, dim = like.shape[2:]
        size = length // count
        self.key = new((length, rank))
        self.keys = self.key.view(count, size, rank)
        self.value = new((length, dim + 1))
        self.value[:, dim] = 1  # its sums are the normaliser
        self.values = self.value.view(count, size, dim + 1)
        self.weights = new((count, size, size))
        self.sums = new((count, rank, dim + 1))
        self.running = new((count, rank, dim + 1))
        self.outputs = new((count, size, dim + 1))
        self.row = new((length, 1))

    def take_in(self, key, value):
        """Keys and values, the future kept from the past: see `contain`."""
        import torch

        values = self.value[:, :-1].copy_(value)
        torch.sum(values, 1, keepdim=True, out=self.row)
        unusable = self.row.isfinite().logical_not_()
        values.masked_fill_(unusable, 0)
        nothing = self.row.zero_().masked_fill_(unusable, math.nan)
        torch.add(key, nothing, out=self.key)

    def attend(self, query, before, after):
        """The sums for the queries; the state before, and in `after` after."""
        import torch

        query = query.unflatten(0, self.keys.shape[:2])
        transposed = self.keys.transpose(1, 2)
        weights = torch.bmm(query, transposed, out=self.weights).tril_()
        torch.bmm(weights, self.values, out=self.outputs)
        torch.bmm(transposed, self.values, out=self.sums)
        if before is not None:
            # The first chunk reads it alone, the others as part of the sums.
            self.outputs[0].addmm_(query[0], before)
            self.sums[0].add_(before)
        torch.cumsum(self.sums, 0, out=self.running)
        self.outputs[1:].baddbmm_(query[1:], self.running[:-1])
        after.copy_(self.running[-1])

    def divide(self, output):
        """Writes the outputs over their normaliser: see `divide_by_last`."""
        import torch

        summed = self.outputs.view(self.value.shape)
        total = self.row.copy_(summed[:, -1:])
        total.masked_fill_(total < SMALLEST_SUM, 1)
        torch.mul(summed[:, :-1], total.reciprocal_(), out=output)
