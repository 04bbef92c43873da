"""Which checks a mechanism must pass, and the one call that runs them."""

from collections.abc import Callable
from collections.abc import Iterable

from keras_linattn.mechanisms import Traits
from keras_linattn.testing import _causal_checks
from keras_linattn.testing import _gradient_checks
from keras_linattn.testing import _graph_checks
from keras_linattn.testing import _grid_checks
from keras_linattn.testing import _keras_checks
from keras_linattn.testing import _mask_checks
from keras_linattn.testing import _output_checks
from keras_linattn.testing import _packing_checks
from keras_linattn.testing import _precision_checks
from keras_linattn.testing import _scale_checks
from keras_linattn.testing._keras_checks import uncovered_arguments
from keras_linattn.testing._subject import subjects

_MODULES = (
    _output_checks,
    _mask_checks,
    _gradient_checks,
    _causal_checks,
    _packing_checks,
    _precision_checks,
    _scale_checks,
    _graph_checks,
    _grid_checks,
    _keras_checks,
)

# What no argument of the constructor changes: one configuration shows it.
# `check_mechanism` asks all of them all the same.
OF_ONE_CONFIG = (
    _causal_checks.check_refuses_causal,
    _causal_checks.check_refuses_states_that_are_no_numbers,
    _causal_checks.check_refuses_to_see_the_future,
    _causal_checks.check_state_dtype,
    _graph_checks.check_compiles,
    _gradient_checks.check_gradients_without_masks,
    _graph_checks.check_no_quadratic_array,
    _graph_checks.check_refuses_lengths_at_run_time,
    _graph_checks.check_symbolic_inputs,
    _grid_checks.check_grid_compiles,
    _grid_checks.check_grid_refuses_another_length,
    _keras_checks.check_refuses_heads_that_do_not_fit,
    _keras_checks.check_refuses_scores_that_are_not_there,
    _keras_checks.check_refuses_too_long_an_input,
    _keras_checks.check_saves_and_loads,
    _mask_checks.check_empty_inputs_give_the_empty_result,
    _output_checks.check_inputs_are_unchanged,
    _output_checks.check_more_shapes_match_reference,
    _precision_checks.check_half_precision,
)


def checks_for(traits: Traits) -> list[Callable]:
    """The checks that traits call for.

    Args:
        traits: `Traits`.

    Returns:
        List of functions that take a `Subject` and raise an `AssertionError`.

    Example:

    >>> from keras_linattn import testing
    >>> from keras_linattn.mechanisms import Traits
    >>> names = [c.__name__ for c in testing.checks_for(Traits(causal=False))]
    >>> "check_refuses_causal" in names, "check_future_is_invisible" in names
    (True, False)
    """
    return [
        check
        for module in _MODULES
        for check, wanted in module.CHECKS.items()
        if wanted(traits)
    ]


def check_mechanism(
    mechanism: str | type,
    reference: Callable | None = None,
    configs: Iterable[dict] | None = None,
) -> None:
    """Runs the conformance suite on a mechanism, under the current backend.

    Args:
        mechanism: name, or subclass of `Mechanism`.
        reference: callable, the reference in NumPy float64; see `Subject`.
            Defaults to `None`: the one that this package has for the
            mechanism's name.
        configs: iterable of dicts, the constructor arguments to check with.
            Together they must give each argument a value other than its
            default. Defaults to `None`: the reference's own, or `({},)`.

    Raises:
        AssertionError: if checks fail; its message names each and its reason.
            A check that the traits excuse as a known failure must fail.
        ValueError: if the mechanism is unknown, or has no reference.

    Example:

    >>> from keras_linattn import testing
    >>> testing.check_mechanism("linear_transformer")

    Source: the estimator checks of scikit-learn are the model.
    """
    failures = []
    every = subjects(mechanism, reference, configs)
    uncovered = uncovered_arguments(every)
    if uncovered:
        failures.append(f"no config gives a value of its own to {uncovered}")
    for subject in every:
        excused = dict(subject.traits.known_failures)
        for check in checks_for(subject.traits):
            label = f"{check.__name__} with {subject.config}"
            try:
                check(subject)
            except Exception as error:  # reported below, with the others
                if check.__name__ not in excused:
                    failures.append(f"{label}: {error!r}")
            else:
                if check.__name__ in excused:
                    failures.append(f"{label}: excused, but passes")
    if failures:
        raise AssertionError("\n\n".join(failures))
