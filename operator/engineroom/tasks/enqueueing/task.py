"""A task as data, with all options of its job, and the checks of its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import NoneType
from typing import Any, Literal, TypeAlias

from engineroom.tasks.errors import InvalidTaskError, UnknownQueueError
from engineroom.tasks.limits import Limit
from engineroom.tasks.serializers import PickleSerializer, Serializer
from engineroom.tasks.type_checks import (
    check_number,
    check_text,
    check_type,
    whole_number,
    wrong_type,
)

#: The function that a job runs: one that the worker can import, or its dotted path.
Function: TypeAlias = Callable[..., Any] | str

#: RQ's default for the longest run of a job (seconds).
DEFAULT_TIMEOUT = 180
#: Default of the largest size of function, arguments and meta together, serialised (bytes).
DEFAULT_MAX_BYTES = 1 << 20
#: Default of the largest size of a flow's jobs together, as stored (bytes).
DEFAULT_MAX_FLOW_BYTES = 2 << 20
MAX_QUEUE_NAME = 200
MAX_UNIQUE_KEY = 500
#: Most jobs that one job may depend on.
MAX_DEPENDENCIES = 1000
#: Longest delay, time to live and window (seconds): ten years.
MAX_SECONDS = 10 * 366 * 86400


@dataclass(frozen=True, slots=True)
class Retry:
    """The number of retries of a job that raised, and the seconds to wait before each.

    The last of ``intervals`` applies to all further retries. ``maximum`` does not count the first
    attempt.
    """

    maximum: int
    intervals: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        maximum = whole_number("retry.maximum", self.maximum)
        check_type("retry.intervals", self.intervals, (tuple, list), "use a list or tuple")
        if not 1 <= maximum <= 1000:
            raise InvalidTaskError("retry.maximum", f"{self.maximum} tries", "use 1 to 1000")
        if not 1 <= len(self.intervals) <= 1000:
            raise InvalidTaskError("retry.intervals", "is empty or too long", "use 1 to 1000")
        for seconds in self.intervals:
            if not 0 <= whole_number("retry.intervals", seconds) <= MAX_SECONDS:
                raise InvalidTaskError("retry.intervals", f"{seconds!r}", "use whole seconds >= 0")

    def for_rq(self) -> list[int]:
        """Return one interval per retry, as RQ stores them.

        RQ counts from the end of a shorter list, so it would repeat the first interval instead of
        the last.
        """
        return [int(self.intervals[min(at, len(self.intervals) - 1)]) for at in range(self.maximum)]


@dataclass(frozen=True, slots=True)
class Unique:
    """An idempotency key: within ``window`` seconds one job runs for all uses of the ``key``.

    ``until="window"`` releases the key at the end of the window. ``until="end"`` also releases it
    as soon as the job has finished, has failed without a retry, or no longer exists.
    """

    key: str
    window: float = 3600.0
    until: Literal["window", "end"] = "window"

    def __post_init__(self) -> None:
        check_text("unique.key", self.key)
        check_number("unique.window", self.window)
        if not 0 < len(self.key) <= MAX_UNIQUE_KEY:
            raise InvalidTaskError(
                "unique.key", f"{len(self.key)} characters", f"use 1 to {MAX_UNIQUE_KEY}"
            )
        if not 0.001 <= self.window <= MAX_SECONDS:
            raise InvalidTaskError("unique.window", f"{self.window} s", "use 0.001 s to 10 years")
        if self.until not in ("window", "end"):
            raise InvalidTaskError("unique.until", "is neither", "use 'window' or 'end'")


@dataclass(frozen=True, slots=True)
class Callback:
    """A function that the worker calls at the end of a job, and its time limit in seconds.

    ``function`` is a module's function or its dotted path. RQ calls it with the job, the
    connection, and the result (``on_success``) or the exception's type, value and traceback
    (``on_failure``, after each failed attempt).
    """

    function: Function
    timeout: int = 60

    def __post_init__(self) -> None:
        whole_number("callback.timeout", self.timeout)
        if not 1 <= self.timeout <= 86400:
            raise InvalidTaskError("callback.timeout", f"{self.timeout} s", "use 1 to 86400")


@dataclass(frozen=True, slots=True)
class Task:
    """A function with its arguments and the options of its job. Durations are seconds.

    ``ttl`` bounds the time that the job may wait. ``result_ttl`` and ``failure_ttl`` say how long
    a finished and a failed job stay in Redis (-1: forever; None: the worker's default). ``delay``
    or ``at`` schedule the job for later. ``priority`` orders jobs within the queue, from 0 (the
    priority of a job of plain RQ) to 9; each step is worth 400 s of waiting. The job runs after the
    jobs with the ids ``depends_on`` have finished; a job that no longer exists counts as finished,
    and ``allow_failure`` also accepts failed jobs. ``description`` is text for people, cut to 2,000
    characters; the default is the call.
    """

    function: Function
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    queue: str = "default"
    timeout: int = DEFAULT_TIMEOUT
    ttl: int | None = None
    result_ttl: int | None = None
    failure_ttl: int | None = None
    retry: Retry | None = None
    meta: Mapping[str, Any] | None = None
    delay: float | timedelta | None = None
    at: datetime | None = None
    at_front: bool = False
    priority: int = 0
    limit: Limit | None = None
    unique: Unique | None = None
    job_id: str | None = None
    description: str | None = None
    depends_on: Sequence[str] = ()
    allow_failure: bool = False
    on_success: Callback | Function | None = None
    on_failure: Callback | Function | None = None
    on_stopped: Callback | Function | None = None


@dataclass(frozen=True, slots=True)
class EnqueueRules:
    """The application's limits for what it enqueues, checked before anything is written.

    ``queues`` are the allowed names; None allows all. See DEFAULT_MAX_BYTES for ``max_bytes`` and
    DEFAULT_MAX_FLOW_BYTES for ``max_flow_bytes``.
    """

    queues: frozenset[str] | None = None
    max_bytes: int = DEFAULT_MAX_BYTES
    serializer: Serializer = PickleSerializer
    max_flow_bytes: int = DEFAULT_MAX_FLOW_BYTES


#: Types of the fields that have no further check, and the fix for other types. Text is a sequence
#: of characters, too; ``check_task`` refuses it.
_FIELD_TYPES: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("args", (tuple, list, Sequence), "use a list or tuple"),
    ("kwargs", (dict, Mapping), "use a dict"),
    ("retry", (NoneType, Retry), "use Retry(maximum, intervals)"),
    ("meta", (NoneType, dict, Mapping), "use a dict"),
    ("at", (NoneType, datetime), "use a datetime with a time zone"),
    ("at_front", (bool,), "use True or False"),
    ("limit", (NoneType, Limit), "use Limit(key, ...)"),
    ("unique", (NoneType, Unique), "use Unique(key)"),
    ("job_id", (NoneType, str), "use text"),
    ("description", (NoneType, str), "use text"),
    ("depends_on", (tuple, list, Sequence), "use a list of job ids"),
    ("allow_failure", (bool,), "use True or False"),
)
_TEXT_TYPES = (str, bytes, bytearray, memoryview)


def check_task(task: Task) -> None:
    """Raise InvalidTaskError unless this is a Task whose fields have the right types."""
    check_type("task", task, Task, "use Task(function, ...)")
    for name, types, fix in _FIELD_TYPES:
        value = getattr(task, name)
        if not isinstance(value, types) or (types[0] is tuple and isinstance(value, _TEXT_TYPES)):
            raise wrong_type(name, value, fix)
    for name in task.kwargs:
        if not isinstance(name, str):
            raise InvalidTaskError("kwargs", "has a name that is no text", "use names of arguments")


def check_queue(name: str, rules: EnqueueRules) -> None:
    """Raise InvalidTaskError for an invalid name, and UnknownQueueError for one not allowed."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_QUEUE_NAME or not name.isprintable():
        raise InvalidTaskError(
            "queue", "is no name", f"use 1 to {MAX_QUEUE_NAME} printable characters"
        )
    if name.endswith(":intermediate"):
        raise InvalidTaskError("queue", f"{name!r} names RQ's own list", "use another name")
    if rules.queues is not None and name not in rules.queues:
        allowed = ", ".join(sorted(rules.queues)[:10])
        raise UnknownQueueError("queue", f"{name!r} is not known", f"use one of {allowed}")
