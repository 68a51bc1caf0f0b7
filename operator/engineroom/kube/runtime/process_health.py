"""Liveness and readiness of a process that runs controllers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engineroom import __version__
from engineroom.kube.runtime.health import ProbeResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.kube.runtime.kind_runtime import KindRuntime
    from engineroom.kube.runtime.process_parts import ProcessParts

#: A watch without an event for so long is dead: comparisons come more often than that (seconds).
WATCH_DEAD = 1800.0
#: The event loop counts as stuck after this delay, and Kopf's after this silence (seconds).
LOOP_STUCK, KOPF_STUCK = 30.0, 120.0


class ProcessHealth:
    """Reports on a process."""

    def __init__(self, process: ProcessParts, kinds: Sequence[KindRuntime]) -> None:
        self._process = process
        self._kinds = kinds

    def liveness(self) -> ProbeResult:
        """Report what a restart would heal: something hangs. An absent API server is no problem."""
        process, settings = self._process, self._process.settings
        report = self._report()
        facts, problems = report.facts, report.problems
        if facts["queue"]["oldestRun"] > 2 * settings.reconcile_timeout + settings.api_timeout:
            problems.append("a reconcile hangs past its time-out")
        if facts["loopLag"] > LOOP_STUCK:
            problems.append("the event loop is stuck")
        if process.watcher.silence() > KOPF_STUCK:
            problems.append("kopf's loop is stuck or has ended")
        if process.synced.is_set():
            problems += [
                f"no event or list of {kind} for {age} s"
                for kind, age in facts["watches"].items()
                if age > max(WATCH_DEAD, 2 * settings.resync[1])
            ]
        return report

    def readiness(self) -> ProbeResult:
        """Report what keeps the process from leading; a standby is ready."""
        report = self._report()
        if not self._process.synced.is_set():
            report.problems.append("caches are not filled yet")
        if self._process.stopping.is_set():
            report.problems.append("ending")
        return report

    def _report(self) -> ProbeResult:
        process = self._process
        elector, kinds = process.elector, self._kinds
        return ProbeResult(
            facts={
                "version": __version__,
                "identity": process.settings.who,
                "leader": process.is_leader,
                "holder": elector.holder if elector else process.settings.who,
                "epoch": elector.epoch if elector else 0,
                "watches": {
                    plural: round(age, 1)
                    for kind in kinds
                    if kind.available
                    for plural, age in kind.ages().items()
                },
                "queue": {
                    "depth": sum(kind.queue.depth for kind in kinds),
                    "running": sum(kind.queue.running for kind in kinds),
                    "oldestRun": round(max(kind.queue.oldest_run() for kind in kinds), 3),
                },
                "loopLag": round(process.lag.seconds(), 4),
            }
        )
