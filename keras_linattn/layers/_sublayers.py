"""What composite layers need for sublayers: policies, copies, mechanisms.

`quantize` gives each Dense or EinsumDense a policy of its own. A composite
layer writes them into its config as a `DTypePolicyMap` keyed by the sublayer's
name and hands each its own on reload; without that, a quantized layer's file
does not load.
"""

import string

import keras

from keras_linattn import mechanisms


def sublayer_policy(policy, name):
    """The dtype policy that a layer's `policy` holds for a sublayer.

    Args:
        policy: the dtype policy of the layer around it.
        name: str, the sublayer's name.

    Returns:
        A dtype policy; a `DTypePolicyMap` if sublayers of `name` have theirs.
    """
    if not isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        return policy
    nested = {
        key[len(name) + 1 :]: value
        for key, value in policy.items()
        if key.startswith(f"{name}/")
    }
    if nested:
        return keras.dtype_policies.DTypePolicyMap(
            default_policy=policy.default_policy, policy_map=nested
        )
    return policy[name] if name in policy else policy.default_policy


def policy_for_config(base, sublayers):
    """What `get_config()["dtype"]` must hold for a layer to be rebuilt.

    Args:
        base: the dtype policy of the layer.
        sublayers: iterable of its sublayers, built or not.

    Returns:
        The serialised policy of the layer, or a serialised `DTypePolicyMap`
        if a sublayer's policy differs from it.
    """
    if isinstance(base, keras.dtype_policies.DTypePolicyMap):
        base = base.default_policy
    policies = {}
    for sublayer in sublayers:
        # From the config, since a composite's own policies are there alone.
        own = keras.dtype_policies.get(sublayer.get_config()["dtype"])
        if isinstance(own, keras.dtype_policies.DTypePolicyMap):
            own = {f"{sublayer.name}/{k}": v for k, v in own.items()}
        else:
            own = {sublayer.name: own}
        policies.update({k: v for k, v in own.items() if v.name != base.name})
    if policies:
        base = keras.dtype_policies.DTypePolicyMap(
            default_policy=base, policy_map=policies
        )
    return keras.saving.serialize_keras_object(base)


def projection_equation(free_axes, bound_axes, output_axes):
    """Einsum over the last `bound_axes` axes, and the letters of the output."""
    letters = iter(string.ascii_lowercase)
    free, bound, out = (
        "".join(next(letters) for _ in range(count))
        for count in (free_axes, bound_axes, output_axes)
    )
    return f"{free}{bound},{bound}{out}->{free}{out}", out


def clone_initializer(initializer):
    """A copy, since an initializer draws the same values at each call."""
    return initializer.__class__.from_config(initializer.get_config())


def serialize_mechanism(mechanism):
    """The mechanism's config, which restores sharing when a file is loaded.

    Keras marks the second use of a shared object with an id, but not the
    first, so that the object would come back twice.
    """
    config = keras.saving.serialize_keras_object(mechanism)
    if mechanism.num_hosts > 1:
        config["shared_object_id"] = id(mechanism)
    return config


def with_mechanism(config):
    """The config with its mechanism made, ready for the constructor.

    Inside the constructor, Keras would bury the error about an unknown
    mechanism in a `TypeError` that prints the whole config.
    """
    mechanism = config.get("mechanism")
    if isinstance(mechanism, dict) and "class_name" in mechanism:
        config = {**config, "mechanism": mechanisms.get(mechanism)}
    return config
