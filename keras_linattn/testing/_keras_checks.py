"""Checks of what Keras expects of a layer: config, files, errors."""

import pathlib
import tempfile

import keras
import numpy as np
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.layers import LinearSelfAttention
from keras_linattn.mechanisms._base import constructor_arguments
from keras_linattn.testing._backends import quick
from keras_linattn.testing._subject import always
from keras_linattn.testing._subject import assert_close
from keras_linattn.testing._subject import require
from keras_linattn.testing._subject import run


def uncovered_arguments(subjects):
    """Constructor arguments that no configuration moves off their default.

    `grid` has checks of its own, since it fixes the length.
    """
    covered = {"grid"} if subjects[0].traits.grid else set()
    return sorted(
        name
        for name, default in constructor_arguments(subjects[0].cls).items()
        if name not in covered
        and all(s.config.get(name, default) == default for s in subjects)
    )


def check_config_is_the_constructor(subject):
    """Each argument is in the config, with the value that it was given."""
    config = subject.cls(**subject.config).get_config()
    missing = set(constructor_arguments(subject.cls)) - set(config)
    require(not missing, f"missing from the config: {sorted(missing)}")
    for name, value in subject.config.items():
        require(config[name] == value, f"{name}: {config[name]!r}")
    revived = subject.cls.from_config(config)
    require(revived.get_config() == config, "the revived config differs")
    if mechanisms.name_of(subject.cls) is not None:
        found = mechanisms.get(keras.saving.serialize_keras_object(revived))
        require(found.get_config() == config, "the registry's config differs")


def check_same_seed_same_result(subject):
    """Two objects of one config and one global seed are equal."""
    inputs = subject.inputs()
    outputs = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        mechanism = subject.build(inputs, randomize=False)
        outputs += [run(mechanism, inputs), run(mechanism, inputs)]
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


def check_saves_and_loads(subject):
    """A `.keras` file and `clone_model` keep the config and the weights."""
    mechanism = subject.cls(**subject.config)
    model = keras.Sequential(
        [
            keras.Input((6, 8)),
            LinearSelfAttention(
                2, 4, mechanism=mechanism, causal=mechanism.traits.forms[0]
            ),
        ]
    )
    rng = np.random.default_rng(0)
    model.set_weights(
        [w + 0.1 * rng.standard_normal(w.shape) for w in model.get_weights()]
    )
    x = rng.standard_normal((2, 6, 8), dtype="float32")
    expected = quick(model, [x])
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        model.save(path)
        loaded = keras.saving.load_model(path)
    for copy in (clone, loaded):
        np.testing.assert_array_equal(quick(copy, [x]), expected)
        kept = copy.layers[-1].mechanism.get_config()
        require(kept == mechanism.get_config(), f"config {kept}")


def check_refuses_heads_that_do_not_fit(subject):
    """Rank, last dimensions and lengths, each with a message of its own."""
    inputs = subject.inputs()
    mechanism = subject.build(inputs)
    query, key, value = inputs.query, inputs.key, inputs.value
    for heads, rule in (
        ((query[0], key[0], value[0]), "rank 4"),
        ((query[..., :3], key, value), "same last dimension"),
        ((query, key, value[:, :, :3]), "same length"),
    ):
        _expect_error(mechanism, heads, rule)
    if not subject.traits.cross:
        heads = (query[:, :, :3], key, value)
        _expect_error(mechanism, heads, "same length")


def check_refuses_too_long_an_input(subject):
    mechanism = subject.build(subject.inputs())
    longer = subject.inputs(batch=1, queries=8192, keys=8192)
    heads = (longer.query, longer.key, longer.value)
    _expect_error(mechanism, heads, "length")
    symbols = [keras.Input((2, 8192, 4)) for _ in heads]
    _expect_error(mechanism, symbols, "length")
    shorter = subject.inputs(queries=4, keys=4)
    assert_close(
        run(mechanism, shorter),
        subject.expected(mechanism, shorter),
        subject.traits.tolerance,
    )


def check_refuses_scores_that_are_not_there(subject):
    """When a model is made too, not only when its first batch arrives."""
    mechanism = subject.cls(**subject.config)
    layer = LinearSelfAttention(
        2, 4, mechanism=mechanism, causal=mechanism.traits.forms[0]
    )
    layer.build((1, 6, 8))

    def scores(x):
        return layer(x, return_attention_scores=True)

    symbol, x = keras.Input((6, 8)), np.ones((1, 6, 8), "float32")
    for call in (lambda: scores(symbol), lambda: quick(scores, [x])):
        try:
            call()
        except ValueError as error:
            rule = "no equivalent attention matrix"
            require(rule in str(error), f"no {rule!r} in: {error}")
        else:
            raise AssertionError(
                "the traits exclude attention scores, but a call returns them"
            )


def _expect_error(mechanism, heads, rule):
    shapes = [x.shape for x in heads]
    try:
        mechanism(
            *(
                x
                if keras.backend.is_keras_tensor(x)
                else ops.convert_to_tensor(x)
                for x in heads
            ),
            causal=mechanism.traits.forms[0],
        )
    except ValueError as error:
        for part in (rule, "Received"):
            require(part in str(error), f"no {part!r} in: {error}")
    else:
        raise AssertionError(f"a call accepts heads of shapes {shapes}")


CHECKS = {
    check_config_is_the_constructor: always,
    check_same_seed_same_result: always,
    check_saves_and_loads: always,
    check_refuses_heads_that_do_not_fit: always,
    check_refuses_too_long_an_input: lambda t: t.needs_length,
    check_refuses_scores_that_are_not_there: lambda t: not t.explicit,
}
