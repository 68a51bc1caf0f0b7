"""The facts that determine the status of a policy, from the results of its namespace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engineroom.ratelimit.limits.model import FailureMode
from engineroom.ratelimit.reconcile.decide import (
    NO_DOCUMENT,
    CurrentDocument,
    EnforcerAssignment,
    EnforcerCount,
    count_enforcers,
)
from engineroom.ratelimit.reconcile.documents import lagging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engineroom.ratelimit.distribution.compile import CompileResult
    from engineroom.ratelimit.distribution.document import Target
    from engineroom.ratelimit.reconcile.documents import ProgramResult

#: Seconds until the next run: while an enforcer lags, at rest, and while Redis does not answer.
LAGGING_SECONDS, AT_REST_SECONDS, UNREACHABLE_SECONDS = 1.0, 3.0, 1.0
#: Seconds that a policy stays degraded after the last reported fallback, and seconds between two
#: updates of the number while it is degraded.
DEGRADED_SECONDS, FALLBACKS_INTERVAL = 30.0, 15.0


@dataclass(frozen=True, slots=True)
class FallbackState:
    """The decisions on a policy without Redis."""

    total: int = 0
    #: Whether some of them are recent.
    recent: bool = False
    mode: FailureMode = FailureMode.LOCAL

    def replaces(self, reported: FallbackState, age: float) -> bool:
        """Return whether status should change from ``reported``, ``age`` seconds old, to this.

        A larger number alone waits for FALLBACKS_INTERVAL.
        """
        only_number = (self.recent, self.mode) == (reported.recent, reported.mode)
        if only_number and self.recent and age < FALLBACKS_INTERVAL:
            return False
        return self != reported


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """All that a status is made from: equal facts result in equal statuses, except for times."""

    generation: int
    result: CompileResult | None
    #: None if Redis could not be read.
    count: EnforcerCount | None
    #: All targets of the spec, and those that do not exist.
    targets: tuple[Target, ...] = ()
    missing: tuple[Target, ...] = ()
    #: Why the spec is invalid; "" for a valid one.
    invalid: str = ""
    #: (reason, message) of a failed read or write of Redis.
    trouble: tuple[str, str] | None = None
    #: Why the document belongs to another installation; "" if it does not.
    foreign: str = ""
    fallbacks: FallbackState = field(default_factory=FallbackState)
    #: Whether a missing Secret exceeded the progress deadline.
    overdue: bool = False


def fallback_state(result: ProgramResult, name: str) -> FallbackState:
    """Return the fallbacks of a policy, as its enforcers reported them."""
    count = None if result.roster is None else result.roster.fallbacks.get(name)
    if count is None:
        return FallbackState()
    part = None if result.head is None else result.head.parts.get(name)
    mode = FailureMode(part["policy"]["failure"][0]) if part else FailureMode.LOCAL
    return FallbackState(count.total, count.age < DEGRADED_SECONDS, mode)


def enforcer_counter(
    results: Iterable[ProgramResult],
) -> Callable[[ProgramResult, str], EnforcerCount | None]:
    """Return a function that counts the enforcers of a policy in one of the results."""
    # All policies of one Redis have the same result.
    distinct = {id(result): result for result in results}
    assignments = {
        key: EnforcerAssignment(result.roster.enforcers, result.compiled.parts)
        for key, result in distinct.items()
        if result.roster is not None and result.compiled is not None
    }
    counts: dict[tuple[int, int], EnforcerCount] = {}

    def count(result: ProgramResult, name: str) -> EnforcerCount | None:
        assignment = assignments.get(id(result))
        if assignment is None:
            return None
        enforcers = assignment.of(name)
        head = result.head
        current = NO_DOCUMENT if head is None else CurrentDocument(*head[:3])
        since = head.policies[name][1] if head is not None and name in head.policies else 0
        if enforcers.by_labels:
            return count_enforcers(enforcers, current, since)
        # Thousands of policies have the same decision services.
        key = id(result), since
        if key not in counts:
            counts[key] = count_enforcers(enforcers, current, since)
        return counts[key]

    return count


def status_inputs(results: Iterable[ProgramResult]) -> object:
    """Return what statuses depend on besides the policies; equal if nothing changed."""
    distinct = {id(result): result for result in results}.values()
    return frozenset(
        (
            id(result.compiled),
            result.head and result.head[:3],
            result.roster
            and frozenset(
                (enforcer.identity, enforcer.acknowledgement, enforcer.live)
                for enforcer in result.roster.enforcers
            ),
            result.roster
            and frozenset(
                (name, count.total, count.age < DEGRADED_SECONDS)
                for name, count in result.roster.fallbacks.items()
            ),
            result.trouble,
            result.foreign,
        )
        for result in distinct
    )


def next_look(results: Iterable[ProgramResult]) -> float:
    """Return the seconds until the next reconcile."""
    waits = [AT_REST_SECONDS]
    for result in results:
        if result.trouble is not None:
            waits.append(UNREACHABLE_SECONDS)
        elif (
            result.roster is not None
            and result.head is not None
            and lagging(result.roster, result.head)
        ):
            waits.append(LAGGING_SECONDS)
    return min(waits)


def live_and_current(result: ProgramResult) -> tuple[int, int]:
    """Return how many enforcers are live, and how many of them have the newest document."""
    enforcers = () if result.roster is None else result.roster.enforcers
    newest = "" if result.head is None else result.head.hash
    acknowledged = [enforcer.acknowledgement for enforcer in enforcers if enforcer.live]
    current = sum(entry is not None and entry.hash == newest for entry in acknowledged)
    return len(acknowledged), current
