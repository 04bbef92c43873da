"""What composite layers need for sublayers: policies, copies, mechanisms.

`quantize` gives each Dense or EinsumDense a policy of its own. A composite
layer writes them into its config as a `DTypePolicyMap` keyed by the sublayer's
name and hands each its own on reload; without that, a quantized layer's file
does not load.
"""

import string
import uuid
import weakref

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


def variable_options(layer):
    """Config of the initializers, regularizers and constraints of a layer."""
    modules = {
        "initializer": keras.initializers,
        "regularizer": keras.regularizers,
        "constraint": keras.constraints,
    }
    return {
        f"{role}_{kind}": module.serialize(getattr(layer, f"{role}_{kind}"))
        for role in ("kernel", "bias")
        for kind, module in modules.items()
    }


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


def serialize_mechanism(mechanism, host):
    """The mechanism's config, with which layers that share it share one again.

    Args:
        mechanism: `Mechanism`.
        host: str, which of its layers this is for.
    """
    config = keras.saving.serialize_keras_object(mechanism)
    if mechanism.num_hosts > 1:
        if mechanism not in _IDS:
            _IDS[mechanism] = uuid.uuid4().int
        config["shared_object_id"] = _IDS[mechanism]
        config["shared_by"] = host
    return config


_IDS = weakref.WeakKeyDictionary()  # of mechanisms, the same in no two
_RESTORED = weakref.WeakValueDictionary()  # mechanisms, by those ids
_HOSTS = weakref.WeakKeyDictionary()  # of restored mechanisms, so far


def restore_mechanism(config):
    """The mechanism of a dict from `serialize_mechanism`.

    Keras restores sharing within files only. Elsewhere, as in `clone_model`,
    each layer comes back by itself: it joins those that shared its mechanism,
    until one of them comes back once more, for another copy.
    """
    number, host = (config.get(k) for k in ("shared_object_id", "shared_by"))
    if host is None or _keras_shares():
        return mechanisms.get(config)
    mechanism = _RESTORED.get(number)
    if mechanism is None or host in _HOSTS[mechanism]:
        mechanism = _RESTORED[number] = mechanisms.get(config)
        _HOSTS[mechanism] = set()
    _HOSTS[mechanism].add(host)
    return mechanism


def _keras_shares():
    """Does Keras make one object of two configs with one id, as in a file?"""
    config = keras.saving.serialize_keras_object(keras.initializers.Zeros())
    config["shared_object_id"] = "keras_linattn"
    one, other = (
        keras.saving.deserialize_keras_object(config) for _ in range(2)
    )
    return one is other


def with_mechanism(config):
    """The config with its mechanisms made, ready for the constructor.

    Inside the constructor, Keras would bury the error about an unknown
    mechanism in a `TypeError` that prints the whole config.
    """
    return {
        name: restore_mechanism(value)
        if name in ("mechanism", "cross_mechanism")
        and isinstance(value, dict)
        and "class_name" in value
        else value
        for name, value in config.items()
    }
