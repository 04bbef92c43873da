"""The convolution of the values that some mechanisms add to their output."""

import dataclasses

from keras import ops

from keras_linattn.core.convolutions import add_kernel
from keras_linattn.core.convolutions import check_convolution
from keras_linattn.core.convolutions import depthwise_convolution


class ConvolvedValues:
    """A base of mechanisms with the arguments `kernel_size` and `grid`.

    The kernel is one for all heads. Without a `kernel_size` there is no
    convolution.
    """

    def _set_convolution(self, kernel_size, grid, **traits):
        """Stores the arguments, and sets the traits that follow from them.

        Args:
            kernel_size: odd int > 0, or `None`.
            grid: tuple `(rows, columns)`, or `None`.
            **traits: those of the mechanism without a convolution, where they
                differ.
        """
        self.kernel_size = kernel_size
        self.grid = check_convolution(kernel_size, grid)
        if kernel_size is None:
            traits = {"grid": False, "key_order_free": True, **traits}
        elif self.grid is not None:
            traits = {"packs": False}
        else:
            return
        self.traits = dataclasses.replace(self.traits, **traits)

    def _build_convolution(self, value_dim):
        if self.kernel_size is not None:
            self.kernel = add_kernel(
                self, self.kernel_size, 1, value_dim, self.grid
            )

    def _add_convolution(self, output, value, documents=None):
        """The output `[B, H, T, V]` plus the convolved values, if there are."""
        if self.kernel_size is None:
            return output
        kernel = ops.cast(self.kernel, value.dtype)
        return output + depthwise_convolution(
            value, kernel, self.grid, documents
        )
