"""The demonstration's second part: a rate limit in front of the shop's web application."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tests.cluster.progress import step
from tests.deployed.web import BURST, RATE, Web, wait_enforced

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.deployed.installation import Installation
    from tests.deployed.web import Load

#: Requests per second, and seconds of load before and after the policy is applied.
OFFERED, BEFORE, AFTER = 300, 2, 9
FILE = "examples/shop/web/policy.yaml"


@dataclass(frozen=True)
class Applied:
    """Times in seconds since the start of `kubectl apply`."""

    returned: float
    status: float
    first_counted: float
    first_refused: float


@dataclass(frozen=True)
class Trial:
    """One load test, with ``replicas`` pods of each component."""

    replicas: int
    load: Load
    #: Decisions of each limiter, and the number of decisions made without Redis.
    decided: tuple[int, ...]
    without_redis: int

    @property
    def good(self) -> bool:
        """True if no window exceeds the bound and every request got a valid response."""
        return self.load.worst <= 1 and not self.load.failed


def deploy(installation: Installation) -> None:
    """Run the web application and nginx, one pod of each, without a limit."""
    web = Web(installation)
    web.deploy()
    web.scale(1)


def run(installation: Installation) -> bool:
    """Limit it under load, first with one pod of each component, then with three."""
    console = Console(highlight=False, soft_wrap=True)
    web = Web(installation)
    console.print("\nA rate limit in front of the shop's web application\n", style="italic")
    console.print(
        "nginx asks the limiter before it forwards a request. "
        f"One pod of each, {OFFERED} requests/s:"
    )
    first, applied = _first(web, console)
    with step("three of each: nginx, shop and limiter"):
        web.scale(3)
    console.print(
        "Three limiters share one count in Redis, so the bound stays the same. The same load:"
    )
    second = _second(web, console)
    _report(console, (first, second), applied)
    return first.good and second.good


def _first(web: Web, console: Console) -> tuple[Trial, Applied]:
    before = web.decisions()
    with web.load(OFFERED, BEFORE + AFTER) as running:
        marks = None
        for second in running.seconds():
            console.print(_line(second))
            if marks is None and second["at"] > BEFORE - 0.5:
                console.print(f"         kubectl apply -f {FILE}: {RATE} a second, {BURST} at once")
                marks = _apply(web)
        load = running.result()
    assert marks is not None
    assert load.first_counted is not None, "no response under the policy"
    assert load.first_refused is not None, "nothing was refused"
    started, returned, status = marks
    applied = Applied(
        returned - started,
        status - started,
        load.first_counted - started,
        load.first_refused - started,
    )
    return _trial(1, load, before, web.decisions()), applied


def _apply(web: Web) -> tuple[float, float, float]:
    started = time.time()
    web.limit()
    returned = time.time()
    return started, returned, wait_enforced(web)


def _second(web: Web, console: Console) -> Trial:
    before = web.decisions()
    with web.load(OFFERED, AFTER) as running:
        for second in running.seconds():
            console.print(_line(second))
        load = running.result()
    return _trial(3, load, before, web.decisions())


def _trial(
    replicas: int,
    load: Load,
    before: Mapping[str, Mapping[str, int]],
    after: Mapping[str, Mapping[str, int]],
) -> Trial:
    decided = [
        {source: count - before.get(pod, {}).get(source, 0) for source, count in counts.items()}
        for pod, counts in after.items()
    ]
    return Trial(
        replicas,
        load,
        tuple(sorted(sum(counts.values()) for counts in decided)),
        sum(counts.get(source, 0) for counts in decided for source in ("Local", "Policy")),
    )


def _line(second: Mapping[str, float]) -> str:
    if not second["counted"]:
        why = "no policy is attached to the Service shop: nothing is limited"
    elif not second["refused"]:
        why = f"the policy is in effect; its burst of {BURST} is being used"
    elif second["admitted"] > RATE * 1.15:
        why = f"the burst is used up; {RATE} a second remain"
    else:
        why = f"{RATE} a second; the rest get 429 and Retry-After"
    return (
        f"{second['at']:5.1f} s  sent {second['sent']:3.0f}  admitted {second['admitted']:3.0f}  "
        f"refused {second['refused']:3.0f}  {why}"
    )


def _report(console: Console, trials: tuple[Trial, ...], applied: Applied) -> None:
    table = Table(
        title="Admitted requests, with one and with three pods of nginx, shop and limiter",
        title_justify="left",
    )
    table.add_column("pods of each")
    for trial in trials:
        table.add_column(str(trial.replicas), justify="right")
    table.add_column("", style="dim")

    def row(name: str, values: list[str], note: str) -> None:
        table.add_row(name, *values, note)

    loads = [trial.load for trial in trials]
    row("admitted", [str(load.admitted) for load in loads], "200, counted by the client")
    row("refused", [str(load.refused) for load in loads], "429")
    row("other responses", [str(sum(load.failed.values())) for load in loads], "5xx, aborted")
    bounds = [f"{load.bound:.0f}" for load in loads]
    windows = " and ".join(f"{load.window:.1f} s" for load in loads)
    row("upper bound", bounds, f"{BURST} + {RATE}/s x {windows}")
    shares = [f"{load.worst:.3f}" for load in loads]
    row("worst window", shares, "admitted / (B + r x w) <= 1")
    decided = [" / ".join(map(str, trial.decided)) for trial in trials]
    row("each limiter", decided, "decisions, from its metrics")
    without = [str(trial.without_redis) for trial in trials]
    row("without Redis", without, "by its share of the rate")
    console.print(table)
    table = Table(title="From kubectl apply to enforced", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("kubectl returned", f"{applied.returned:.2f} s", "includes the start of kubectl")
    table.add_row(
        "status Enforced", f"{applied.status:.2f} s", "every limiter has acknowledged the policy"
    )
    table.add_row(
        "first counted request", f"{applied.first_counted:.2f} s", "with RateLimit headers"
    )
    table.add_row(
        "first refusal",
        f"{applied.first_refused:.2f} s",
        f"the burst lasts {BURST} / ({OFFERED} - {RATE}) s = {BURST / (OFFERED - RATE):g} s",
    )
    console.print(table)
