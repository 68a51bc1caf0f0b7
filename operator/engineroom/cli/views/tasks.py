"""Jobs, queues, schedules and workers as tables, and as JSON documents.

Documents have the fields of ``engineroom.tasks`` in camel case (``job_id`` is ``jobId``); times are
ISO 8601 in UTC, durations are seconds.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from engineroom.cli.views.output_formats import Indent, table, word
from engineroom.cli.views.text import ABSENT, age, clip, cpu, memory, number, span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from engineroom.tasks import (
        Impact,
        JobDetail,
        JobSummary,
        Progress,
        QueueCounts,
        QueueLimit,
        Worker,
    )
    from engineroom.tasks.schedules.model import ScheduleInfo
    from engineroom.tasks.triggers import Trigger

#: Number of last lines of a traceback that are shown; ``-o wide`` shows all.
TRACEBACK_LINES = 15


def document(value: Any) -> Any:
    """Return a value of ``engineroom.tasks`` as JSON data."""
    if is_dataclass(value) and not isinstance(value, type):
        return {_camel(field.name): document(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): document(item) for key, item in value.items()}
    if isinstance(value, list | tuple | frozenset | set):
        return [document(item) for item in value]
    return value


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def page_document(items: Sequence[Any], following: str | None) -> dict[str, Any]:
    """Return a page of a list: ``items``, and ``next`` for ``--after`` (null on the last page)."""
    return {"items": [document(item) for item in items], "next": following}


def jobs_table(jobs: Sequence[JobSummary], now: datetime, *, wide: bool = False) -> Table:
    """Return a table with one row per job."""
    columns = ["ID", "STATE", "QUEUE", "FUNCTION", "WHEN"]
    if wide:
        columns += ["WORKER", "TRIES LEFT", "CATEGORY"]
    columns.append("ABOUT")
    rows: list[list[str | Text]] = []
    for job in jobs:
        row: list[str | Text] = [
            job.job_id,
            word(job.state.value),
            job.queue,
            job.function or ABSENT,
            when(job.at, now),
        ]
        if wide:
            row += [job.worker or ABSENT, number(job.retries_left), job.category or ABSENT]
        row.append(about(job, wide=wide))
        rows.append(row)
    return table(columns, rows, right=("TRIES LEFT",))


def about(job: JobSummary, *, wide: bool = False) -> str:
    """Return the error of a failed job, else its call."""
    text = f"{job.exception}: {job.message}" if job.exception else job.description
    return " ".join(clip(text, 200 if wide else 60).split()) or ABSENT


def when(at: datetime | None, now: datetime) -> str:
    """Return a time relative to ``now``: ``5m ago``, ``in 10m``, or a dash for None."""
    if at is None:
        return ABSENT
    return f"in {span((at - now).total_seconds())}" if at > now else f"{age(at, now)} ago"


def job_view(detail: JobDetail, now: datetime, *, wide: bool = False) -> Group:
    """Return the details of one job for the terminal."""
    job = detail.job
    parts: list[RenderableType] = [
        Text.assemble((job.function or job.job_id, "bold"), "  ", word(job.state.value)),
        _facts(detail, now),
    ]
    if detail.progress is not None:
        parts += [_title("Progress"), Indent(Text(progress_text(detail.progress, now)))]
    parts += [_title("Arguments"), Indent(_arguments(detail))]
    parts += [_title("Time line"), Indent(_timeline(detail, now))]
    for name, linked in (("Waits for", detail.depends_on), ("Waited for by", detail.dependents)):
        if linked:
            rows = [(entry.job_id, word(entry.status or "gone")) for entry in linked]
            parts += [_title(name), Indent(table(["ID", "STATE"], rows, header=False))]
    if detail.attempts and detail.attempts[-1].traceback:
        lines = detail.attempts[-1].traceback.rstrip().splitlines()
        left = 0 if wide else max(0, len(lines) - TRACEBACK_LINES)
        note = f" (the last {TRACEBACK_LINES} of {len(lines)} lines; -o wide shows all)"
        parts.append(_title("Traceback" + (note if left else "")))
        parts.append(Indent(Text("\n".join(lines[left:]))))
    return Group(*parts)


def _facts(detail: JobDetail, now: datetime) -> Table:
    job = detail.job
    tries = number(job.retries_left)
    if detail.retry_intervals:
        intervals = ", ".join(f"{retry_interval}s" for retry_interval in detail.retry_intervals[:5])
        tries += f" (after {intervals}{', ...' if len(detail.retry_intervals) > 5 else ''})"
    expires = ABSENT if detail.expires_at is None else when(detail.expires_at, now)
    rows = [
        ("id", job.job_id),
        ("queue", job.queue + (f", {detail.ahead} ahead" if detail.ahead is not None else "")),
        ("status", detail.status or ABSENT),
    ]
    if job.exception:
        category = f" ({job.category})" if job.category else ""
        rows.append(("error", f"{job.exception}: {job.message}{category}"))
    if job.crashes:
        rows.append(("crashes", f"its worker died {job.crashes} times"))
    rows += [
        ("worker", job.worker or ABSENT),
        ("tries left", tries),
        ("timeout", _seconds(detail.timeout)),
        ("expires", expires),
    ]
    if detail.schedule:
        rows.append(("schedule", detail.schedule))
    return table(["", ""], rows, header=False)


def _seconds(length: int | None) -> str:
    if length is None:
        return ABSENT
    return "none" if length < 0 else span(length)


def _arguments(detail: JobDetail) -> Text:
    import json

    call = detail.call
    if call.problem:
        return Text(f"not shown: {call.problem}\n{detail.job.description}".rstrip())
    lines = [json.dumps(value, ensure_ascii=False) for value in call.args]
    lines += [
        f"{name}={json.dumps(value, ensure_ascii=False)}"
        for name, value in (call.kwargs or {}).items()
    ]
    return Text("\n".join(lines) or "none")


def _timeline(detail: JobDetail, now: datetime) -> Table:
    rows = [
        (entry.at.strftime("%Y-%m-%d %H:%M:%S"), when(entry.at, now), entry.what, entry.note)
        for entry in detail.timeline
    ]
    return table(["", "", "", ""], rows, header=False)


def progress_text(progress: Progress, now: datetime) -> str:
    """Return the progress of a job: ``40 of 100 (40%), importing; 3s ago``."""
    text = f"{progress.count:g}"
    if progress.total is not None:
        text += f" of {progress.total:g}"
    if progress.fraction is not None:
        text += f" ({progress.fraction:.0%})"
    if progress.message:
        text += f", {progress.message}"
    return f"{text}; {age(progress.at, now)} ago"


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def impact_text(impact: Impact) -> str:
    """Return ``12 jobs``, or a lower bound if not all jobs were checked."""
    if impact.complete:
        return f"{impact.matched} job{'' if impact.matched == 1 else 's'}"
    return f"at least {impact.matched} jobs ({impact.scanned} of {impact.total} checked)"


def queues_table(queues: Sequence[QueueCounts], *, wide: bool = False) -> Table:
    """Return a table with one row per queue."""
    columns = ["NAME", "STATE", "WAITING", "RUNNING", "SCHEDULED", "DEFERRED", "FAILED"]
    if wide:
        columns += ["DUE", "FINISHED", "CANCELED", "HELD"]
    figures = columns[2:]
    columns += ["LIMIT", "REASON"]
    rows: list[list[str | Text]] = []
    for queue in queues:
        counts = [queue.waiting, queue.running, queue.scheduled, queue.deferred, queue.failed]
        if wide:
            counts += [queue.due, queue.finished, queue.canceled, queue.held]
        row: list[str | Text] = [queue.name, word("Paused") if queue.paused else "open"]
        row += map(str, counts)
        row += [_limit(queue.limit), clip(queue.reason, 60) or ABSENT]
        rows.append(row)
    return table(columns, rows, right=figures)


def _limit(limit: QueueLimit | None) -> str:
    if limit is None:
        return ABSENT
    limits = [] if limit.concurrency is None else [f"{limit.concurrency} at once"]
    return ", ".join([*limits, *([limit.rate] if limit.rate else [])])


def workers_table(workers: Sequence[Worker], now: datetime, *, wide: bool = False) -> Table:
    """Return a table with one row per worker."""
    columns = ["NAME", "HEALTH", "STATE", "JOB", "FOR", "HEARTBEAT", "MEMORY", "POOL", "HOST"]
    if wide:
        columns += ["QUEUES", "CPU", "PID", "FINISHED", "FAILED", "AGE", "RQ"]
    rows: list[list[str | Text]] = []
    for worker in workers:
        row: list[str | Text] = [
            worker.name,
            word(worker.health.value),
            word(worker.state or ABSENT),
            worker.job or ABSENT,
            age(worker.job_started, now),
            when(worker.heartbeat, now),
            memory(worker.memory),
            worker.pool or ABSENT,
            worker.pod or worker.host or ABSENT,
        ]
        if wide:
            row += [
                clip(",".join(worker.queues), 40) or ABSENT,
                ABSENT if worker.cpu is None else cpu(round(worker.cpu * 1000)),
                number(worker.pid),
                str(worker.finished),
                str(worker.failed),
                age(worker.birth, now),
                worker.rq_version or ABSENT,
            ]
        rows.append(row)
    return table(columns, rows, right=("MEMORY", "CPU", "PID", "FINISHED", "FAILED"))


def trigger_text(trigger: Trigger) -> str:
    """Return a short description of a trigger."""
    spec = document(trigger)
    if isinstance(spec, str):
        return spec  # already the text of the API
    later = f" (up to {span(spec['jitter'])} later)" if spec.get("jitter") else ""
    if "line" in spec:
        return f"{spec['line']} {spec['zone']}{later}"
    if "seconds" in spec:
        return f"every {span(spec['seconds'])}{later}"
    return f"once at {datetime.fromtimestamp(spec['at'], UTC):%Y-%m-%d %H:%M:%S} UTC"


def schedule_document(schedule: ScheduleInfo) -> dict[str, Any]:
    """Return a schedule as JSON data, with its times in ISO 8601."""
    values: dict[str, Any] = document(schedule)
    for name in ("next", "last"):
        values[name] = document(_moment(values[name]))
    return values


def _moment(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)


def schedules_table(
    schedules: Sequence[ScheduleInfo], now: datetime, *, wide: bool = False
) -> Table:
    """Return a table with one row per schedule."""
    columns = ["NAME", "STATE", "WHEN", "NEXT", "LAST", "QUEUE", "OWNER"]
    if wide:
        columns += ["MISSED", "GRACE", "DROPPED", "LAST JOB"]
    columns.append("CALL")
    rows: list[list[str | Text]] = []
    for schedule in schedules:
        row: list[str | Text] = [
            schedule.name,
            word("Paused") if schedule.paused else "on",
            trigger_text(schedule.trigger),
            when(_moment(schedule.next), now),
            when(_moment(schedule.last), now),
            schedule.queue,
            schedule.owner or ABSENT,
        ]
        if wide:
            row += [
                schedule.missed.value,
                span(schedule.grace),
                str(schedule.dropped),
                schedule.last_job or ABSENT,
            ]
        row.append(clip(schedule.description, 60))
        rows.append(row)
    return table(columns, rows, right=("DROPPED",))


def schedule_view(schedule: ScheduleInfo, now: datetime) -> Group:
    """Return one schedule and its next five ticks for the terminal."""
    facts = [
        ("when", trigger_text(schedule.trigger)),
        ("state", "paused" if schedule.paused else "on"),
        ("owner", f"WorkerPool {schedule.owner}" if schedule.owner else "created at run time"),
        ("queue", schedule.queue),
        ("calls", schedule.description),
        ("if missed", f"{schedule.missed.value}, when later than {span(schedule.grace)}"),
        (
            "last",
            when(_moment(schedule.last), now)
            + (f" ({schedule.last_job})" * bool(schedule.last_job)),
        ),
        ("dropped", str(schedule.dropped)),
    ]
    ticks: list[tuple[str, str]] = []
    at = schedule.next
    while at is not None and len(ticks) < 5:
        moment = datetime.fromtimestamp(at, UTC)
        ticks.append((f"{moment:%Y-%m-%d %H:%M:%S} UTC", when(moment, now)))
        # A trigger from the API is a text, so only the next tick is known.
        after = getattr(schedule.trigger, "after", None)
        at = after(at, schedule.name) if after is not None else None
    following = table(["", ""], ticks, header=False) if ticks else Text("none")
    return Group(
        Text(schedule.name, style="bold"),
        table(["", ""], facts, header=False),
        _title("Next ticks"),
        Indent(following),
    )
