"""Every registered mechanism passes the checks that its traits call for."""

import keras
import pytest

from keras_linattn import mechanisms
from keras_linattn.testing import _keras_checks
from keras_linattn.testing import _packing_checks
from keras_linattn.testing import _scale_checks
from keras_linattn.testing import checks_for
from keras_linattn.testing import subjects
from keras_linattn.testing._suite import OF_ONE_CONFIG


def conformance_cases():
    for name in mechanisms.available():
        done = set()
        for subject in subjects(name):
            label = "-".join([name, *map(str, subject.config.values())])
            for check in checks_for(subject.traits):
                yield pytest.param(
                    subject,
                    check,
                    id=f"{label}-{check.__name__.removeprefix('check_')}",
                    marks=list(marks(subject, check, done)),
                )
            done.update(checks_for(subject.traits))


def marks(subject, check, done):
    """`done` are the checks that an earlier configuration has had."""
    reason = dict(subject.traits.known_failures).get(check.__name__)
    if reason:
        yield pytest.mark.xfail(reason=reason, strict=True)
    if check in done and (check in OF_ONE_CONFIG or is_slow_here(check)):
        yield pytest.mark.release
    elif check in _packing_checks.CHECKS and not has_sums_of_its_own(subject):
        yield pytest.mark.release


def is_slow_here(check):
    """Does this backend compile for seconds what no value depends on?

    Values and gradients of every configuration are compared with the
    references on each backend. What else a configuration could break, torch
    shows at each landing, the others in the release tier.
    """
    compares = check.__name__.endswith(("matches_reference", "match_reference"))
    return keras.backend.backend() != "torch" and not compares


def has_sums_of_its_own(subject):
    """Is it the first mechanism with its kind of sums over documents?

    Kernels, running maxima, decays: others have the same. torch, which does
    not compile, tries them all, and the release tier on each backend.
    """
    first = mechanisms.name_of(subject.cls) in (
        "linear_transformer",
        "modified_linformer",
        "gated_delta",
    )
    return first or keras.backend.backend() == "torch"


@pytest.mark.parametrize(("subject", "check"), list(conformance_cases()))
def test_conformance(subject, check):
    check(subject)


@pytest.mark.parametrize("name", mechanisms.available())
def test_configs_move_every_argument(name):
    assert not _keras_checks.uncovered_arguments(subjects(name))


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX makes float32 of float64"
)
@pytest.mark.parametrize("name", mechanisms.available())
def test_float64_is_computed_in_float64(name):
    for subject in subjects(name):
        _scale_checks.compare_in_float64(subject, tolerance=1e-10)
