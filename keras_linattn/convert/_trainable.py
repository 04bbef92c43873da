"""Selects the variables that a stage trains, and adds LoRA adapters."""

import contextlib

from keras import ops


def separate(model):
    """Copies each variable of a model into an array of its own.

    Under JAX, a variable that is assigned to another shares its array. A
    training step of student and teacher would then donate that array twice.
    """
    for variable in model.variables:
        variable.assign(ops.copy(variable.value))


@contextlib.contextmanager
def only_trainable(model, variables):
    """A context in which only some variables of a model are trainable.

    Args:
        model: `keras.Model`.
        variables: iterable of the variables that are trainable.
    """
    chosen = {id(variable) for variable in variables}
    before = [(v, v.trainable) for v in model.variables]
    try:
        for variable, _ in before:
            _set(variable, id(variable) in chosen)
        yield
    finally:
        for variable, trainable in before:
            _set(variable, trainable)


def _set(variable, trainable):
    # Set only on a change: torch rejects it for integers, such as seeds.
    if variable.trainable != trainable:
        variable.trainable = trainable


def projections(layer):
    """The sublayers of an attention layer that can have LoRA, each once."""
    return [
        below
        for below in layer._flatten_layers(include_self=False)
        if hasattr(below, "enable_lora") and hasattr(below, "kernel")
    ]


def enable_lora(layers, rank, alpha=None):
    """Adds adapters; returns the projections that had no adapter before."""
    changed = []
    for dense in layers:
        if not dense.lora_enabled:
            dense.enable_lora(rank, lora_alpha=alpha)
            changed.append(dense)
    return changed


def lora_variables(layers):
    """The adapters' variables."""
    return [
        variable
        for dense in layers
        if dense.lora_enabled
        for variable in (dense.lora_kernel_a, dense.lora_kernel_b)
    ]


def merge_lora(layers):
    """Adds the adapters to the kernels, and removes them.

    A quantized layer keeps its adapter, because its kernel cannot hold the sum.
    """
    for dense in layers:
        if dense.quantization_mode is not None:
            continue
        kernel = dense.kernel + 0  # a copy of the sum, with the adapter
        dense.lora_enabled = False
        dense.lora_rank = dense.lora_alpha = None
        dense._kernel.trainable = True
        dense._kernel.assign(kernel)
        for name in ("lora_kernel_a", "lora_kernel_b"):
            # Not `delattr`, which runs the garbage collector each time.
            dense._untrack_variable(vars(dense).pop(name))
