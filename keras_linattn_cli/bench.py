"""`keras-linattn bench`: which mechanism is the fastest for these shapes.

Answers on the user's own machine, beside Keras' softmax attention. The cases
take turns round after round, so that whatever else the machine does slows all
of them alike.
"""

import argparse
import inspect
import sys
import time

from keras_linattn_cli.errors import UserError
from keras_linattn_cli.progress import progress

SOFTMAX = "softmax (Keras)"
KINDS = ("forward", "step")
ROUNDS = 7
HEADINGS = (
    "attention",
    "forward, ms",
    "softmax / it",
    "training step, ms",
    "softmax / it",
)


def add_to(subparsers):
    """Adds this subcommand to those of an `argparse` parser."""
    text = "time the mechanisms and softmax on this machine"
    parser = subparsers.add_parser("bench", help=text, description=text)
    parser.set_defaults(run=run)
    for name, default, meaning in (
        ("length", 4096, "positions of a sequence"),
        ("dim", 512, "features of the input, and of all heads together"),
        ("heads", 8, "attention heads"),
        ("batch", 1, "sequences at a time"),
        ("seconds", 60, "after which no more is begun"),
    ):
        parser.add_argument(
            f"--{name}",
            type=positive,
            default=default,
            help=f"{meaning} (defaults to {default})",
        )
    parser.add_argument(
        "--causal", action="store_true", help="attention to the past alone"
    )
    parser.add_argument(
        "--mechanism",
        nargs="+",
        metavar="NAME",
        help="defaults to all that have this form",
    )


