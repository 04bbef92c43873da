"""One backend a process: run pytest once for each `KERAS_BACKEND`."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Most of the time goes to XLA's code generators, for small and short-lived
# functions; neither level nor emitters change what is computed, but its speed.
# One thread for each: two backends run side by side, and XLA's pool has been
# seen to wait for ever on a crowded machine.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_multi_thread_eigen=false",
)

import keras  # noqa: E402  (reads the environment when it is imported)
import pytest  # noqa: E402

from keras_linattn.mechanisms import _registry  # noqa: E402


def pytest_report_header():
    return f"keras {keras.__version__}, backend {keras.backend.backend()}"


@pytest.fixture(autouse=True, scope="module")
def _less_to_look_through():
    """Takes what is there, and mostly stays, out of the search for garbage.

    JAX and TensorFlow keep millions of objects for what they have compiled.
    `quantize` has them searched for each kernel, Python time and again.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_state():
    """The same seed for every test, and no names left by another."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    registered = dict(_registry._CLASSES)
    yield
    _registry._CLASSES.clear()
    _registry._CLASSES.update(registered)
