"""Output of the demonstration: a live panel on a terminal, lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from tests.demo.watch import Snapshot

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 60


class Show:
    """Shows snapshots as they come."""

    def __init__(self, orders: int) -> None:
        self._orders = orders
        self._console = Console(highlight=False, soft_wrap=True)
        self._history: list[Snapshot] = []
        self._live = Live(console=self._console, refresh_per_second=4)
        self._on_terminal = self._console.is_terminal
        self._printed: tuple[object, ...] = ()

    def __enter__(self) -> Show:
        if self._on_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._on_terminal:
            self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Show the latest snapshot."""
        self._history.append(snapshot)
        if self._on_terminal:
            self._live.update(self._panel(snapshot))
            return
        # Without a terminal, print a line when the size changes, and every five seconds.
        state = (snapshot.wanted, snapshot.pods, snapshot.ready, int(snapshot.at) // 5)
        if state != self._printed:
            self._printed = state
            self._console.print(line(snapshot, self._orders))

    def _panel(self, snapshot: Snapshot) -> Panel:
        facts = Table.grid(padding=(0, 3))
        facts.add_row("waiting", "running", "finished", "pods", "ready", "leaving")
        facts.add_row(
            *(
                Text(str(value), style="bold")
                for value in (
                    snapshot.waiting,
                    snapshot.running,
                    f"{snapshot.finished} of {self._orders}",
                    snapshot.pods,
                    snapshot.ready,
                    snapshot.draining,
                )
            )
        )
        group = Group(
            facts,
            Text(""),
            Text(f"waiting {bars([past.waiting for past in self._history])}"),
            Text(f"pods    {bars([past.pods for past in self._history])}"),
            Text(""),
            Text(snapshot.decision, style="italic"),
        )
        return Panel(group, title=f"pool orders, {snapshot.at:.0f} s", title_align="left")


def line(snapshot: Snapshot, orders: int) -> str:
    """Format a snapshot as one line."""
    return (
        f"{snapshot.at:5.1f} s  waiting {snapshot.waiting:3}  running {snapshot.running:2}  "
        f"finished {snapshot.finished:3} of {orders}  pods {snapshot.pods} "
        f"(ready {snapshot.ready}, leaving {snapshot.draining})  {snapshot.decision}"
    ).rstrip()


def bars(values: list[int]) -> str:
    """Draw the values as at most `_WIDTH` bars, each the maximum of its period."""
    step = max(1, -(-len(values) // _WIDTH))
    columns = [max(values[at : at + step]) for at in range(0, len(values), step)]
    top = max(1, *columns) if columns else 1
    return "".join(_BARS[-(-value * (len(_BARS) - 1) // top)] for value in columns)
