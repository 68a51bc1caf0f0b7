"""Job schedules of a WorkerPool: which job is enqueued when."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from engineroom.api.v1alpha1.types import Duration, Model

FUNCTION_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+$"
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
#: RFC 3339 with the offset from UTC; seconds may be left out.
AT_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[-+][0-9]{2}:[0-9]{2})$"
_ANY: Any = {"x-kubernetes-preserve-unknown-fields": True}


class Missed(StrEnum):
    """Policy for ticks that could not run in time."""

    SKIP = "Skip"
    RUN_ONCE = "RunOnce"
    RUN_ALL = "RunAll"


class JobRetry(Model):
    """Retries of a job that raised."""

    max: int = Field(ge=1, le=100, description="Number of retries.")
    intervals: list[Duration] = Field(
        default_factory=list,
        max_length=16,
        description=(
            "Delays before the retries, in whole seconds; the last one repeats if there "
            "are more retries. Absent: no delay."
        ),
    )


class JobSchedule(Model):
    """A job that is enqueued when its time has come: exactly one of cron, every and at."""

    name: str = Field(
        min_length=1, max_length=40, pattern=NAME_PATTERN, description="Name of the schedule."
    )
    cron: str | None = Field(
        default=None, min_length=1, max_length=100, description="Cron expression with five fields."
    )
    every: Duration | None = Field(
        default=None, description="Interval between ticks, counted from midnight UTC of 1970."
    )
    at: str | None = Field(
        default=None,
        max_length=32,
        pattern=AT_PATTERN,
        description=(
            "A single time, such as 2026-03-01T08:00:00+01:00. A time that is past when "
            "the schedule is first seen has no tick."
        ),
    )
    time_zone: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="IANA time zone of the cron expression; absent: UTC.",
    )
    jitter: Duration | None = Field(
        default=None,
        description=(
            "Each tick is delayed by up to this time, by a fixed share per schedule. "
            "Must be less than every; at most 1h for cron."
        ),
    )
    missed: Missed = Field(
        default=Missed.RUN_ONCE,
        description=(
            "Ticks that were missed because Redis or the operator was unavailable: Skip "
            "runs those less than a minute late, RunOnce the latest one, RunAll all."
        ),
    )
    suspend: bool = Field(
        default=False, description="Stop the ticks; those in the meantime are dropped."
    )
    queue: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="One of the pool's queues; absent: the first of them.",
    )
    function: str = Field(
        max_length=200,
        pattern=FUNCTION_PATTERN,
        description="Dotted path of the function, as the workers import it.",
    )
    args: list[Annotated[Any, Field(json_schema_extra=_ANY, description="Any value.")]] = Field(
        default_factory=list,
        max_length=64,
        description="Positional arguments; with kwargs at most 8 KiB of JSON.",
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Keyword arguments; null counts as absent.",
        json_schema_extra=_ANY,
    )
    timeout: Duration = Field(
        default=Duration("3m"), description="Longest run time of the job, in whole seconds."
    )
    result_ttl: Duration | None = Field(
        default=None,
        alias="resultTTL",
        description=(
            "Time for which the result is stored, in whole seconds; absent: RQ's default, 500 s."
        ),
    )
    retry: JobRetry | None = Field(default=None, description="Retries after a failure.")


class JobScheduleStatus(Model):
    """Last and next tick of one schedule."""

    name: str = Field(description="Name of the schedule.")
    last_time: str | None = Field(
        default=None,
        description="The latest tick that enqueued a job (RFC 3339).",
        json_schema_extra={"format": "date-time"},
    )
    last_job_id: str | None = Field(
        default=None, alias="lastJobID", description="The job of the latest tick."
    )
    next_time: str | None = Field(
        default=None,
        description="The next tick; absent if there is none (RFC 3339).",
        json_schema_extra={"format": "date-time"},
    )
    missed: int = Field(default=0, description="Missed ticks that the policy dropped.")
