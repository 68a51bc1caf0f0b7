"""Rules of ``spec.schedules`` of a WorkerPool beyond the schema."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from engineroom.api.schema.tree import describe_pattern
from engineroom.api.v1alpha1.jobschedule import AT_PATTERN, FUNCTION_PATTERN
from engineroom.api.v1alpha1.types import read_duration
from engineroom.core.errors import Problem
from engineroom.core.validation.cron import cron_problem, zone_problem
from engineroom.core.validation.json_values import as_list
from engineroom.core.validation.paths import nearest, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Arguments of one job, as JSON (bytes).
MAX_ARGUMENTS = 8192
#: The most schedules that the CRD allows; further ones are not checked.
MAX_SCHEDULES = 64
_WHEN = ("cron", "every", "at")

describe_pattern(
    FUNCTION_PATTERN,
    "the dotted path of a function",
    "write package.module.function, as the workers import it",
)
describe_pattern(
    AT_PATTERN, "a time with its offset", "write it such as 2026-03-01T08:00:00+01:00 or ...Z"
)


def problems(spec: dict[str, Any]) -> Iterator[Problem]:
    """Yield each problem of the job schedules that the schema does not find."""
    schedules = spec.get("schedules")
    queues = [
        queue["name"]
        for queue in as_list(spec.get("queues"))
        if isinstance(queue, dict) and isinstance(queue.get("name"), str)
    ]
    for index, schedule in enumerate(as_list(schedules)[:MAX_SCHEDULES]):
        if isinstance(schedule, dict):
            path = f"spec.schedules[{index}]"
            yield from _trigger_problems(schedule, path)
            yield from _lengths(schedule, path)
            yield from _job_problems(schedule, path, queues)


def _trigger_problems(schedule: dict[str, Any], path: str) -> Iterator[Problem]:
    times = [word for word in _WHEN if schedule.get(word) is not None]
    if not times:
        yield Problem(path, "says no time", "add one of cron, every and at")
    elif len(times) > 1:
        yield Problem(
            f"{path}.{times[1]}", f"conflicts with {times[0]}", "keep one of cron, every and at"
        )
    cron, zone, at = (schedule.get(word) for word in ("cron", "timeZone", "at"))
    if isinstance(cron, str) and 0 < len(cron) <= 100:
        problem = cron_problem(cron)
        if problem is not None:
            yield Problem(f"{path}.cron", *problem)
    if isinstance(zone, str) and 0 < len(zone) <= 64:
        problem = zone_problem(zone)
        if problem is not None:
            yield Problem(f"{path}.timeZone", *problem)
        elif times and "cron" not in times:
            yield Problem(
                f"{path}.timeZone", f"conflicts with {times[0]}", "remove it: only cron has a zone"
            )
    if isinstance(at, str) and len(at) <= 32:
        try:
            datetime.fromisoformat(at)
        except ValueError:
            # The schema reports other forms.
            if len(at) > 10 and at[:4].isdigit() and at[10] == "T":
                yield Problem(
                    f"{path}.at", f"{quoted(at)} is no time that exists", "correct the day or hour"
                )


def _lengths(schedule: dict[str, Any], path: str) -> Iterator[Problem]:
    every, jitter = read_duration(schedule.get("every")), read_duration(schedule.get("jitter"))
    if every is not None and every < 1:
        yield Problem(f"{path}.every", f"{quoted(schedule['every'])} is shorter than a second",
                      "write 1s or more")  # fmt: skip
    elif every is not None and every > 365 * 86400:
        yield Problem(f"{path}.every", f"{quoted(schedule['every'])} is longer than a year",
                      "write 365d or less")  # fmt: skip
    if jitter:
        jitter_text = quoted(schedule["jitter"])
        if schedule.get("at") is not None:
            yield Problem(f"{path}.jitter", "conflicts with at", "remove it")
        elif every is not None and jitter >= every:
            yield Problem(f"{path}.jitter", f"{jitter_text} is not less than every", "write less")
        elif every is None and jitter > 3600:
            yield Problem(
                f"{path}.jitter", f"{jitter_text} is longer than an hour", "write 1h or less"
            )
    retry = schedule.get("retry")
    waits = as_list(retry.get("intervals")) if isinstance(retry, dict) else []
    lengths = [("timeout", schedule.get("timeout"), 1), ("resultTTL", schedule.get("resultTTL"), 0)]
    lengths += [(f"retry.intervals[{at}]", wait, 0) for at, wait in enumerate(waits[:16])]
    for name, value, least in lengths:
        length = read_duration(value)
        if length is None:
            continue
        if length < least or length % 1:
            fix = f"write whole seconds, {least}s or more"
            yield Problem(f"{path}.{name}", f"{quoted(value)} is not in whole seconds", fix)
        elif length > 365 * 86400:
            yield Problem(
                f"{path}.{name}", f"{quoted(value)} is longer than a year", "write 365d or less"
            )


def _job_problems(schedule: dict[str, Any], path: str, queues: list[str]) -> Iterator[Problem]:
    queue = schedule.get("queue")
    if isinstance(queue, str) and queue and queues and queue not in queues:
        guess = nearest(queue, queues)
        fix = f"did you mean {guess}?" if guess else f"write one of {', '.join(queues[:10])}"
        yield Problem(f"{path}.queue", f"{quoted(queue)} is none of the pool's queues", fix)
    arguments = [schedule.get("args") or [], schedule.get("kwargs") or {}]
    size = len(json.dumps(arguments, default=str).encode())
    if size > MAX_ARGUMENTS:
        yield Problem(
            f"{path}.args",
            f"and kwargs have {size} bytes of JSON, more than {MAX_ARGUMENTS}",
            "store the data elsewhere and pass its key",
        )
