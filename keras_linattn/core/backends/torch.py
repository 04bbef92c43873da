"""torch: fast forms, recomputation, and what tests and benchmarks need."""

import math

import keras
import torch
from keras import backend
from keras import ops
from torch.utils import checkpoint

from keras_linattn.core import causal
from keras_linattn.core import numerics
from keras_linattn.core import windows
from keras_linattn.core.backends import _fla
from keras_linattn.core.backends._torch_documents import split_documents
from keras_linattn.core.backends._torch_eager import is_eager
from keras_linattn.core.backends._torch_eager import is_eager_on
from keras_linattn.core.backends._torch_eager import known_finite
from keras_linattn.core.backends._torch_softmax import (
    attend_blocks as attend_blocks,
)
from keras_linattn.core.backends._torch_softmax import (
    attend_earlier as attend_earlier,
)
from keras_linattn.core.backends._torch_softmax import run_fused as run_fused
from keras_linattn.core.backends.thresholds import CHUNK_SIZE
from keras_linattn.core.backends.thresholds import SEGMENT_OF_TORCH
from keras_linattn.core.backends.thresholds import SHORT_FOR_TORCH
from keras_linattn.core.backends.thresholds import SHORTEST
from keras_linattn.core.backends.thresholds import segment_size
from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.chunks import num_chunks
from keras_linattn.core.chunks import pad_to_chunks
from keras_linattn.core.numerics import EXACT
from keras_linattn.core.numerics import LOWEST
from keras_linattn.core.numerics import SMALLEST_SUM
from keras_linattn.core.numerics import masked_softmax

# --- Fast forms -----------------------------------------------------------


def product_plus(addend, x, y):
    """addend + x y in one pass over the result, not two."""
    addend, x, y = map(ops.convert_to_tensor, (addend, x, y))
    shape = (*x.shape[:-1], y.shape[-1])
    if len(shape) == 2:
        return torch.addmm(addend, x, y)
    if addend.ndim == len(shape):  # else a vector, which broadcasts as it is
        addend = addend.expand(shape).reshape(-1, *shape[-2:])
    x, y = (a.reshape(-1, *a.shape[-2:]) for a in (x, y))
    return torch.baddbmm(addend, x, y).reshape(shape)


def dense_product(x, kernel, bias):
    """The product and its bias in one pass over the result."""
    kernel, bias = map(ops.convert_to_tensor, (kernel, bias))
    inputs = kernel.ndim - bias.ndim  # axes
    size = math.prod(bias.shape)
    # Tensors' own `reshape`: Keras' takes 30 microseconds each time.
    y = torch.addmm(
        bias.reshape(size),
        x.reshape(-1, math.prod(kernel.shape[:inputs])),
        kernel.reshape(-1, size),
    )
    return y.reshape(*x.shape[:-inputs], *bias.shape)


