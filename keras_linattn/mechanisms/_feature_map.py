"""A feature map as an argument: a name, a registered callable, or a layer."""

import keras

# The activations of Keras that are negative nowhere.
NAMES = (
    "exponential",
    "hard_sigmoid",
    "relu",
    "relu6",
    "sigmoid",
    "softmax",
    "softplus",
    "sparse_plus",
    "sparse_sigmoid",
    "sparsemax",
    "squareplus",
)


def get_feature_map(identifier):
    """A callable on heads; `None` stays.

    Args:
        identifier: a name in `NAMES` or of a registered callable; a callable
            that is registered with Keras; a `keras.layers.Layer`; or the dict
            of `keras.saving.serialize_keras_object` of one of them.

    Raises:
        ValueError: if the name is unknown, or the callable not registered.
        TypeError: if the identifier is of another type.
    """
    if identifier is None or isinstance(identifier, keras.layers.Layer):
        return identifier
    if isinstance(identifier, dict):
        return keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, str):
        return _named(identifier)
    if not callable(identifier) or isinstance(identifier, type):
        raise TypeError(
            "`feature_map` must be `None`, a name, a callable or a "
            f"`keras.layers.Layer`. Received: feature_map={identifier!r} of "
            f"type {type(identifier).__name__}."
        )
    if not _comes_back(identifier):
        raise ValueError(
            "A callable as `feature_map` must be registered with Keras, so "
            "that models with it load. Received: "
            f"feature_map={identifier!r}. Decorate it with "
            "`@keras.saving.register_keras_serializable()`, or pass the name "
            "of an activation or a `keras.layers.Layer`."
        )
    return identifier


def _named(name):
    if name in NAMES:
        return keras.activations.get(name)
    registered = keras.saving.get_registered_object(name)
    if registered is None:
        raise ValueError(
            "`feature_map` must name an activation that is negative nowhere. "
            f"Received: feature_map={name!r}. Use one of {', '.join(NAMES)}, "
            "or pass a callable that is registered with Keras, or a "
            "`keras.layers.Layer`. The default, `None`, is elu(x) + 1."
        )
    return get_feature_map(registered)


def _comes_back(function):
    """Does Keras find it again, in safe mode too?"""
    if getattr(function, "__name__", None) == "<lambda>":
        return False
    try:
        config = keras.saving.serialize_keras_object(function)
        found = keras.saving.deserialize_keras_object(config)
    except (TypeError, ValueError):
        return False
    if hasattr(function, "get_config"):
        return type(found) is type(function)
    return found is function


def serialize_feature_map(feature_map):
    """A name where there is one, a dict otherwise; `None` stays."""
    if feature_map is None:
        return None
    if isinstance(feature_map, keras.layers.Layer):
        return keras.saving.serialize_keras_object(feature_map)
    return keras.activations.serialize(feature_map)


def apply_feature_map(feature_map, x):
    """phi of heads, `[B, H, T, D]` to `[B, H, T, R]`.

    Raises:
        ValueError: if it changes another axis than the last.
    """
    features = feature_map(x)
    kept = zip(x.shape[:3], features.shape[:3])
    if len(features.shape) != 4 or any(
        size != other
        for size, other in kept
        if isinstance(size, int) and isinstance(other, int)
    ):
        raise ValueError(
            "A feature map must change only the last axis of heads "
            f"`[B, H, T, D]`. Received: features of shape "
            f"{tuple(features.shape)} for heads of shape {tuple(x.shape)}. "
            "Return features `[B, H, T, R]`."
        )
    return features


def count_features(feature_map, num_heads, key_dim):
    """The number of features R of heads of `key_dim`.

    Args:
        feature_map: callable or `keras.layers.Layer`.
        num_heads: int or `None`, H.
        key_dim: int, D.

    Raises:
        ValueError: if it cannot be known before the feature map is called.
    """
    layer = feature_map
    if not isinstance(layer, keras.layers.Layer):
        layer = keras.layers.Lambda(feature_map)  # it can tell its shapes
    shape = (None, num_heads, None, key_dim)
    try:
        count = layer.compute_output_shape(shape)[-1]
    except (NotImplementedError, ValueError):
        count = None
    if count is None:
        raise ValueError(
            "The number of features must be known before a call, because it "
            f"is a size of the state. Received: feature_map={feature_map!r}, "
            f"whose output has an unknown size for heads of shape {shape}. "
            "Use a layer whose `compute_output_shape` returns it."
        )
    return count
