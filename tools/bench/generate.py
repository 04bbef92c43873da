"""Measures `CausalLM.generate` over prompts of random lengths.

    KERAS_BACKEND=jax python -m tools.bench.generate

Prints the time, the functions that were compiled, and the resident memory on
the way: it must not grow once the buckets of lengths have been seen.
"""

import argparse
import os
import pathlib
import time

import numpy as np

import keras_linattn
from tools import _machine

CALLS = (1, 50, 100, 200, 300)  # after which the memory is read
SEEN = 50  # calls after which it must be flat
STATM = pathlib.Path("/proc/self/statm")


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench.generate",
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--prompts", type=int, default=CALLS[-1])
    add("--longest", type=int, default=500, help="bytes of a prompt")
    add("--new", type=int, default=8, help="bytes to generate for each")
    add("--hidden-dim", type=int, default=32)
    add("--layers", type=int, default=1)
    return parser.parse_args(arguments)


def resident_memory():
    """Bytes that this process has in use now."""
    pages = int(STATM.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(options):
    """Seconds of each call, functions compiled, and bytes by number of calls.

    Args:
        options: as from `parse`.
    """
    model = keras_linattn.models.CausalLM(
        hidden_dim=options.hidden_dim,
        num_layers=options.layers,
        num_heads=2,
    )
    model.compile(sampler="greedy")
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, options.longest + 1, options.prompts)
    seconds, shapes, memory = [], set(), {}
    for number, length in enumerate(map(int, lengths), start=1):
        prompt = bytes(rng.integers(97, 123, length, "uint8")).decode()
        total = length + options.new
        start = time.perf_counter()
        model.generate(prompt, max_length=total)
        seconds.append(time.perf_counter() - start)
        shapes.add(keras_linattn.models.bucket_length(total))
        if number in CALLS:
            memory[number] = resident_memory()
    return {
        "seconds": seconds,
        "lengths": len(set(lengths.tolist())),
        "shapes": len(shapes),
        "memory": memory,
    }


def report(result):
    """The lines that `main` prints."""
    seconds = result["seconds"]
    memory = {n: f"{b / 1e6:,.0f}" for n, b in result["memory"].items()}
    facts = ", ".join(f"{k} {v}" for k, v in _machine.machine().items())
    after = f"median of a call after {SEEN}"
    return [
        facts,
        f"calls {len(seconds)}, lengths {result['lengths']}, shapes "
        f"{result['shapes']}, {sum(seconds):.0f} s, {after} "
        f"{1000 * np.median(seconds[SEEN:] or seconds):.0f} ms, slowest "
        f"{max(seconds):.1f} s",
        "resident MB after calls: "
        + ", ".join(f"{n}: {text}" for n, text in memory.items()),
    ]


def main(arguments=None):
    print("\n".join(report(measure(parse(arguments)))))


if __name__ == "__main__":
    main()
