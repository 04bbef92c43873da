"""Names for annotations: the arguments that no type of Python describes.

A layer takes tensors of the backend, symbolic tensors and NumPy arrays, and no
class is a base of all of them. Docstrings give shapes and dtypes.
"""

from typing import Any

Tensor = Any
# A tensor, or a dict, list or tuple of trees, as in `keras.tree`.
Tree = Any
# `None`: a size that is not known yet.
Shape = tuple[int | None, ...]
