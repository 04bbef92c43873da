"""What the studies compare beside names: arguments, and mixed stacks."""

import json

LOCAL = {"name": "local", "window": 16}
# What reads from the left only: its row of the study `equal_time` says so.
CAUSAL = (
    "delta_rule",
    "gated_delta",
    "gated_linear",
    "kda",
    "mamba2",
    "retention",
)
# These two can do both, and show what is lost.
BOTH = ("softmax", "linear_transformer")
# Rows of a table, and the values of an example's `--mechanism`. The names are
# resolved by the example, so that a study runs what there is.
ROWS = {
    "local, 16": (LOCAL,),
    "local, 128": ({"name": "local", "window": 128},),
    "3 gated_delta + softmax": ("gated_delta",) * 3 + ("softmax",),
    "focused, no convolution": ({"name": "focused", "kernel_size": None},),
    "hybrid_window, 16": ({"name": "hybrid_window", "window": 16},),
    "linear_transformer + softmax": ("linear_transformer", "softmax"),
    "gated_delta + softmax": ("gated_delta", "softmax"),
    "softmax + gated_delta": ("softmax", "gated_delta"),
    "gated_delta + local, 16": ("gated_delta", LOCAL),
}
# Of `equal_time` only: no other example has this argument.
CAUSAL_ROWS = {f"{name}, causal": (name, "--causal") for name in CAUSAL + BOTH}
EQUAL_TIME = (
    "modified_linformer",
    *BOTH,
    "agent",
    "cosformer",
    "focused",
    "hedgehog",
    "hybrid_window, 16",
    "imhsa",
    "lara",
    "linformer",
    "local, 16",
    "mala",
    "nystromformer",
    "performer",
    "polaformer",
    "rala",
    "taylor",
    "xca",
    *CAUSAL_ROWS,
    "no_attention",
)


def arguments_of(row):
    """Returns a row's command-line arguments: from the tables, or a name."""
    entries = (ROWS | CAUSAL_ROWS).get(row, (row,))
    return [x if isinstance(x, str) else json.dumps(x) for x in entries]


def entries_of(arguments):
    """Returns the mechanisms that command-line arguments name."""
    return [json.loads(x) if x[0] == "{" else x for x in arguments]


# The rows of the study `linearize`: what attends, and how it was trained.
TEACHER, NOTHING = "softmax: teacher", "no attention"
WINDOW, LEAST = 16, 10
# By name: arguments of `linearize`.
STUDENTS = {
    "hedgehog": {},
    f"hedgehog, window {WINDOW}": {"window": WINDOW},
    f"hedgehog, window {WINDOW}, least score {LEAST}": {
        "mechanism": {
            "name": "hybrid_window",
            "window": WINDOW,
            "least_score": LEAST,
        }
    },
}
METHODS = (
    "from scratch, all steps",
    "from scratch",
    "swap only",
    "swap, fine-tuning",
    "transfer, LoRA",
)
LORA = METHODS[-1]
OFF = ", window off"
WINDOWS_OFF = tuple(f"{x}: {LORA}{OFF}" for x in STUDENTS if "window" in x)
LINEARIZE = (
    TEACHER,
    NOTHING,
    *(f"{name}: {method}" for name in STUDENTS for method in METHODS),
    *WINDOWS_OFF,
)
