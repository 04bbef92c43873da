"""One backend a process: run pytest once for each `KERAS_BACKEND`."""

import gc
import hashlib
import os
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).parents[1]


def compilation_cache():
    """The folder for what XLA has compiled for this kind of processor."""
    caches = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    try:
        cpu = pathlib.Path("/proc/cpuinfo").read_text()
        lines = [x for x in cpu.splitlines() if x.startswith(("flags", "Feat"))]
    except OSError:  # not Linux
        lines = [platform.platform() + platform.processor()]
    kind = hashlib.sha256("".join(lines[:1]).encode()).hexdigest()[:8]
    return pathlib.Path(caches) / "keras_linattn" / f"jax-{kind}"


ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Most of the time goes to XLA's code generators, for small and short-lived
    # functions; neither level nor emitters change what is computed, but its
    # speed. `tools/test.sh --release` runs the conformance suite without.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_multi_thread_eigen=false "
    "--xla_cpu_parallel_codegen_split_count=1",
    # One thread for each: two backends run side by side, and the threads of
    # torch and TensorFlow spin while they wait for a core.
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    # What JAX has compiled serves the next run, in any clone: the key holds
    # the program, the versions and the flags, the folder the processor.
    "JAX_COMPILATION_CACHE_DIR": str(compilation_cache()),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

import forked_exports  # noqa: E402
import keras  # noqa: E402  (reads the environment when it is imported)
import pytest  # noqa: E402

from keras_linattn.export import _child  # noqa: E402
from keras_linattn.mechanisms import _registry  # noqa: E402


def pytest_report_header():
    return f"keras {keras.__version__}, backend {keras.backend.backend()}"


# Their cases differ in arguments, not in the operations of the backend.
OF_FIRST_CASES = ("core", "layers", "mechanisms", "models")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """TensorFlow and JAX, which compile, run the first case of each test.

    torch runs all at each landing, the others at a release. A test or case
    marked `every_case` is exempt.
    """
    if keras.backend.backend() == "torch":
        return
    seen = set()
    for item in items:
        room = item.path.relative_to(ROOT / "tests").parts[0]
        if room not in OF_FIRST_CASES or item.get_closest_marker("release"):
            continue
        function = (item.path, item.originalname)
        if function in seen and not item.get_closest_marker("every_case"):
            item.add_marker(pytest.mark.release)
        seen.add(function)


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


_child.subprocess = forked_exports.process


@pytest.fixture
def own_process(monkeypatch):
    """An export under torch starts a process, as it does for users."""
    monkeypatch.setattr(_child, "subprocess", subprocess)
