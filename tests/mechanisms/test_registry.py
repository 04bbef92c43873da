"""The registry: by name, dict, class or object."""

import keras
import numpy as np
import pytest

from keras_linattn import LinearSelfAttention
from keras_linattn import mechanisms
from keras_linattn.mechanisms import _registry


def test_available_is_sorted_and_each_name_is_its_module():
    names = mechanisms.available()
    assert names == sorted(names)
    for name in names:
        mechanism = mechanisms.get(name)
        assert mechanisms.name_of(mechanism) == name
        assert type(mechanism).__module__.rpartition(".")[2] == name


def test_get_takes_name_dict_class_object_and_config():
    for identifier in (
        "linformer",
        {"name": "linformer", "projection_dim": 3},
        mechanisms.Linformer,
        mechanisms.Linformer(projection_dim=3),
        keras.saving.serialize_keras_object(mechanisms.Linformer()),
    ):
        found = mechanisms.get(identifier)
        assert type(found) is mechanisms.Linformer
    one = mechanisms.Linformer()
    assert mechanisms.get(one) is one
    found = mechanisms.get({"name": "linformer", "projection_dim": 3})
    assert found.projection_dim == 3


def test_get_passes_defaults_that_the_dict_may_override():
    found = mechanisms.get("softmax", dtype="bfloat16")
    assert found.compute_dtype == "bfloat16"
    found = mechanisms.get(
        {"name": "softmax", "dtype": "float16"}, dtype="bfloat16"
    )
    assert found.compute_dtype == "float16"


def test_get_names_what_exists():
    with pytest.raises(ValueError, match="Unknown mechanism 'linearformer'. "):
        mechanisms.get("linearformer")
    with pytest.raises(ValueError, match="Available: .*linformer, .*softmax"):
        mechanisms.get({"name": "linearformer"})
    for identifier in (None, 3, {"projection_dim": 3}, keras.layers.Dense):
        with pytest.raises(TypeError, match="Received: .* of type"):
            mechanisms.get(identifier)


def test_register_refuses_a_taken_name_and_what_is_no_mechanism():
    with pytest.raises(ValueError, match="'softmax' is taken by `Softmax`"):

        @mechanisms.register("softmax")
        class Other(mechanisms.Mechanism):
            pass

    assert mechanisms.get("softmax").__class__ is mechanisms.Softmax
    with pytest.raises(TypeError, match="decorate a subclass of `Mechanism`"):
        mechanisms.register("dense")(keras.layers.Dense)


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("linear_tranformer", "Did you mean 'linear_transformer'"),
        ({"name": "preformer"}, "Did you mean 'performer'"),
        (
            {"name": "linformer", "sequence_lenght": 8},
            "no argument 'sequence_lenght'. Did you mean 'sequence_length'"
            ".*It takes projection_dim, sequence_length, sharing",
        ),
        ({"name": "softmax", "zzz": 1}, "It takes .*dtype"),
    ],
    ids=str,
)
def test_errors_name_the_nearest(identifier, message):
    with pytest.raises(ValueError, match=message):
        mechanisms.get(identifier)


def define(qualname, module="__main__"):
    """A class as it is after another run of the cell that defines it."""
    cls = type("Mine", (mechanisms.Softmax,), {"__module__": module})
    cls.__qualname__ = qualname
    return mechanisms.register("mine")(cls)


def test_class_defined_again_replaces_the_older():
    one, other = define("Mine"), define("Mine")
    assert one is not other
    assert type(mechanisms.get("mine")) is other
    config = keras.saving.serialize_keras_object(one())
    assert config["registered_name"] == "Custom>Mine"
    assert type(mechanisms.get(config)) is other
    for qualname, module in (("Ours.Mine", "__main__"), ("Mine", "other")):
        with pytest.raises(ValueError, match="'mine' is taken by `Mine`"):
            define(qualname, module)


def test_package_does_not_depend_on_where_a_class_is_defined():
    names = {mechanisms.available()[0]: "keras_linattn"}
    define("Mine", "a_package.a_module")
    names["mine"] = "Custom"
    for name, package in names.items():
        cls = type(mechanisms.get(name))
        registered = keras.saving.get_registered_name(cls)
        assert registered == f"{package}>{cls.__name__}"


def test_file_with_an_unknown_mechanism(tmp_path):
    @mechanisms.register("of_another_package", package="another")
    class OfAnotherPackage(mechanisms.Mechanism):
        def attend(self, query, key, value, **unused):
            return query

    model = keras.Sequential(
        [
            keras.Input((None, 8)),
            LinearSelfAttention(2, 4, mechanism="of_another_package"),
        ]
    )
    path = tmp_path / "model.keras"
    model.save(path)
    x = np.ones((1, 3, 8), "float32")
    loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), loaded.predict(x, verbose=0)
    )
    registered = "another>OfAnotherPackage"
    keras.saving.get_custom_objects().pop(registered)
    _registry._CLASSES.pop("of_another_package")
    with pytest.raises(
        ValueError,
        match=f"Unknown mechanism '{registered}'. .*Available: .*"
        "import its module",
    ):
        keras.saving.load_model(path)


def test_mechanism_without_formula_says_so():
    mechanism = mechanisms.Mechanism()
    x = np.ones((1, 1, 2, 2), "float32")
    with pytest.raises(NotImplementedError, match="must define `attend`"):
        mechanism(x, x, x)
    with pytest.raises(ValueError, match="has no recurrent form"):
        mechanism.initial_state(1, 1, 2, 2)
    with pytest.raises(ValueError, match="has no recurrent form"):
        mechanism.step(None, x, x, x)


@pytest.mark.parametrize(
    ("identifier", "added"),
    [
        ({"name": "linformer"}, {"sequence_length": 6}),
        ({"name": "focused", "kernel_size": 3}, {"grid": (2, 3)}),
        ({"name": "lara", "num_landmarks": 9}, {"grid": (2, 3)}),
        ({"name": "xca"}, {}),
        ({"name": "linformer", "sequence_length": 8}, {}),
        ({"name": "polaformer", "grid": None}, {}),
        # These cannot use a grid with their other arguments.
        ({"name": "focused", "kernel_size": None}, {}),
        ({"name": "agent", "num_landmarks": 5}, {}),
        ({"name": "imhsa", "num_landmarks": 5}, {}),
        ({"name": "lara", "num_landmarks": 5}, {}),
    ],
    ids=str,
)
def test_input_sizes_go_to_those_that_ask(identifier, added):
    sizes = {"sequence_length": 6, "grid": (2, 3)}
    found = mechanisms.with_input_sizes(identifier, **sizes)
    assert found == {**identifier, **added}
    mechanisms.get(found)


def test_input_sizes_of_names_and_classes():
    expected = {"name": "focused", "grid": (2, 3)}
    for identifier in ("focused", mechanisms.Focused):
        found = mechanisms.with_input_sizes(identifier, grid=(2, 3))
        assert found == expected
        assert mechanisms.with_input_sizes(identifier) is identifier
    with pytest.raises(ValueError, match="Unknown mechanism 'quadratic'"):
        mechanisms.with_input_sizes("quadratic", grid=(2, 3))


def test_input_sizes_leave_objects():
    linformer = mechanisms.Linformer()
    config = keras.saving.serialize_keras_object(linformer)
    for identifier in (linformer, config):
        found = mechanisms.with_input_sizes(identifier, sequence_length=6)
        assert found is identifier
