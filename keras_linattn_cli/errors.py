"""What the command refuses, and what its libraries print meanwhile."""

import contextlib
import os
import sys
import tempfile
import traceback


class UserError(Exception):
    """A mistake that the user can mend: one line, no traceback."""


def is_refusal(error):
    """Whether a check of `keras_linattn` raised this for the user to read.

    Such an error says what it received and comes from the package itself. Any
    other is a bug.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = frames[-1].f_globals.get("__name__", "") if frames else ""
    return module.startswith("keras_linattn.") and "Received:" in str(error)


def one_line(error):
    """The message without its line breaks.

    Of several paragraphs the first says what was wrong and the last line
    where it came from; Keras puts whole configs between them.
    """
    first, _, rest = str(error).strip().partition("\n\n")
    lines = rest.strip().splitlines()[-1:]
    message = " ".join(" ".join([first, *lines]).split())
    return message or type(error).__name__


@contextlib.contextmanager
def quiet_frameworks():
    """Hides what libraries in C++ log; shows it if an error escapes.

    TensorFlow logs before it can be told not to, so the file descriptor of
    stderr is redirected. What Python writes to `sys.stderr` is printed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log, os.fdopen(os.dup(2), "w") as real:
        python = sys.stderr
        if python is sys.__stderr__:
            sys.stderr = real
        os.dup2(log.fileno(), 2)
        try:
            yield
        except UserError:
            raise
        except BaseException:
            log.seek(0)
            os.write(real.fileno(), log.read())
            raise
        finally:
            sys.stderr = python
            real.flush()
            os.dup2(real.fileno(), 2)
