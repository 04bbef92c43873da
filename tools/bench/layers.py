"""Times, compile times and peak memory of layers."""

import functools
import math

import keras
import numpy as np
from keras import ops

from keras_linattn import testing
from keras_linattn.testing import timing
from tools import _machine
from tools.bench import cases
from tools.bench import peers
from tools.bench import runtime

KINDS = {"forward": timing.forward, "step": timing.training_step}
SHORTEST = 0.02  # seconds; faster calls are repeated within a measurement
CHECKS = (  # what `--verify some` runs before a number is reported
    "check_matches_reference",
    "check_causal_matches_reference",
    "check_future_is_invisible",
    "check_steps_give_the_whole",
)


def times(job):
    """Seconds by case, all cases taking turns round after round.

    Args:
        job: dict of `length`, `dim`, `heads`, `kind`, `cases`, `rounds`, and
            optionally `batch` (1) and `dtype` (`"float32"`), of inputs and
            weights.

    Returns:
        Dict with `results`: by case what `take_turns` measures, or `refused`,
        why there is nothing.
    """
    shape = cases.shape_of(job)
    dtype = job.get("dtype", "float32")
    keras.config.set_dtype_policy(dtype)
    x = ops.cast(runtime.random_tensor(shape.input), dtype)
    results, functions = {}, {}
    for name in job["cases"]:
        case = cases.get(name)
        refused = too_large(case, shape, job["kind"])
        if refused:
            results[name] = {"refused": refused}
            continue
        function = KINDS[job["kind"]](built(case, shape))
        functions[name] = functools.partial(function, x)
    # Some peers refuse a device or a version; the others are measured.
    may_fail = peers.names()
    measured = take_turns(functions, job["rounds"], may_fail)
    return {"results": {**results, **measured}}


def take_turns(functions, rounds, may_fail=()):
    """Measures functions of nothing, all taking turns round after round.

    Args:
        functions: dict of them, by name.
        rounds: int.
        may_fail: names of those whose `RuntimeError` is a result.

    Returns:
        Dict, by name, of `first`, the seconds of the first call with
        compilation, and for each round, of one call, `rounds` (seconds),
        `processor` (seconds of all cores) and `faults` (page faults); or of
        `refused`, why there is nothing.
    """
    results, running = {}, {}
    for name, function in functions.items():
        try:
            first = timing.seconds(function)
        except RuntimeError as error:
            if name not in may_fail:
                raise
            results[name] = {"refused": str(error).splitlines()[0]}
            continue
        print(f"{name}: first call {first:.1f} s", flush=True)
        results[name] = {"first": first, "rounds": []}
        results[name] |= {"processor": [], "faults": []}
        once = timing.seconds(function)  # the warm-up
        running[name] = function, max(1, math.ceil(SHORTEST / once))
    for _ in range(rounds):
        for name, (function, repeats) in running.items():
            timing.wait(function())  # memory that another case gave back
            before = _machine.usage()
            taken = timing.seconds(function, repeats=repeats)
            used = np.subtract(_machine.usage(), before) / repeats
            results[name]["rounds"].append(taken)
            results[name]["processor"].append(float(used[0]))
            results[name]["faults"].append(float(used[1]))
    return results


def memory(job):
    """Bytes at the peak of one case's second call over those before it all."""
    shape = cases.shape_of(job)
    case = cases.get(job["case"])
    refused = too_large(case, shape, job["kind"])
    if refused:
        return {"refused": refused}
    x = runtime.random_tensor(shape.input)
    function = KINDS[job["kind"]](built(case, shape))
    # A short call first: the library's own start is no part of the layer.
    timing.wait(function(x[:, : min(64, shape.length)]))
    before = _machine.forget_peak()
    for _ in range(2):
        timing.wait(function(x))
    return {"peak": _machine.peak_memory() - before}


def verify(job):
    """Runs the checks of a mechanism or a peer; its failures, if any."""
    name = job["mechanism"]
    if name in peers.names():
        sizes = {"dim": 64, "heads": 2}
        make_shape = functools.partial(cases.Shape, **sizes)
        return {"failures": peers.failures(name, make_shape)}
    failures = []
    for subject in testing.subjects(name):
        excused = dict(subject.traits.known_failures)
        for check in testing.checks_for(subject.traits):
            title = check.__name__
            unwanted = job["checks"] == "some" and title not in CHECKS
            if unwanted or title in excused:
                continue
            try:
                check(subject)
            except Exception as error:  # reported, with the others
                failures.append(f"{title} {subject.config}: {error}"[:300])
    return {"failures": failures}


def built(case, shape):
    layer = case.make(shape)
    layer.build(shape.input)
    layer.built = True
    return layer


def too_large(case, shape, kind):
    """Why a case is not run at this shape, or `None`."""
    if case.largest is None:
        return None
    return timing.lack_of_memory(case.largest(shape, kind == "step"))
