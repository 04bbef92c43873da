"""A mechanism under test, with what the checks need of it."""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_linattn import mechanisms
from keras_linattn.mechanisms import Mechanism
from keras_linattn.mechanisms import Traits
from keras_linattn.testing._backends import call
from keras_linattn.testing._inputs import Inputs
from keras_linattn.testing._inputs import random_inputs


@dataclasses.dataclass(frozen=True)
class Subject:
    """One class of mechanism in one configuration, and its reference.

    Args:
        cls: the class, a subclass of `Mechanism`.
        config: dict, constructor arguments.
        reference: callable `(mechanism, weights, query, key, value, key_mask,
            query_mask, causal)` on float64 NumPy arrays that returns the
            output `[B, H, T, V]`. `weights` maps paths within the mechanism
            to float64 arrays.

    Example:

    >>> from keras_linattn import testing
    >>> subject = next(iter(testing.subjects("softmax")))
    >>> subject.cls.__name__, subject.config
    ('Softmax', {})
    """

    cls: type
    config: dict
    reference: Callable

    @functools.cached_property
    def traits(self) -> Traits:
        """The traits in this configuration."""
        return self.cls(**self.config).traits

    def inputs(self, **sizes: Any) -> Inputs:
        """`random_inputs`, of sizes that the traits allow."""
        if self.traits.equal_dims:
            sizes["value_dim"] = sizes.get("key_dim", 4)
        return random_inputs(**sizes)

    def build(
        self,
        inputs: Inputs,
        seed: int = 0,
        dtype: str = "float32",
        randomize: bool = True,
    ) -> Mechanism:
        """A mechanism built for `inputs`.

        Trainable weights are moved away from their initial values, since
        zeros and identities hide errors.
        """
        mechanism = self.cls(**self.config, dtype=dtype)
        mechanism.build(*inputs.shapes)
        mechanism.built = True
        if randomize:
            rng = np.random.default_rng(seed + 1)
            for variable in mechanism.trainable_variables:
                noise = 0.3 * rng.standard_normal(variable.shape)
                start = ops.convert_to_numpy(variable.value)
                variable.assign((start + noise).astype("float32"))
        return mechanism

    def shared(self, inputs: Inputs) -> Mechanism:
        """Returns `build(inputs)`, made once for checks that leave it as it is.

        What JAX compiled for its calls serves the next check as well.
        """
        if inputs.shapes not in self._shared:
            # The same weights whichever check is the first to ask.
            keras.utils.set_random_seed(0)
            self._shared[inputs.shapes] = self.build(inputs)
        return self._shared[inputs.shapes]

    @functools.cached_property
    def _shared(self):
        return {}

    def expected(
        self,
        mechanism: Mechanism,
        inputs: Inputs,
        causal: bool | None = None,
        weights: dict[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """The reference's float64 output, in the first form by default."""
        if causal is None:
            causal = self.traits.forms[0]
        heads = (inputs.query, inputs.key, inputs.value)
        return self.reference(
            mechanism,
            weights_of(mechanism) if weights is None else weights,
            *(x.astype("float64") for x in heads),
            *inputs.masks(),
            causal,
        )


def subjects(
    mechanism: str | type,
    reference: Callable | None = None,
    configs: Iterable[dict] | None = None,
) -> list[Subject]:
    """The configurations in which a mechanism is checked.

    Args:
        mechanism: name, or subclass of `Mechanism`.
        reference: callable, see `Subject`. Defaults to `None`: the one in
            `keras_linattn.testing.references`, under the mechanism's name.
        configs: iterable of dicts of constructor arguments. Defaults to
            `None`: the `CONFIGS` beside that reference; `({},)` for a
            reference of your own.

    Returns:
        List of `Subject`.

    Raises:
        ValueError: if the mechanism is unknown, or has no reference.

    Example:

    >>> from keras_linattn import testing
    >>> [s.config for s in testing.subjects("modified_linformer")]
    [{}, {'reading': 'projected'}]
    """
    cls = mechanism
    if not (isinstance(cls, type) and issubclass(cls, Mechanism)):
        cls = type(mechanisms.get(mechanism))
    if reference is None:
        module = _reference_module(cls)
        reference = module.attend
        configs = module.CONFIGS if configs is None else configs
    configs = ({},) if configs is None else configs
    return [Subject(cls, config, reference) for config in configs]


def _reference_module(cls):
    name = mechanisms.name_of(cls)
    path = f"{__package__}.references.{name}"
    if name is None or importlib.util.find_spec(path) is None:
        raise ValueError(
            "A mechanism is checked against a reference in NumPy float64. "
            f"Received: `{cls.__name__}`, which has none in "
            "`keras_linattn.testing.references`. Pass `reference=`."
        )
    return importlib.import_module(path)


def weights_of(mechanism):
    """Float64 arrays of the weights by their path within the mechanism."""
    return {
        path_within(mechanism, variable): ops.convert_to_numpy(
            variable.value
        ).astype("float64")
        for variable in mechanism.variables
        if "seed_generator" not in variable.path
    }


def path_within(mechanism, variable):
    """`"projection"`, or `"dense/kernel"` for a weight of a sublayer."""
    return variable.path.removeprefix(f"{mechanism.name}/")


def run(mechanism, inputs, causal=None, **options):
    """The mechanism's output as a NumPy array, in its first form by default."""
    if causal is None:
        causal = mechanism.traits.forms[0]
    return call(
        mechanism,
        (inputs.query, inputs.key, inputs.value),
        key_mask=inputs.key_mask,
        query_mask=inputs.query_mask,
        causal=causal,
        **options,
    )


def visible_rows(output, inputs):
    """The output with 0 in the rows of hidden queries, which mean nothing."""
    query_mask = inputs.masks()[1]
    return np.where(query_mask[:, None, :, None], output, 0)


def compare_with_reference(
    subject: Subject, inputs: Inputs, causal: bool | None = None
) -> None:
    """Raises an `AssertionError` unless output and reference agree.

    Args:
        subject: `Subject`.
        inputs: `Inputs`.
        causal: bool or `None`, whether to compare the causal forms. Defaults
            to `None`: only where there is no other.

    Raises:
        AssertionError: if they differ by more than the trait `tolerance`, or
            if shape or dtype are not those of the query and the value.

    Example:

    >>> from keras_linattn import testing
    >>> subject = testing.subjects("linear_transformer")[0]
    >>> testing.compare_with_reference(
    ...     subject, testing.random_inputs(visible=0.7), causal=True)
    """
    mechanism = subject.shared(inputs)
    output = run(mechanism, inputs, causal)
    shape = (*inputs.query.shape[:3], inputs.value.shape[3])
    require(output.shape == shape, f"shape {output.shape}, not {shape}")
    require(output.dtype == np.float32, f"dtype {output.dtype}, not float32")
    computed = tuple(mechanism.compute_output_shape(*inputs.shapes))
    require(computed == shape, f"computed shape {computed}, not {shape}")
    assert_close(
        visible_rows(output, inputs),
        visible_rows(subject.expected(mechanism, inputs, causal), inputs),
        subject.traits.tolerance,
    )


def assert_close(actual, expected, tolerance=1e-5, message=""):
    """`|actual - expected| <= tolerance * (1 + |expected|)`, NaN equal none."""
    np.testing.assert_allclose(
        actual,
        expected,
        rtol=tolerance,
        atol=tolerance,
        equal_nan=False,
        err_msg=message,
    )


def require(condition, message):
    """Raises an `AssertionError` with `message` unless `condition` holds."""
    if not condition:
        raise AssertionError(message)


def always(traits):
    """Calls for a check whatever the traits are, in a table of checks."""
    return True