def convolve_channels(value, kernel, grid):
    """As an image whose channels come last, which is how they lie already.

    Keras' own moves them first. A sequence is a grid of one column.
    """
    value, kernel = map(ops.convert_to_tensor, (value, kernel))
    batch, heads, length, dim = value.shape
    sizes = (length, 1) if grid is None else grid
    sides = (*kernel.shape[:-2], 1)[:2]
    kernel = kernel.expand(*kernel.shape[:-2], heads, dim)
    kernel = kernel.reshape(*sides, 1, heads * dim).permute(3, 2, 0, 1)
    image = value.transpose(1, 2).reshape(batch, *sizes, heads * dim)
    output = torch.nn.functional.conv2d(
        image.permute(0, 3, 1, 2),
        kernel,
        padding=[side // 2 for side in sides],
        groups=heads * dim,
    )
    output = output.permute(0, 2, 3, 1).reshape(batch, length, heads, dim)
    return output.transpose(1, 2)


def softmax_parts(x, visible=None, axis=-1):
    """Weights and sums from its one kernel, where the parts are four passes."""
    length = x.shape[axis]
    # A length that torch exports is a symbol: to compare it would bound it.
    short = isinstance(length, int) and length <= SHORT_FOR_TORCH
    if not short or visible is not None:
        return NotImplemented
    weights = masked_softmax(x, axis=axis)
    return weights, ops.ones_like(weights.select(axis, 0))


def exp_of_logs(x):
    """`torch.exp` is slow on a CPU where the result underflows."""
    present = (x > LOWEST / 2).to(x.dtype)
    x = x.clamp_min(LOWEST)  # -inf times 0 would be NaN
    return torch.exp(x * present) * present


def largest_rows(x, index):
    """With an index that is not repeated for each column."""
    index = index.long().unsqueeze(1).expand(x.shape)
    lowest = torch.full_like(x, -math.inf)
    return lowest.scatter_reduce(0, index, x, "amax")


def _can_attend_in_place(query, key, value):
    """Whether these are long, on a CPU, and need no gradients or trace."""
    tensors = query, key, value
    return (
        is_eager_on("cpu", *tensors)
        and query.shape[2] >= SHORTEST
        and len({x.dtype for x in tensors}) == 1
        and backend.standardize_dtype(tensors[0].dtype) in EXACT
        and not torch.is_grad_enabled()
    )


def attend_documents(attend, alone, query, key, value, documents, nothing=0.0):
    """One document after the other."""
    rows = split_documents(documents, query, key, value)
    if rows is None:
        return NotImplemented
    parts = (torch.cat([alone(*heads) for heads in row], 2) for row in rows)
    return torch.cat(list(parts))


def attend_causally(query, key, value, state=None, documents=None):
    """Kernel attention head by head, in arrays that are used again.

    What an eager library allocates for each operation takes most of the time
    of operations as small as these. The few arrays here stay in the cache.
    """
    if not _can_attend_in_place(query, key, value):
        return NotImplemented
    if documents is not None:
        return _attend_each_causally(query, key, value, state, documents)
    batch, heads, length, rank = query.shape
    count = num_chunks(length, CHUNK_SIZE)
    query, key, value = (
        pad_to_chunks(x, CHUNK_SIZE, 2) for x in (query, key, value)
    )
    dim = value.shape[-1]
    # As the output projection reads it: [B, T, H, V].
    output = value.new_empty((batch, value.shape[2], heads, dim))
    after = value.new_empty((batch, heads, rank, dim + 1))
    arrays = _Arrays(value, count, rank)
    for place in ((b, h) for b in range(batch) for h in range(heads)):
        example, head = place
        arrays.take_in(key[place], value[place])
        before = None if state is None else state[place]
        arrays.attend(query[place], before, after[place])
        arrays.divide(output[example, :, head])
    return output.transpose(1, 2)[:, :, :length], after


def _attend_each_causally(query, key, value, state, documents):
    """`attend_causally` of one document after the other."""
    rows = split_documents(documents, query, key, value)
    if rows is None:
        return NotImplemented
    outputs, states = [], []
    for place, row in enumerate(rows):
        after = None if state is None else state[place : place + 1]
        parts = []
        for index, heads in enumerate(row):
            before = None if index else after
            part, after = causal.attend_causally(*heads, before)
            parts.append(part)
        outputs.append(torch.cat(parts, 2))
        states.append(after)
    return torch.cat(outputs), torch.cat(states)


class _Arrays:
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
        """Copies keys and values, as `move_nan_to_keys` does."""
        values = self.value[:, :-1].copy_(value)
        torch.sum(values, 1, keepdim=True, out=self.row)
        unusable = self.row.isfinite().logical_not_()
        values.masked_fill_(unusable, 0)
        nothing = self.row.zero_().masked_fill_(unusable, math.nan)
        torch.add(key, nothing, out=self.key)

    def attend(self, query, before, after):
        """The sums for the queries; the state before, and in `after` after."""
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
        summed = self.outputs.view(self.value.shape)
        total = self.row.copy_(summed[:, -1:])
        total.masked_fill_(total < SMALLEST_SUM, 1)
        torch.mul(summed[:, :-1], total.reciprocal_(), out=output)


def divide_by_size(x, count, epsilon):
    """Without a search for large entries, but in rows whose squares overflow.

    Row by row: a row's digits do not depend on the others.
    """
    if not is_eager_on("cpu", x):
        return NotImplemented
    square = x.square().sum(-1, keepdim=True)
    if square.sum().isfinite():
        return x * (square / count + epsilon).rsqrt()
    usual = square.isfinite()
    some = x.masked_fill(~usual, 0)
    square = some.square().sum(-1, keepdim=True)
    others = numerics.divide_by_size.portable(x, count, epsilon)
    some = some * (square / count + epsilon).rsqrt()
    return torch.where(usual, some, others)


def run_sanitized(function, *tensors, documents=None):
    """Only the function, if all numbers are finite."""
    return function(*tensors) if known_finite(*tensors) else NotImplemented


def attend_near(query, key, value, near):
    """Without a search for rows that are not finite, if there are none."""
    heads = query, key, value
    if not known_finite(*heads):
        return NotImplemented
    output = windows.attend_finite(*heads, near)
    return join_chunks(output, query.shape[2])


def overlapping_blocks(x, size, count, others):
    """Views of one array, not copies."""
    if not is_eager(x):
        return NotImplemented
    return x.unfold(2, (others + 1) * size, size).transpose(-1, -2)


def run_in_segments(function, state, tensors):
    """One segment after the other, whose temporaries stay in the cache."""
    if not is_eager_on("cpu", *tensors):
        return NotImplemented
    size = segment_size(tensors[0].shape, SEGMENT_OF_TORCH)
    if size is None:
        return NotImplemented
    outputs = []
    for segment in zip(*(x.split(size, 2) for x in tensors), strict=True):
        output, state = function(state, *segment)
        outputs.append(output)
    return torch.cat(outputs, 2), state


def loop_over_chunks(advance, inputs, start, output_shape):
    """A loop of Python's, over a known number of chunks."""
    if not isinstance(inputs[0].shape[2], int):
        return NotImplemented
    state, outputs = start, []
    for chunk in zip(*(x.unbind(2) for x in inputs), strict=True):
        output, state = advance(chunk, state)
        outputs.append(output)
    return torch.stack(outputs, 2), state


# --- Kernels for CUDA -------------------------------------------------------


def _by_fla(name, query, *arguments):
    if not is_eager_on("cuda", query):
        return NotImplemented
    return _fla.product(name, query, *arguments)


def delta_product(
    query, key, value, beta, log_decay, state, loop, chunk_size, starts=None
):
    """fla's kernel, where it can be used."""
    heads = query, key, value
    return _by_fla("delta", *heads, log_decay, state, starts, beta)


def vector_delta_product(
    query, key, value, beta, log_decay, state, loop, chunk_size, starts=None
):
    """fla's kernel, where it can be used."""
    heads = query, key, value
    return _by_fla("vector_delta", *heads, log_decay, state, starts, beta)


def scalar_decay_product(
    query, key, value, log_decay, state, carry, chunk_size, starts=None
):
    """fla's kernel, where it can be used."""
    name = "decay" if log_decay.shape[-1] == 1 else "vector_decay"
    return _by_fla(name, query, key, value, log_decay, state, starts)


vector_decay_product = scalar_decay_product


# --- Where Keras makes a tensor on another device --------------------------


def max_along(x, axis, initial):
    """The maximum along axes, at least `initial`."""
    axes = (axis,) if isinstance(axis, int) else axis
    axes = [a % x.ndim for a in axes]
    if all(x.shape[a] for a in axes):
        return x.amax(axes, keepdim=True).clamp(min=initial)
    shape = [1 if a in axes else n for a, n in enumerate(x.shape)]
    return x.new_full(shape, initial)


def scans_in_parallel(x):
    """On a GPU, where a small array takes no longer than the call itself."""
    return x.is_cuda and isinstance(x.shape[2], int)


def split_at(x, indices, axis=-1):
    """Parts that begin at the indices."""
    return torch.tensor_split(x, indices, axis)


# --- float64, which Keras' own operations round to `floatx()` --------------


def _is_float64(x):
    return getattr(x, "dtype", None) is torch.float64


def matmul(x, y):
    """Product of tensors of one exact dtype: Keras' takes 20 microseconds."""
    dtype = getattr(x, "dtype", None)
    exact = dtype in (torch.float32, torch.float64)
    same = exact and getattr(y, "dtype", None) is dtype
    return x @ y if same or _is_float64(x) else NotImplemented


def cumsum(x, axis):
    """Running sum of a float64 tensor."""
    return x.cumsum(axis) if _is_float64(x) else NotImplemented


def mean(x, axis, keepdims=False):
    """Mean of a float64 tensor."""
    return x.mean(axis, keepdim=keepdims) if _is_float64(x) else NotImplemented


def maximum(x, y):
    """Maximum of a float64 tensor and another one, or a number."""
    if not _is_float64(x):
        return NotImplemented
    return torch.where(x < y, ops.cast(y, x.dtype), x)


# --- What only torch has --------------------------------------------------


def has_hooks(layer):
    """Has the module hooks, or a `forward` of its own?"""
    of_all = torch.nn.modules.module
    return "forward" in vars(layer) or any(
        getattr(layer, f"_{kind}_hooks")
        or getattr(of_all, f"_global_{kind}_hooks")
        for kind in ("forward", "forward_pre", "backward", "backward_pre")
    )


def until_the_end():
    """Recompute to the end: do not stop once all saved tensors are there.

    torch stops by an exception, whose traceback Keras' layers keep, and with
    it the very tensors that must not be kept.
    """
    return checkpoint.set_checkpoint_early_stop(False)


# --- Gradients and traces, for the conformance suite and the benchmarks ----


def gradients(function, tensors, variables, others=()):
    """Gradients of the scalar `function(*tensors, *others)`.

    By tensors and variables.
    """
    tensors = [x.detach().requires_grad_() for x in tensors]
    wanted = [*tensors, *(v.value for v in variables)]
    total = function(*tensors, *others)
    return torch.autograd.grad(total, wanted, allow_unused=True)


def array_sizes(function, tensors):
    """Returns the number of entries of each array that `function` forms."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            output = operation(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(output):
                if isinstance(x, torch.Tensor):
                    sizes.append(x.numel())
            return output

    with Record():
        function(*tensors)
    return sizes


def forward(layer):
    """Callable of a tensor: the layer, without gradients."""

    def function(x):
        with torch.no_grad():
            return layer(x)

    return function


def training_step(layer, loss):
    """Callable of a tensor: gradients of `loss` by it and by all weights."""
    weights = [v.value for v in layer.trainable_variables]

    def function(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(layer(x)), [x, *weights])

    return function


def wait(result):
    """Returns once the tensors in `result` have been computed."""
    if keras.tree.flatten(result)[0].is_cuda:
        torch.cuda.synchronize()
