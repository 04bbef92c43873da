"""Jobs of the tools, each in a fresh process."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
LAST_LINES = 12  # of a process that failed


class Killed(RuntimeError):
    """A process did not end by itself: a library broke it off."""


def run(arguments, environment):
    """Runs Python in the repository's root with more environment variables.

    Args:
        arguments: of the command line.
        environment: dict of str, or of `None` for what must not be set.

    Raises:
        RuntimeError: if the process fails, with the last lines it printed;
            `Killed` if a signal ended it.
    """
    merged = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    with tempfile.TemporaryFile() as printed:
        try:
            child = subprocess.run(
                [sys.executable, *map(str, arguments)],
                cwd=ROOT,
                env={name: x for name, x in merged.items() if x is not None},
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
        except KeyboardInterrupt:  # shows how far the process had come
            print(*_lines(printed), sep="\n")
            raise
        if not child.returncode:
            return
        lines = _lines(printed)[-LAST_LINES:]
        if child.returncode < 0:
            name = signal.Signals(-child.returncode).name
            raise Killed("\n".join([*lines, f"{name} ended the process."]))
        raise RuntimeError("\n".join(lines))


def _lines(file):
    file.seek(0)
    return file.read().decode("utf-8", errors="replace").splitlines()


def ask(module, job, environment):
    """Runs `python -m module JOB ANSWER` and returns the JSON in ANSWER."""
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder, "answer.json")
        run(["-m", module, json.dumps(job), answer], environment)
        return json.loads(answer.read_text(encoding="utf-8"))