def positive(text):
    """An int > 0 on the command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(
            f"must be a positive integer. Received: {text!r}."
        )
    return int(text)


def run(options):
    if options.dim % options.heads:
        raise UserError(
            "`--heads` must divide `--dim`. Received: "
            f"--dim {options.dim} --heads {options.heads}."
        )
    layers, refused = _layers(options)
    with progress(total=len(layers) + ROUNDS - 1) as step:
        times, left_out = measure(
            layers, _input(options), options.seconds, step
        )
    if not times:
        raise UserError(
            "`--seconds` must be enough for one measurement. Received: "
            f"--seconds {options.seconds}. Pass a larger number."
        )
    _print_table(options, times)
    for name, reason in refused.items():
        print(f"{name}: {reason}")
    if left_out:
        print(
            f"No time was left (--seconds {options.seconds}): "
            f"{', '.join(left_out)}."
        )
    print("\n" + verdict(times))


def _layers(options):
    """Makers of built layers by (name, kind), and why others are not there."""
    from keras_linattn import mechanisms
    from keras_linattn.testing import timing

    makers, refused = {}, {}
    for kind in KINDS:
        needed = timing.softmax_memory(
            options.batch, options.heads, options.length, kind == "step"
        )
        lack = timing.lack_of_memory(needed)
        if lack is not None:
            refused[f"{SOFTMAX}, {kind}"] = f"not measured, {lack}"
        else:
            makers[SOFTMAX, kind] = lambda: _softmax(options)
    for name in options.mechanism or _suitable(options.causal):
        # An unknown one is refused before anything is timed.
        mechanisms.get(name)
        for kind in KINDS:
            makers[name, kind] = lambda name=name: _linear(options, name)
    return makers, refused


def _suitable(causal):
    """Names of the linear mechanisms of a form, the default one first."""
    from keras_linattn import layers
    from keras_linattn import mechanisms

    arguments = inspect.signature(
        layers.LinearSelfAttention.__init__
    ).parameters
    names = (arguments["mechanism"].default, *mechanisms.available())
    traits = {name: mechanisms.get(name).traits for name in names}
    return [
        name
        for name, its in traits.items()
        if its.linear and causal in its.forms
    ]


def _softmax(options):
    import keras

    x = keras.Input((options.length, options.dim), batch_size=options.batch)
    attention = keras.layers.MultiHeadAttention(
        options.heads, options.dim // options.heads
    )
    return keras.Model(x, attention(x, x, use_causal_mask=options.causal))


def _linear(options, name):
    from keras_linattn import layers
    from keras_linattn import mechanisms

    mechanism = {"name": name}
    if mechanisms.get(name).traits.needs_length:
        mechanism["sequence_length"] = options.length
    layer = layers.LinearSelfAttention(
        options.heads,
        options.dim // options.heads,
        mechanism=mechanism,
        causal=options.causal,
    )
    layer.build((options.batch, options.length, options.dim))
    layer.built = True
    return layer


def _input(options):
    import keras

    shape = (options.batch, options.length, options.dim)
    return keras.random.normal(shape, seed=0)


def measure(makers, x, seconds, step):
    """Seconds of each case, a list by rounds; and what was left out.

    Args:
        makers: dict by (name, kind) of functions that return a built layer.
        x: tensor, the layers' input.
        seconds: float, after which nothing more is begun.
        step: function of a text, called as each step begins.

    Returns:
        Dict by (name, kind) of lists of seconds, and dict by name of the kinds
        for which there was no time.
    """
    from keras_linattn.testing import timing

    end = time.perf_counter() + seconds
    kinds = {"forward": timing.forward, "step": timing.training_step}
    calls, times, left_out = {}, {}, {}
    for (name, kind), make in makers.items():
        if calls and time.perf_counter() > end:
            left_out.setdefault(name, []).append(kind)
            continue
        step(f"first call of {name}, {kind}")
        call = kinds[kind](make())
        timing.wait(call(x))  # compiles
        calls[name, kind] = call
        times[name, kind] = [timing.seconds(call, x)]
    for number in range(2, ROUNDS + 1):
        step(f"round {number} of {ROUNDS}")
        for case, call in calls.items():
            if time.perf_counter() > end:
                return times, left_out
            times[case].append(timing.seconds(call, x))
    return times, left_out


def medians(times):
    """Milliseconds by (name, kind)."""
    import numpy as np

    return {case: 1000 * float(np.median(t)) for case, t in times.items()}


def rows_of(times):
    """Cells of the table, the fastest training step first."""
    found = medians(times)
    names = sorted(
        dict.fromkeys(name for name, _ in found),
        key=lambda name: found.get((name, "step"), float("inf")),
    )
    return [
        [name, *(cell for kind in KINDS for cell in _cells(found, name, kind))]
        for name in names
    ]


def _cells(found, name, kind):
    mine, softmax = found.get((name, kind)), found.get((SOFTMAX, kind))
    ratio = "" if None in (mine, softmax) else f"{softmax / mine:.2f}"
    return "" if mine is None else f"{mine:.3g}", ratio


def verdict(times):
    """The answer in words: the fastest, and whether it beats softmax."""
    found = {n: t for (n, kind), t in medians(times).items() if kind == "step"}
    softmax = found.pop(SOFTMAX, None)
    if not found:
        return "No training step of a mechanism was measured: more --seconds?"
    name = min(found, key=found.get)
    said = f"The fastest training step here is {name}'s"
    if softmax is None:
        return f"{said}; softmax was not measured."
    if softmax <= found[name]:
        return (
            f"{said}, and softmax is faster ({softmax:.3g} ms): at this length "
            "linear attention does not pay."
        )
    return (
        f"{said}: softmax takes {softmax / found[name]:.1f} times as long. "
        "Speed says nothing about accuracy: try two or three on your data."
    )


def _print_table(options, times):
    import keras
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rounds = [len(taken) for taken in times.values()]
    print(
        f"{keras.backend.backend()}, length {options.length:,}, dim "
        f"{options.dim}, {options.heads} heads, batch {options.batch}, "
        f"{'causal' if options.causal else 'bidirectional'}; medians of "
        f"{min(rounds)} to {max(rounds)} rounds"
    )
    table = Table(*HEADINGS, box=box.SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows_of(times):
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 100
    Console(width=width, markup=False, highlight=False).print(table)
