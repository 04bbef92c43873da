"""torch: fast forms, recomputation, and what tests and benchmarks need."""

import keras
import torch

# --- Gradients and traces, for the conformance suite and the benchmarks ----


def compile_function(function):
    """`function` as it is: Keras does not compile under torch."""
    return function


def quick(function):
    """`function`, as the suite calls it: operation by operation."""
    return function


def call_mechanism(mechanism, heads, causal, options):
    """The mechanism's output."""
    return mechanism(*heads, causal=causal, **options)


def trace_free_sizes(function, shapes, dtypes):
    """`function` as it is: every call may have other sizes."""
    return function


def gradients(function, tensors, variables):
    """Gradients of the scalar `function(*tensors)` by tensors and variables."""
    tensors = [x.detach().requires_grad_() for x in tensors]
    wanted = [*tensors, *(v.value for v in variables)]
    return torch.autograd.grad(function(*tensors), wanted, allow_unused=True)


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
