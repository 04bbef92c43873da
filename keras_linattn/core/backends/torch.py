"""torch: fast forms, recomputation, and what tests and benchmarks need."""

import math

import keras
import torch
from keras import backend
from keras import ops
from torch.autograd.forward_ad import unpack_dual
from torch.nn.functional import pad
from torch.nn.functional import scaled_dot_product_attention
from torch.utils import checkpoint

from keras_linattn.core import causal
from keras_linattn.core import numerics
from keras_linattn.core import windows
from keras_linattn.core.backends import DISPATCHED
from keras_linattn.core.backends import _fla
from keras_linattn.core.backends.thresholds import CHUNK_SIZE
from keras_linattn.core.backends.thresholds import SEGMENT_OF_TORCH
from keras_linattn.core.backends.thresholds import SHORT_FOR_TORCH
from keras_linattn.core.backends.thresholds import SHORTEST
from keras_linattn.core.backends.thresholds import segment_size
from keras_linattn.core.chunks import join_chunks
from keras_linattn.core.chunks import num_chunks
from keras_linattn.core.chunks import pad_to_chunks
from keras_linattn.core.masks import expand_to_rank
from keras_linattn.core.masks import nan_where
from keras_linattn.core.masks import select
from keras_linattn.core.nonfinite import rows_after
from keras_linattn.core.numerics import EXACT
from keras_linattn.core.numerics import LOWEST
from keras_linattn.core.numerics import SMALLEST_SUM
from keras_linattn.core.numerics import masked_softmax
from keras_linattn.core.products import move_nan_to_keys

LARGEST_SCORE = 1e3  # whose rounding changes a weight by a ten-thousandth

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


def _is_eager_on(device, *tensors):
    """Whether `_is_eager`, and all are on the device, `"cpu"` or `"cuda"`."""
    return _is_eager(*tensors) and {x.device.type for x in tensors} == {device}


def _is_eager(*tensors):
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


def _can_attend_in_place(query, key, value):
    """Whether these are long, on a CPU, and need no gradients or trace."""
    tensors = query, key, value
    return (
        _is_eager_on("cpu", *tensors)
        and query.shape[2] >= SHORTEST
        and len({x.dtype for x in tensors}) == 1
        and backend.standardize_dtype(tensors[0].dtype) in EXACT
        and not torch.is_grad_enabled()
    )


def _split_documents(documents, *tensors):
    """The documents of each row one by one, if they are not too many.

    Args:
        documents: `Documents`.
        *tensors: tensors `[B, H, T, anything]`.

    Returns:
        For each row an iterable of tuples of tensors `[1, H, length,
        anything]`; or `None`, if documents side by side are faster.
    """
    if not (documents.one_sequence and _is_eager_on("cpu", *tensors)):
        return None
    lengths = _lengths_of_documents(documents.query)
    if sum(map(len, lengths)) * CHUNK_SIZE > documents.query.numel():
        return None
    return _rows_of_documents(lengths, *tensors)


def _lengths_of_documents(numbers):
    """For each row of `(B, T)` a list of ints."""
    return [
        torch.unique_consecutive(row, return_counts=True)[1].tolist()
        for row in numbers
    ]


def _rows_of_documents(lengths, *tensors):
    """For each row an iterable of tuples, one for each document."""
    # Split, since the gradient of each slice would be a whole array.
    rows = zip(lengths, *(x.split(1) for x in tensors), strict=True)
    return [
        zip(*(x.split(sizes, dim=2) for x in row), strict=True)
        for sizes, *row in rows
    ]


def attend_documents(attend, alone, query, key, value, documents, nothing=0.0):
    """One document after the other."""
    rows = _split_documents(documents, query, key, value)
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
    rows = _split_documents(documents, query, key, value)
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
    if not _is_eager_on("cpu", x):
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


def known_finite(*tensors):
    """Without a wait on a CPU only."""
    return _is_eager_on("cpu", *tensors) and all(
        x.detach().sum().isfinite() for x in tensors
    )


def attend_near(query, key, value, near):
    """Without a search for rows that are not finite, if there are none."""
    heads = query, key, value
    if not known_finite(*heads):
        return NotImplemented
    output = windows.attend_finite(*heads, near)
    return join_chunks(output, query.shape[2])


def overlapping_blocks(x, size, count, others):
    """Views of one array, not copies."""
    if not _is_eager(x):
        return NotImplemented
    return x.unfold(2, (others + 1) * size, size).transpose(-1, -2)


def run_fused(fused, slow, query, key, value):
    """With gradients of the slow form where scores may be large."""
    heads = query, key, value
    if not _is_eager_on("cpu", *heads):
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
    if not _is_eager_on("cpu", *heads) or not query.numel():
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
    usable = _is_eager_on("cpu", *heads) and query.numel()
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
    rows = _rows_of_documents(_lengths_of_documents(numbers), *heads)
    rows = [torch.cat([attend(heads) for heads in row], 2) for row in rows]
    return torch.cat(rows)[..., :value_dim]


def run_in_segments(function, state, tensors):
    """One segment after the other, whose temporaries stay in the cache."""
    if not _is_eager_on("cpu", *tensors):
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
    if not _is_eager_on("cuda", query):
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
