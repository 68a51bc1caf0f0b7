"""The schedule as data: what a caller stores, what a caller reads, and the form in Redis."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from engineroom.core import key_prefixes
from engineroom.core.redis_replies import text
from engineroom.tasks.triggers import Cron, Every, Missed, Once, Trigger

if TYPE_CHECKING:
    from engineroom.tasks.enqueueing.task import Task

#: Sorted set of the names of schedules by their next tick, in Unix seconds.
INDEX = key_prefixes.SCHEDULES
#: Hash from each owner to the installation that manages it.
OWNERS = f"{INDEX}:owners"
#: Fields of a schedule's hash that scripts return after its name and its score; see
#: ``read_schedule``.
FIELDS = ("spec", "last", "version", "paused", "owner", "last_job", "dropped")

_TRIGGERS: dict[str, type[Trigger]] = {"cron": Cron, "every": Every, "once": Once}


@dataclass(frozen=True, slots=True)
class Schedule:
    """A task and its trigger. A tick later than ``grace`` seconds counts as missed."""

    name: str
    trigger: Trigger
    task: Task
    missed: Missed = Missed.RUN_ONCE
    grace: float = 60.0
    #: Suspends the ticks of an owned schedule; use ``pause`` and ``resume`` for all others.
    paused: bool = False


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A stored schedule; times are Unix seconds.

    ``last`` is the latest tick that enqueued a job, and ``last_job`` that job's id. ``dropped``
    counts the ticks that the policy did not run. ``owner`` is empty for a schedule made at run
    time. ``version`` grows with each change.
    """

    name: str
    trigger: Trigger
    queue: str
    description: str
    missed: Missed
    grace: float
    next: float | None
    last: float | None
    paused: bool = False
    owner: str = ""
    last_job: str = ""
    dropped: int = 0
    version: int = 0


def schedule_key(name: str) -> str:
    """Return the key of the schedule's hash."""
    return f"{key_prefixes.SCHEDULE}{name}"


def template_key(name: str) -> str:
    """Return the key of the hash from which each tick's job is copied."""
    return f"{key_prefixes.SCHEDULE}{name}:job"


def owned_key(owner: str) -> str:
    """Return the key of the owner's set of schedule names; the empty owner has no set."""
    return f"{INDEX}:of:{owner}"


def score(seconds: float) -> str:
    """Format Unix seconds as Redis formats a score: scripts compare the two as text."""
    return f"{seconds:.17g}"


def spec_json(schedule: Schedule, queue: str, description: str) -> str:
    """Return the schedule's ``spec`` field; equal schedules have equal text."""
    return json.dumps(
        {
            "trigger": json.loads(trigger_json(schedule.trigger)),
            "queue": queue,
            "description": description,
            "missed": schedule.missed.value,
            "grace": schedule.grace,
        },
        sort_keys=True,
    )


def trigger_json(trigger: Trigger) -> str:
    """Return the schedule's ``trigger`` field; equal triggers have equal text."""
    kind = next(
        name for name, trigger_type in _TRIGGERS.items() if isinstance(trigger, trigger_type)
    )
    return json.dumps({"kind": kind, **asdict(trigger)}, sort_keys=True)


def read_schedule(row: Any) -> ScheduleInfo:
    """Read a script's row: name, score, then FIELDS.

    Raises ValueError, KeyError, TypeError or InvalidTaskError for a row of another version.
    """
    name, next_score, spec_text, last, version, paused, owner, last_job, dropped = row
    spec = json.loads(spec_text)
    return ScheduleInfo(
        name=text(name),
        trigger=_read_trigger(json.dumps(spec["trigger"])),
        queue=spec["queue"],
        description=spec["description"],
        missed=Missed(spec["missed"]),
        grace=spec["grace"],
        next=float(next_score) if next_score and text(next_score) != "inf" else None,
        last=float(last) if last else None,
        paused=text(paused) == "1",
        owner=text(owner),
        last_job=text(last_job),
        dropped=int(dropped or 0),
        version=int(version or 0),
    )


@lru_cache(maxsize=4096)
def _read_trigger(stored: str) -> Trigger:
    # Cached: a trigger validates itself on construction, which takes longer than a tick.
    fields = json.loads(stored)
    return _TRIGGERS[fields.pop("kind")](**fields)
