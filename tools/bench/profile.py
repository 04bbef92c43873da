"""Which operations the time of a layer goes to, by the backend's profiler."""

import collections
import pathlib
import tempfile

from keras_linattn.testing import timing
from tools.bench import cases
from tools.bench import layers
from tools.bench import runtime

CALLS = 5  # that are profiled, after two that are not
SHOWN = 24  # operations that take the longest


def run(job):
    """Operations of one call: how often, and milliseconds of their own.

    Args:
        job: dict of `length`, `dim`, `heads`, `kind`, `case`.

    Returns:
        Dict of `operations`, lists `[name, count, ms]` from the longest on,
        and `total`, the milliseconds of all.
    """
    shape = cases.shape_of(job)
    layer = layers.built(cases.get(job["case"]), shape)
    function = layers.KINDS[job["kind"]](layer)
    x = runtime.random_tensor(shape.input)

    def call():
        timing.wait(function(x))

    for _ in range(2):
        call()
    record = runtime.pick(jax=_xla, tensorflow=_tensorflow, torch=_torch)
    counts, times = collections.Counter(), collections.Counter()
    for name, count, milliseconds in record(call):
        counts[name] += count / CALLS
        times[name] += milliseconds / CALLS
    return {
        "operations": [
            [name, round(counts[name], 1), round(taken, 3)]
            for name, taken in times.most_common(SHOWN)
        ],
        "total": round(sum(times.values()), 3),
    }


def _torch(call):
    from torch import profiler

    activities = [profiler.ProfilerActivity.CPU]
    with profiler.profile(activities=activities) as found:
        for _ in range(CALLS):
            call()
    for event in found.key_averages():
        yield event.key, event.count, event.self_cpu_time_total / 1e3


def _xla(call):
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                call()
        for name, count, taken in _events(folder):
            # As in "ynn_fusion.2"; what Python and XLA's own C++ do is not.
            if name.islower() and not set(name) & set(":$("):
                yield name, count, taken


def _tensorflow(call):
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(CALLS):
                call()
        # "layer/name:Kind" of a node of the graph: the kinds are counted.
        for name, count, taken in _events(folder):
            node, _, kind = name.partition(":")
            if node and kind and kind[0] != ":" and " " not in name:
                yield kind, count, taken


def _events(folder):
    """What happened in a trace that TensorFlow or JAX wrote."""
    from jax import profiler  # reads both

    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    for plane in profiler.ProfileData.from_file(str(path)).planes:
        if plane.name != "/host:CPU":
            continue
        for line in plane.lines:
            for event in line.events:
                yield event.name, 1, event.duration_ns / 1e6
