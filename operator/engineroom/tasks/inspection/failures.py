"""Failed jobs, page by page and filtered, and the history of a job's failures.

This module unpickles nothing: it reads the function's name from the bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from engineroom.core.redis_replies import text
from engineroom.queue import keys
from engineroom.tasks.enqueueing.task import EnqueueRules, check_queue
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.inspection.job_filter import JobFilter
from engineroom.tasks.inspection.scan import JobRow, decompress_traceback, exception_of, rows, walk
from engineroom.tasks.redis_steps import BatchStep, Steps

if TYPE_CHECKING:
    from engineroom.tasks.redis_steps import ScriptStep

#: Jobs that one step reads or requeues; a step blocks Redis for about 0.5 ms.
STEP = 25
MAX_PAGE = 500
#: Jobs that one page with a filter reads at most, however few match.
MAX_SCANNED = 1000

_NO_RULES = EnqueueRules()


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed job in a list; ``category`` is empty if the failure is not classified."""

    job_id: str
    queue: str
    function: str
    description: str
    exception: str
    message: str
    category: str
    failed_at: datetime | None
    worker: str
    #: How many workers it crashed.
    crashes: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One failed run of a job."""

    at: datetime
    exception: str
    message: str
    category: str = ""
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class FailurePage:
    """A page of failed jobs; ``cursor`` starts the next page and is None on the last.

    With a filter, a page before the last may be short or empty.
    """

    failures: tuple[Failure, ...]
    cursor: str | None
    scanned: int


def page(
    queue: str, where: JobFilter, cursor: str | None, limit: int, *, oldest_first: bool = False
) -> Steps[FailurePage]:
    """Return up to ``limit`` failed jobs after ``cursor``, newest first by their expiry.

    The cursor is a position and not an offset: jobs that are added or removed shift no page.
    """
    check_queue(queue, _NO_RULES)
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidTaskError("limit", f"{limit}", f"use 1 to {MAX_PAGE}")
    failures: list[Failure] = []
    scanned = 0
    unfiltered = where == JobFilter()
    while True:
        # Without a filter, read only the jobs of this page.
        count = min(STEP, limit - len(failures)) if unfiltered else STEP
        read, ended = rows((yield read_failed(queue, cursor, count, oldest_first=oldest_first)))
        for row in read:
            scanned += 1
            cursor = row.place
            failure = to_failure(queue, row)
            if matches(where, failure):
                failures.append(failure)
                if len(failures) == limit:
                    return FailurePage(tuple(failures), cursor, scanned)
        if ended:
            return FailurePage(tuple(failures), None, scanned)
        if scanned >= MAX_SCANNED:
            return FailurePage(tuple(failures), cursor, scanned)


def attempts(job_id: str) -> Steps[list[Attempt]]:
    """Return the job's known failures, oldest first; at most 30.

    RQ stores the last run only. Earlier runs are known for functions decorated with ``retrying``.
    """
    recorded, entries = yield BatchStep(
        [
            ["HGET", keys.job(job_id), "er_failures"],
            ["XRANGE", f"rq:results:{job_id}", "-", "+", "COUNT", 10],
        ]
    )
    history = [
        Attempt(
            datetime.fromisoformat(failure["at"]),
            failure["exception"],
            failure["message"],
            failure["category"],
        )
        for failure in json.loads(recorded or "[]")
    ]
    for entry_id, fields in entries:
        if fields.get(b"exc_string") is None:
            continue
        at = datetime.fromtimestamp(int(text(entry_id).partition("-")[0]) / 1000, UTC)
        traceback = decompress_traceback(fields[b"exc_string"])
        exception, message = exception_of(traceback)
        latest = history[-1] if history else None
        # RQ and ``retrying`` record the same run within a moment.
        if (
            latest is not None
            and latest.exception == exception
            and abs((at - latest.at).total_seconds()) < 5
        ):
            history[-1] = replace(latest, traceback=traceback)
        else:
            history.append(Attempt(at, exception, message, traceback=traceback))
    return sorted(history, key=lambda attempt: attempt.at)


def read_failed(
    queue: str, cursor: str | None, count: int, *, oldest_first: bool, bound: str = ""
) -> ScriptStep:
    """Return the invocation that reads failed jobs; see ``scan.walk``."""
    return walk(
        keys.failed(queue), cursor, count, oldest_first=oldest_first, failed=True, bound=bound
    )


def matches(where: JobFilter, failure: Failure) -> bool:
    """Return whether the failed job meets the filter."""
    return where.matches(
        failure.job_id, failure.function, failure.exception, failure.category,
        (failure.message, failure.description), failure.failed_at,
    )  # fmt: skip


def to_failure(queue: str, row: JobRow) -> Failure:
    """Return the row of a failed job as a Failure."""
    exception, message = exception_of(row.traceback)
    ended = row.fields["ended_at"]
    return Failure(
        job_id=row.job_id,
        queue=queue,
        function=row.function,
        description=row.fields["description"][:500],
        exception=exception,
        message=message[:500],
        category=row.fields["er_category"],
        failed_at=datetime.fromisoformat(ended) if ended else None,
        worker=row.ran_by,
        crashes=row.crashes,
    )
