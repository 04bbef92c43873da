"""Every public name is documented, with an example that runs."""

import doctest
import inspect
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_linattn
from keras_linattn import config
from keras_linattn import convert
from keras_linattn import distribution
from keras_linattn import export
from keras_linattn import layers
from keras_linattn import mechanisms
from keras_linattn import models
from keras_linattn import testing

pytestmark = pytest.mark.once
MODULES = (
    config,
    convert,
    distribution,
    export,
    layers,
    mechanisms,
    models,
    testing,
)
ROOT = pathlib.Path(__file__).parents[1]
# The few names a user starts with; the namespaces carry everything.
AT_THE_TOP = {
    "distill",
    "linearize",
    "LinearMultiHeadAttention",
    "LinearSelfAttention",
    "LinearTransformerDecoder",
    "LinearTransformerEncoder",
}
PUBLIC = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if not name.startswith("_")
    and (inspect.isclass(value) or inspect.isfunction(value))
}


def test_the_top_level_carries_the_few_names_of_a_start():
    names = {
        name
        for name in dir(keras_linattn)
        if inspect.isclass(getattr(keras_linattn, name))
        or inspect.isfunction(getattr(keras_linattn, name))
    }
    assert {name for name in names if name[0] != "_"} == AT_THE_TOP
    for module in MODULES:
        name = module.__name__.removeprefix("keras_linattn.")
        assert getattr(keras_linattn, name) is module


def test_the_namespaces_carry_the_rest():
    wanted = {
        "mechanisms.KernelMechanism",
        "mechanisms.Mechanism",
        "mechanisms.RecurrentMechanism",
        "mechanisms.Traits",
        "models.TextClassifier",
        "models.VisionTransformer",
        "mechanisms.get",
        "mechanisms.available",
        "mechanisms.register",
        "distribution.SequenceParallel",
        "distribution.layout_map",
        "export.export_saved_model",
        "export.serving_directory",
        "models.AudioClassifier",
        "models.CausalLM",
        "testing.check_mechanism",
    }
    assert {f"keras_linattn.{name}" for name in wanted} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_example_runs(name):
    value = PUBLIC[name]
    text = inspect.getdoc(value)
    assert text, f"{name} has no docstring"
    examples = doctest.DocTestParser().get_doctest(
        text,
        {"keras": keras, "np": np, **vars(inspect.getmodule(value))},
        name,
        None,
        None,
    )
    assert examples.examples, f"{name} has no example"
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(examples, out=said.append)
    assert runner.failures == 0, "".join(said)


def described(value):
    """Names under `Args:` of the docstring."""
    text = inspect.getdoc(value)
    section = text.partition("\nArgs:\n")[2]
    names = []
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        if line.startswith("    ") and line[4] not in " *":
            names.append(line.strip().partition(":")[0])
    return names


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_described(name):
    """By name, or together in the sentence about `**kwargs`."""
    value = PUBLIC[name]
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    if isinstance(value, type) and issubclass(value, BaseException):
        return
    base = mechanisms.Mechanism
    inherited = (keras.layers.Layer.__init__, base.__init__)
    if value is not base and getattr(value, "__init__", None) in inherited:
        return  # only what the base describes
    wanted = {
        p.name
        for p in inspect.signature(value).parameters.values()
        if p.kind not in kinds
    }
    if (
        "*"
        in "".join(str(p) for p in inspect.signature(value).parameters.values())
        and not wanted
    ):
        return
    assert wanted <= set(described(value)), name


CALLED_BY_USERS = {"__init__", "call", "from_config", "get_config"}


def signatures(value):
    """The functions that the reference shows of a public name, by name.

    Of a class: its constructor, and the methods that are documented or that
    Keras documents.
    """
    if not inspect.isclass(value):
        return {value.__qualname__: value}
    found = {}
    for cls in value.__mro__:
        if cls.__module__.partition(".")[0] != "keras_linattn":
            continue
        for name, member in vars(cls).items():
            member = getattr(member, "__func__", member)
            member = getattr(member, "fget", None) or member
            member = getattr(member, "func", member)  # a cached property
            shown = name[0] != "_" and member.__doc__
            if inspect.isfunction(member) and (
                shown or name in CALLED_BY_USERS
            ):
                found[f"{cls.__qualname__}.{name}"] = member
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_every_signature_is_annotated(name):
    missing = []
    for path, function in signatures(PUBLIC[name]).items():
        signature = inspect.signature(function)
        missing += [
            f"{path}({parameter.name})"
            for parameter in signature.parameters.values()
            if parameter.annotation is parameter.empty
            and parameter.name not in ("self", "cls")
        ]
        if not path.endswith("__init__"):
            if signature.return_annotation is signature.empty:
                missing.append(f"{path} -> ?")
    assert not missing


def test_annotations_agree_with_the_code():
    """Needs about 5 seconds, and next to none while nothing changes."""
    command = [sys.executable, "-m", "mypy"]  # set up in pyproject.toml
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
