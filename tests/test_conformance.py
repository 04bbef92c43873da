"""Every registered mechanism passes the checks that its traits call for."""

import pytest

from keras_linattn import mechanisms
from keras_linattn.testing import _keras_checks
from keras_linattn.testing import checks_for
from keras_linattn.testing import subjects


def conformance_cases():
    for name in mechanisms.available():
        for subject in subjects(name):
            excused = dict(subject.traits.known_failures)
            label = "-".join([name, *map(str, subject.config.values())])
            for check in checks_for(subject.traits):
                reason = excused.get(check.__name__)
                marks = pytest.mark.xfail(reason=reason, strict=True)
                yield pytest.param(
                    subject,
                    check,
                    id=f"{label}-{check.__name__.removeprefix('check_')}",
                    marks=marks if reason else (),
                )


@pytest.mark.parametrize(("subject", "check"), list(conformance_cases()))
def test_conformance(subject, check):
    check(subject)


@pytest.mark.parametrize("name", mechanisms.available())
def test_configs_move_every_argument(name):
    assert not _keras_checks.uncovered_arguments(subjects(name))
