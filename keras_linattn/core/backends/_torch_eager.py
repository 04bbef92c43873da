"""torch: what a fast form may ask of its inputs."""

import torch
from torch.autograd.forward_ad import unpack_dual


def is_eager_on(device, *tensors):
    """Whether `is_eager`, and all are on the device, `"cpu"` or `"cuda"`."""
    return is_eager(*tensors) and {x.device.type for x in tensors} == {device}


def is_eager(*tensors):
    """Whether all are plain tensors: not traced, exported or transformed."""
    return (
        # Not a subclass, which may hold no numbers.
        all(type(x) in (torch.Tensor, torch.nn.Parameter) for x in tensors)
        # Not a symbol of an export.
        and all(isinstance(n, int) for n in tensors[0].shape)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()  # such as vmap
        and all(unpack_dual(x).tangent is None for x in tensors)
    )


def known_finite(*tensors):
    """Whether all are finite, and on a CPU: elsewhere one would wait."""
    return is_eager_on("cpu", *tensors) and all(
        x.detach().sum().isfinite() for x in tensors
    )
