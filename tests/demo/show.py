"""How the demonstration looks: a live panel on a terminal, lines elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from tests.demo.watch import Look

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 60


class Show:
    """Shows one look after the other."""

    def __init__(self, orders: int) -> None:
        self._orders = orders
        self._console = Console(highlight=False, soft_wrap=True)
        self._history: list[Look] = []
        self._live = Live(console=self._console, refresh_per_second=4)
        self._on_terminal = self._console.is_terminal
        self._said: tuple[object, ...] = ()

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

    def show(self, look: Look) -> None:
        """Show the latest look."""
        self._history.append(look)
        if self._on_terminal:
            self._live.update(self._panel(look))
            return
        # Elsewhere a line whenever the size changes, and every five seconds.
        now = (look.wanted, look.pods, look.ready, int(look.at) // 5)
        if now != self._said:
            self._said = now
            self._console.print(line(look, self._orders))

    def _panel(self, look: Look) -> Panel:
        facts = Table.grid(padding=(0, 3))
        facts.add_row("waiting", "running", "finished", "pods", "ready", "leaving")
        facts.add_row(
            *(
                Text(str(value), style="bold")
                for value in (
                    look.waiting,
                    look.running,
                    f"{look.finished} of {self._orders}",
                    look.pods,
                    look.ready,
                    look.draining,
                )
            )
        )
        group = Group(
            facts,
            Text(""),
            Text(f"waiting {bars([each.waiting for each in self._history])}"),
            Text(f"pods    {bars([each.pods for each in self._history])}"),
            Text(""),
            Text(look.decision, style="italic"),
        )
        return Panel(group, title=f"pool orders, {look.at:.0f} s", title_align="left")


def line(look: Look, orders: int) -> str:
    """A look as one line."""
    return (
        f"{look.at:5.1f} s  waiting {look.waiting:3}  running {look.running:2}  "
        f"finished {look.finished:3} of {orders}  pods {look.pods} (ready {look.ready}, "
        f"leaving {look.draining})  {look.decision}"
    ).rstrip()


def bars(values: list[int]) -> str:
    """A row of bars, the latest `_WIDTH` moments of all, each column the largest of its time."""
    step = max(1, -(-len(values) // _WIDTH))
    columns = [max(values[at : at + step]) for at in range(0, len(values), step)]
    top = max(1, *columns) if columns else 1
    return "".join(_BARS[-(-value * (len(_BARS) - 1) // top)] for value in columns)
