"""Every registered mechanism passes the checks that its traits call for."""

import keras
import pytest
from helpers import FAMILIES

from keras_linattn import mechanisms
from keras_linattn.testing import _causal_checks
from keras_linattn.testing import _gradient_checks
from keras_linattn.testing import _graph_checks
from keras_linattn.testing import _keras_checks
from keras_linattn.testing import _output_checks
from keras_linattn.testing import _packing_checks
from keras_linattn.testing import _precision_checks
from keras_linattn.testing import _scale_checks
from keras_linattn.testing import checks_for
from keras_linattn.testing import subjects
from keras_linattn.testing._suite import OF_ONE_CONFIG

# At a landing torch, which does not compile, runs all checks. TensorFlow and
# JAX run all of them on the first configuration of one mechanism a family,
# and these. A release runs all of them on each backend.
OF_EACH_CONFIG = (
    _output_checks.check_matches_reference,
    _causal_checks.check_causal_matches_reference,
)
OF_EACH_MECHANISM = (
    *OF_EACH_CONFIG,
    _gradient_checks.check_gradients_match_reference,
    _gradient_checks.check_causal_gradients_match_reference,
    _graph_checks.check_free_batch_and_length,
)
# Of those that compile JAX alone: operations decide, hardly the backend.
OF_EACH_MECHANISM_UNDER_JAX = (
    _graph_checks.check_no_quadratic_array,
    _precision_checks.check_half_precision,
)
# Those of grids, for example, are for mechanisms that are in none of them.
OF_FAMILIES = {
    check for name in FAMILIES for check in checks_for(subjects(name)[0].traits)
}
# Sums over documents: kernels, running maxima, decays. Others have the same.
WITH_SUMS_OF_THEIR_OWN = (
    "linear_transformer",
    "modified_linformer",
    "gated_delta",
)


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
                    marks=list(marks(name, subject, check, done)),
                )
            done.update(checks_for(subject.traits))


def marks(name, subject, check, done):
    """`done` are the checks that an earlier configuration has had."""
    reason = dict(subject.traits.known_failures).get(check.__name__)
    by_keras = runs_by_keras_on_cuda(name)
    if by_keras and check is _scale_checks.check_every_size_is_finite:
        reason = "torch's kernels compute weights anew, from rounded scores"
    if reason:
        yield pytest.mark.xfail(reason=reason, strict=True)
    if check in done and check in OF_ONE_CONFIG:
        yield pytest.mark.release
    elif keras.backend.backend() != "torch" and not (
        runs_where_compiled(name, check, check in done)
    ):
        yield pytest.mark.release


def runs_by_keras_on_cuda(name):
    """Whether gradients are those of Keras' kernel: see fast_training.md."""
    if name != "softmax" or keras.backend.backend() != "torch":
        return False
    import torch

    return torch.cuda.is_available()


def runs_where_compiled(name, check, again):
    """Do TensorFlow and JAX run this check at each landing?"""
    if again:
        return check in OF_EACH_CONFIG
    if check in _packing_checks.CHECKS:
        return name in WITH_SUMS_OF_THEIR_OWN
    if check in OF_EACH_MECHANISM_UNDER_JAX and name not in FAMILIES:
        return keras.backend.backend() == "jax"
    return (
        name in FAMILIES
        or check in OF_EACH_MECHANISM
        or check not in OF_FAMILIES
    )


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
