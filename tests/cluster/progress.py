"""Progress on standard error: the current step and its duration."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HEARTBEAT_SECONDS = 60.0
_running: Progress | None = None


@contextmanager
def step(title: str, *, slow: bool = False) -> Iterator[Callable[[str], None]]:
    """Show `title` while the block runs, then its duration.

    Yields a function that sets a short detail beside the title. Steps may nest. Without a terminal,
    one line is written at the end, and for a `slow` step also at the beginning and every minute.
    """
    started = time.monotonic()
    show = _on_terminal if sys.stderr.isatty() else _in_lines
    try:
        with show(title, slow) as detail:
            yield detail
    except BaseException:
        _say(f"failed  {title} after {_elapsed(started)}")
        raise
    _say(f"done    {title} in {_elapsed(started)}")


@contextmanager
def _on_terminal(title: str, slow: bool) -> Iterator[Callable[[str], None]]:
    del slow  # A spinner says enough.
    global _running
    outermost = _running is None
    if outermost:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        _running = Progress(*columns, console=Console(stderr=True), transient=True)
        _running.start()
    progress = _running
    assert progress is not None
    task = progress.add_task(title, total=None)
    try:
        yield lambda text: progress.update(task, description=f"{title} [dim]{text}[/dim]")
    finally:
        progress.remove_task(task)
        if outermost:
            progress.stop()
            _running = None


@contextmanager
def _in_lines(title: str, slow: bool) -> Iterator[Callable[[str], None]]:
    if not slow:
        yield lambda text: None
        return
    started = time.monotonic()
    finished = threading.Event()
    latest = [""]

    def beat() -> None:
        while not finished.wait(_HEARTBEAT_SECONDS):
            _say(f"still   {title}, {_elapsed(started)} {latest[0]}".rstrip())

    _say(f"start   {title}")
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield lambda text: latest.__setitem__(0, text)
    finally:
        finished.set()
        thread.join()


def _say(line: str) -> None:
    if _running is not None:
        _running.console.print(line, highlight=False, markup=False)
    else:
        print(line, file=sys.stderr, flush=True)


def _elapsed(started: float) -> str:
    seconds = time.monotonic() - started
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
