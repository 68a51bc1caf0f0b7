"""Progress of long work, on standard error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engineroom.cli.app.context import CommandContext


@contextmanager
def progress_bar(
    context: CommandContext, title: str
) -> Iterator[Callable[[float, float | None, str], None]]:
    """Show the progress of long work: a bar on a terminal, a line every 5 s elsewhere.

    Yields a function of count, total (None if unknown) and text.
    """
    if not context.err.is_terminal:
        began = context.clock.monotonic()
        printed = [began]

        def line(count: float, total: float | None, text: str) -> None:
            now = context.clock.monotonic()
            if now - printed[0] >= 5:
                printed[0] = now
                of = "" if total is None else f" of {total:g}"
                context.note(f"{title}: {count:g}{of}, {text}")

        yield line
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.completed:.0f} of {task.total:.0f}, {task.fields[text]}"),
        bars.TimeElapsedColumn(),
    )
    with bars.Progress(*columns, console=context.err, transient=True) as display:
        task = display.add_task(title, total=1, text="")

        def draw(count: float, total: float | None, text: str) -> None:
            display.update(task, completed=count, total=total or max(count, 1), text=text)

        yield draw
