"""Settings of the package for this process.

Example:

>>> from keras_linattn import config
>>> config.set_fast_forms(False)  # portable forms only, from `keras.ops`
>>> config.fast_forms()
False
>>> config.set_fast_forms(True)
"""

from keras_linattn.core.backends import fast_forms as fast_forms
from keras_linattn.core.backends import set_fast_forms as set_fast_forms
