"""Progress of a command: a bar on a terminal, plain lines in a log."""

import contextlib
import sys


@contextlib.contextmanager
def progress(total):
    """Yields a function `step(text)` that says which step begins.

    Writes to stderr, so that the answer on stdout can go through a pipe.
    """
    if sys.stderr.isatty():
        with _bar(total) as step:
            yield step
        return
    begun = 0

    def step(text):
        nonlocal begun
        begun += 1
        print(f"[{begun}/{total}] {text}", file=sys.stderr, flush=True)

    yield step


@contextlib.contextmanager
def _bar(total):
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=sys.stderr, markup=False, highlight=False)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        begun = 0

        def step(text):
            nonlocal begun
            bar.update(task, description=text, completed=begun)
            begun += 1

        yield step
