"""The options of an attention layer's heads: checks, sizes, and states.

Functions of a `LinearMultiHeadAttention`, whose constructor arguments they
read.
"""

import keras

from keras_linattn.core.devices import Split
from keras_linattn.layers._arguments import above_one
from keras_linattn.layers._arguments import positive
from keras_linattn.layers.attention._head_transform import convolution_spec

ROLES = ("query", "key", "value")


def check(layer):
    """Raises a `ValueError` unless the options fit each other."""
    names = ("num_key_value_heads", "num_query_key_heads")
    given = [name for name in names if getattr(layer, name) is not None]
    if len(given) > 1:
        raise ValueError(
            "Heads are grouped by `num_key_value_heads` or by "
            "`num_query_key_heads`. Received: both. Leave one of them out."
        )
    for name in given:
        heads = positive(name, getattr(layer, name))
        if layer.num_heads % heads:
            raise ValueError(
                f"`{name}` must divide `num_heads`. Received: {name}={heads}, "
                f"num_heads={layer.num_heads}."
            )
    if layer.kernel_size is not None:
        above_one("kernel_size", layer.kernel_size)
    for name in ("rope_scaling_factor", "layer_norm_epsilon"):
        _check_number(layer, name, 0)
    if layer.rope_max_wavelength is not None:
        _check_number(layer, "rope_max_wavelength", 1)
        _check_rotary_size(layer)


def check_split(layer):
    """Raises a `ValueError` if a distribution would cut a head in two."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return
    layout = distribution.get_tensor_layout(f"{layer.path}/query/kernel")
    name = layout.axes[1] if layout and len(layout.axes) > 1 else None
    count = Split(distribution.device_mesh).devices(name)
    heads = {n for n, _ in projected_heads(layer).values()}
    if any(n % count for n in heads):
        raise ValueError(
            "The number of devices that heads are split over must divide the "
            f"number of heads. Received: {sorted(heads)} heads for {count} "
            f"devices along the mesh's axis {name!r}, in {layer.path!r}. Use "
            "a mesh with fewer devices on this axis, or other `num_heads`."
        )


def _check_number(layer, name, least):
    value = getattr(layer, name)
    if not isinstance(value, (int, float)) or not value > least:
        raise ValueError(
            f"`{name}` must be a number above {least}. "
            f"Received: {name}={value!r}."
        )


def _check_rotary_size(layer):
    factor = layer.partial_rotary_factor
    if isinstance(factor, (int, float)) and 0 < factor <= 1:
        size = _rotary_size(layer)
        if size and size % 2 == 0:
            return
    raise ValueError(
        "With rotary positions, `partial_rotary_factor` must be a part of "
        "`key_dim`, above 0 and up to 1, that is an even number of features. "
        f"Received: partial_rotary_factor={factor!r}, "
        f"key_dim={layer.key_dim}."
    )


def _rotary_size(layer):
    return int(layer.key_dim * layer.partial_rotary_factor)


def check_rank(layer, query_shape):
    """Raises a `ValueError` if the options need one axis of positions."""
    if len(query_shape) > 3 and has_own_state(layer):
        raise ValueError(
            "`kernel_size` and `rope_max_wavelength` need inputs (batch, "
            f"length, features). Received: shape {tuple(query_shape)}. Leave "
            "them out, or reshape the other axes into the batch."
        )


def check_no_order(layer):
    """Raises a `ValueError` if the options depend on an order of positions."""
    if has_own_state(layer):
        raise ValueError(
            "`summarize` and `read` do not know positions, which short "
            "convolutions and rotary positions need. Received: "
            f"kernel_size={layer.kernel_size}, "
            f"rope_max_wavelength={layer.rope_max_wavelength}. Leave both out."
        )


def has_own_state(layer):
    """Is there more to remember than the mechanism's state?"""
    return (
        layer.kernel_size is not None or layer.rope_max_wavelength is not None
    )


def projected_heads(layer):
    """Dict of the number of heads, and their size, that projections make."""
    queries = layer.num_query_key_heads or layer.num_heads
    values = layer.num_key_value_heads or layer.num_heads
    return {
        "query": (queries, layer.key_dim),
        "key": (min(queries, values), layer.key_dim),
        "value": (values, layer.value_dim),
    }


def transform_options(layer, role):
    """What the `HeadTransform` of a role has to do, by its arguments."""
    heads, _ = projected_heads(layer)[role]
    options = {}
    if layer.kernel_size is not None:
        options["kernel_size"] = layer.kernel_size
    if layer.qk_norm and role != "value":
        options["norm_epsilon"] = layer.layer_norm_epsilon
    if layer.rope_max_wavelength is not None and role != "value":
        options["rotary"] = {
            "max_wavelength": layer.rope_max_wavelength,
            "scaling_factor": layer.rope_scaling_factor,
            "size": _rotary_size(layer),
        }
    if heads < layer.num_heads:
        options["repeats"] = layer.num_heads // heads
    return options


def own_state_spec(layer):
    """The parts of a state beside the mechanism's, by their names.

    `position` counts the visible positions of each row so far.
    """
    spec = {}
    if layer.kernel_size is not None:
        for role, sizes in projected_heads(layer).items():
            spec[f"{role}_convolution"] = convolution_spec(
                layer.kernel_size, *sizes, layer.compute_dtype
            )
    if layer.rope_max_wavelength is not None:
        spec["position"] = keras.KerasTensor((None, 1), dtype="int32")
    return spec
