"""The conformance suite: every mechanism against its float64 reference.

    from keras_linattn.testing import check_mechanism
    check_mechanism("linear_transformer")

`Subject` and `checks_for` give the same checks one by one, for a test runner.
Checks are chosen by the traits that a mechanism declares, never by its name.
"""

from keras_linattn.testing._inputs import Inputs as Inputs
from keras_linattn.testing._inputs import random_inputs as random_inputs
from keras_linattn.testing._subject import Subject as Subject
from keras_linattn.testing._subject import (
    compare_with_reference as compare_with_reference,
)
from keras_linattn.testing._subject import subjects as subjects
from keras_linattn.testing._suite import check_mechanism as check_mechanism
from keras_linattn.testing._suite import checks_for as checks_for
