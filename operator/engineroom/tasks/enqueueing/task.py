"""A task as data, and the RQ job that it becomes.

The fields written are those of ``rq.job.Job.to_dict``, the same in RQ 2 and RQ 3; a test compares
them with RQ's own.
"""

from __future__ import annotations

import inspect
import json
import pickle  # nosec B403 - RQ's own default; what is read back is never unpickled here
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import NoneType
from typing import Any, Literal, Protocol, TypeAlias
from uuid import uuid4

from engineroom.core.context import carried
from engineroom.queue.priority import MAX_PRIORITY
from engineroom.tasks.errors import InvalidTaskError, TaskTooLargeError, UnknownQueueError
from engineroom.tasks.limits import Limit
from engineroom.tasks.type_checks import (
    check_kind,
    check_number,
    check_text,
    plain,
    whole,
    wrong_kind,
)

#: What runs: something importable by the worker, or its dotted path.
Function: TypeAlias = Callable[..., Any] | str

#: RQ's default for how long a job may run (seconds).
DEFAULT_TIMEOUT = 180
#: Function, arguments and meta, serialised: largest size unless told otherwise (bytes).
DEFAULT_MAX_BYTES = 1 << 20
#: The jobs of a flow together, as they are stored, unless told otherwise (bytes).
DEFAULT_MAX_FLOW_BYTES = 2 << 20
MAX_QUEUE_NAME = 200
MAX_UNIQUE_KEY = 500
#: Jobs that one job may wait for.
MAX_DEPENDENCIES = 1000
#: Longest delay, time to live and window (seconds): ten years.
MAX_SECONDS = 10 * 366 * 86400

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
MAX_PATH = 500
#: Characters of a description, and of each argument in it.
MAX_DESCRIPTION, _DESCRIBED = 2000, 75


class Serializer(Protocol):
    """What RQ calls a serializer; workers must use the same."""

    def dumps(self, obj: Any, /) -> bytes:
        """The object as bytes."""
        ...

    def loads(self, data: bytes, /) -> Any:
        """The object again."""
        ...


class PickleSerializer:
    """RQ's default."""

    @staticmethod
    def dumps(obj: Any, /) -> bytes:
        """The object as bytes."""
        return pickle.dumps(obj, protocol=pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def loads(data: bytes, /) -> Any:
        """The object again; only for what the application itself wrote."""
        return pickle.loads(data)  # noqa: S301 # nosec B301 - RQ's own format and trust


class JSONSerializer:
    """RQ's ``JSONSerializer``; workers need ``--serializer json``."""

    @staticmethod
    def dumps(obj: Any, /) -> bytes:
        """The object as bytes."""
        return json.dumps(obj).encode()

    @staticmethod
    def loads(data: bytes, /) -> Any:
        """The object again."""
        return json.loads(data)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a job that raised is tried again, and after how many seconds each time.

    Beyond the end of ``intervals`` its last is used. ``maximum`` counts the tries after the first.
    """

    maximum: int
    intervals: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        maximum = whole("retry.maximum", self.maximum)
        check_kind("retry.intervals", self.intervals, (tuple, list), "use a list or tuple")
        if not 1 <= maximum <= 1000:
            raise InvalidTaskError("retry.maximum", f"{self.maximum} tries", "use 1 to 1000")
        if not 1 <= len(self.intervals) <= 1000:
            raise InvalidTaskError("retry.intervals", "is empty or too long", "use 1 to 1000")
        for seconds in self.intervals:
            if not 0 <= whole("retry.intervals", seconds) <= MAX_SECONDS:
                raise InvalidTaskError("retry.intervals", f"{seconds!r}", "use whole seconds >= 0")

    def for_rq(self) -> list[int]:
        """The intervals as RQ reads them.

        RQ counts from the end of its list and uses the first where it is short: one entry for each
        try leaves it nothing to choose.
        """
        return [int(self.intervals[min(at, len(self.intervals) - 1)]) for at in range(self.maximum)]


@dataclass(frozen=True, slots=True)
class Unique:
    """The same ``key`` again within ``window`` seconds is the same work, and runs once.

    ``until="window"``: the key is freed when the window is over, whatever became of the job.
    ``until="end"``: also as soon as the job has finished, failed for good, or is gone.
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
    """What the worker calls when a job has ended, and how long that may take (seconds).

    ``function`` is a function of a module or its dotted path, called by RQ with the job, its
    connection, and the result (``on_success``) or type, value and traceback (``on_failure``, for
    each try that fails).
    """

    function: Function
    timeout: int = 60

    def __post_init__(self) -> None:
        whole("callback.timeout", self.timeout)
        if not 1 <= self.timeout <= 86400:
            raise InvalidTaskError("callback.timeout", f"{self.timeout} s", "use 1 to 86400")


@dataclass(frozen=True, slots=True)
class Task:
    """A function with its arguments and how it is to be run. Durations are seconds.

    ``ttl`` is how long it may wait; ``result_ttl`` and ``failure_ttl`` how long what is left of it
    is kept (-1: for ever; None: as the worker says). ``delay`` or ``at`` put it off. ``priority``
    is its place within the queue, 0 (plain RQ's) to 9: each step counts for 400 s of waiting.
    ``depends_on`` are ids of jobs that have to finish first, one that is gone counts as finished;
    with ``allow_failure`` they may fail too. ``description`` is for people, and cut to 2,000
    characters; unless given it is the call.
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
class Rules:
    """What an application wants checked before anything is enqueued.

    ``queues``: the only names allowed; None allows any. ``max_bytes``: see DEFAULT_MAX_BYTES;
    ``max_flow_bytes``: see DEFAULT_MAX_FLOW_BYTES.
    """

    queues: frozenset[str] | None = None
    max_bytes: int = DEFAULT_MAX_BYTES
    serializer: Serializer = PickleSerializer
    max_flow_bytes: int = DEFAULT_MAX_FLOW_BYTES


@dataclass(frozen=True, slots=True)
class Encoded:
    """A job ready to be written: ``fields`` are names and values of its hash in turn."""

    job_id: str
    queue: str
    fields: list[Any]
    ttl: int | None
    #: Unix seconds at which it is due; None for now.
    due: float | None
    at_front: bool
    unique: Unique | None
    named: bool
    priority: int = 0
    depends_on: Sequence[str] = ()
    allow_failure: bool = False


#: Types of the fields that no check of their own looks at, and what to use. Text is a sequence,
#: too: of characters, which nobody means.
_KINDS: tuple[tuple[str, tuple[type, ...], str], ...] = (
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
_TEXTS = (str, bytes, bytearray, memoryview)


def check_task(task: Task) -> None:
    """Raises InvalidTaskError for what is no Task, or has a field of the wrong type."""
    check_kind("task", task, Task, "use Task(function, ...)")
    for name, kinds, fix in _KINDS:
        value = getattr(task, name)
        if not isinstance(value, kinds) or (kinds[0] is tuple and isinstance(value, _TEXTS)):
            raise wrong_kind(name, value, fix)
    for name in task.kwargs:
        if not isinstance(name, str):
            raise InvalidTaskError("kwargs", "has a name that is no text", "use names of arguments")


def encode(task: Task, rules: Rules, now: datetime, *, carry: bool = True) -> Encoded:
    """The RQ job of ``task``, enqueued at ``now``; raises InvalidTaskError.

    With ``carry`` its meta says under which ids (of request, trace) it was enqueued.
    """
    check_task(task)
    check_queue(task.queue, rules)
    instance, name = resolve(task.function)
    args, kwargs = tuple(task.args), dict(task.kwargs)
    data = _serialised(rules.serializer, (name, instance, args, kwargs), task)
    said = {**carried(), **(task.meta or {})} if carry else task.meta
    meta = _serialised_meta(rules.serializer, said) if said else b""
    if len(data) + len(meta) > rules.max_bytes:
        raise TaskTooLargeError(
            "args",
            f"{len(data) + len(meta)} bytes are more than {rules.max_bytes}",
            "store the data elsewhere and pass its key, or raise max_bytes",
        )
    due = _due(task, now)
    depends_on = _dependencies(task)
    stamp = timestamp(now)
    job_id = task.job_id
    if job_id is None:
        job_id = str(uuid4())
    elif not _JOB_ID.fullmatch(job_id):
        raise InvalidTaskError("job_id", f"{job_id[:50]!r}", "use letters, digits, '_' and '-'")
    job_id, queue = plain(job_id), plain(task.queue)
    fields: list[Any] = [
        "created_at", stamp,
        "data", zlib.compress(data, 1),
        "success_callback_name", "", "failure_callback_name", "", "stopped_callback_name", "",
        "started_at", "", "ended_at", "", "last_heartbeat", "", "worker_name", "", "group_id", "",
        "origin", queue,
        "description", _described(task.description or _call(name, args, kwargs)),
        "timeout", _seconds("timeout", task.timeout, least=-1, no_zero=True),
        "status", "queued" if due is None else "scheduled",
    ]  # fmt: skip
    if due is None:
        fields += "enqueued_at", stamp
    if task.retry is not None:
        fields += "retries_left", int(task.retry.maximum)
        fields += "retry_intervals", json.dumps(task.retry.for_rq())
    if task.result_ttl is not None:
        fields += "result_ttl", _seconds("result_ttl", task.result_ttl, least=-1)
    if task.failure_ttl is not None:
        fields += "failure_ttl", _seconds("failure_ttl", task.failure_ttl, least=-1)
    ttl = None if task.ttl is None else _seconds("ttl", task.ttl, least=1)
    if ttl is not None:
        fields += "ttl", ttl
    if meta:
        fields += "meta", meta
    for name in ("success", "failure", "stopped"):
        callback = getattr(task, f"on_{name}")
        if callback is not None:
            found, seconds = _callback(f"on_{name}", callback)
            fields[2 * fields[::2].index(f"{name}_callback_name") + 1] = found
            fields += f"{name}_callback_timeout", seconds
    if depends_on:
        fields += "dependency_id", depends_on[0], "dependency_ids", json.dumps(depends_on)
        if task.allow_failure:
            fields += "allow_dependency_failures", 1
    if task.at_front and (depends_on or due is not None):
        fields += "enqueue_at_front", 1
    priority = _priority(task)
    if priority:
        fields += "er_priority", priority
    if task.limit is not None:
        fields += task.limit.fields()
    return Encoded(
        job_id, queue, fields, ttl, due, task.at_front, task.unique,
        task.job_id is not None, priority, depends_on, task.allow_failure,
    )  # fmt: skip


def size(job: Encoded) -> int:
    """Bytes of the job's hash and ids, about."""
    ids = sum(map(len, job.depends_on)) if job.depends_on else 0
    return ids + sum([len(word) for word in job.fields if type(word) is not int])


def restamp(job: Encoded, now: datetime) -> None:
    """Have the job be enqueued at ``now``; one that is put off is left as it is."""
    names = job.fields[::2]
    if "enqueued_at" in names:
        job.fields[2 * names.index("enqueued_at") + 1] = timestamp(now)


def check_queue(name: str, rules: Rules) -> None:
    """Raises InvalidTaskError for a name that no queue may have, UnknownQueueError."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_QUEUE_NAME or not name.isprintable():
        raise InvalidTaskError(
            "queue", "is no name", f"use 1 to {MAX_QUEUE_NAME} printable characters"
        )
    if name.endswith(":intermediate"):
        raise InvalidTaskError("queue", f"{name!r} names RQ's own list", "use another name")
    if rules.queues is not None and name not in rules.queues:
        known = ", ".join(sorted(rules.queues)[:10])
        raise UnknownQueueError("queue", f"{name!r} is not known", f"use one of {known}")


def resolve(function: Function) -> tuple[Any, str]:
    """Instance and name as RQ stores them; refuses what a worker could not import."""
    if isinstance(function, str):
        if len(function) > MAX_PATH:
            raise InvalidTaskError(
                "function", f"{len(function)} characters", f"use a path of at most {MAX_PATH}"
            )
        if not _PATH.fullmatch(function):
            raise InvalidTaskError("function", f"{function[:80]!r}", "use 'package.module.name'")
        return None, plain(function)
    if inspect.ismethod(function):
        return function.__self__, function.__name__
    if inspect.isfunction(function) or inspect.isbuiltin(function):
        name = f"{function.__module__}.{function.__qualname__}"
        if "<" in name or function.__module__ in ("__main__", None):
            raise InvalidTaskError(
                "function", f"{name} cannot be imported by a worker", "define it in a module"
            )
        return None, name
    if callable(function) and not inspect.isclass(function):
        return function, "__call__"
    raise InvalidTaskError("function", f"{type(function).__name__}", "use a function or its path")


def _dependencies(task: Task) -> list[str]:
    if not task.depends_on:
        return []
    for job_id in task.depends_on:
        check_kind("depends_on", job_id, str, "use the ids of jobs")
    # Once each, in the order given.
    found = list(dict.fromkeys(map(plain, task.depends_on)))
    if len(found) > MAX_DEPENDENCIES:
        raise InvalidTaskError(
            "depends_on", f"{len(found)} jobs", f"use at most {MAX_DEPENDENCIES}"
        )
    for job_id in found:
        if not _JOB_ID.fullmatch(job_id):
            raise InvalidTaskError("depends_on", f"{job_id[:50]!r}", "use the ids of jobs")
        if job_id == task.job_id:
            raise InvalidTaskError("depends_on", "names the job itself", "leave it out")
    if found and (task.delay is not None or task.at is not None):
        raise InvalidTaskError(
            "delay",
            "stands beside depends_on",
            "use one of the two",
        )
    return found


def _callback(field: str, callback: Callback | Function) -> tuple[str, int]:
    chosen = callback if isinstance(callback, Callback) else Callback(callback)
    function = chosen.function
    try:
        instance, name = resolve(function)
    except InvalidTaskError as error:
        error.field, error.args = field, (str(error).replace("function", field, 1),)
        raise
    if instance is not None or inspect.iscoroutinefunction(function):
        raise InvalidTaskError(field, "is no plain function", "use a function of a module")
    return name, int(chosen.timeout)


def timestamp(moment: datetime) -> str:
    """UTC as RQ writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _serialised(serializer: Serializer, call: tuple[Any, ...], task: Task) -> bytes:
    try:
        return _bytes(serializer.dumps(call))
    except InvalidTaskError:
        raise
    except Exception as error:
        raise InvalidTaskError(
            _culprit(serializer, task), f"cannot be serialised: {_said(error)}",
            "pass plain data, such as an id, and load the rest in the job",
        ) from error  # fmt: skip


def _bytes(dumped: Any) -> bytes:
    if isinstance(dumped, bytes):
        return dumped
    raise wrong_kind("serializer", dumped, "let its dumps return bytes")


def _serialised_meta(serializer: Serializer, meta: Mapping[str, Any]) -> bytes:
    try:
        return _bytes(serializer.dumps(dict(meta)))
    except InvalidTaskError:
        raise
    except Exception as error:
        raise InvalidTaskError(
            "meta", f"cannot be serialised: {_said(error)}", "use plain data"
        ) from error


def _culprit(serializer: Serializer, task: Task) -> str:
    named = [(f"args[{at}]", value) for at, value in enumerate(task.args)]
    named += [(f"kwargs[{key[:80]!r}]", value) for key, value in task.kwargs.items()]
    for name, value in named:
        try:
            serializer.dumps(value)
        except Exception:  # noqa: BLE001 - whatever it is, this is the one
            return name
    return "function"


def _said(error: Exception) -> str:
    # The message of an exception may hold the value, which may be a secret: its type is enough.
    return type(error).__name__


def _due(task: Task, now: datetime) -> float | None:
    if task.delay is None and task.at is None:
        return None
    if task.delay is not None and task.at is not None:
        raise InvalidTaskError("delay", "stands beside at", "use one of them")
    if task.at is not None:
        if task.at.utcoffset() is None:
            raise InvalidTaskError("at", "has no time zone", "use datetime.now(UTC) and the like")
        due = task.at.timestamp()
    else:
        delay = task.delay
        if not isinstance(delay, timedelta):
            check_number("delay", delay, "use seconds or a timedelta")
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay or 0)
        if seconds < 0:
            raise InvalidTaskError("delay", f"{seconds:g} s", "use 0 or more")
        due = now.timestamp() + seconds
    if not due - now.timestamp() <= MAX_SECONDS:
        raise InvalidTaskError("delay", "is longer than ten years", "use a sooner time")
    return due


def _priority(task: Task) -> int:
    priority = whole("priority", task.priority)
    if not 0 <= priority <= MAX_PRIORITY:
        raise InvalidTaskError("priority", f"{priority}", f"use 0 to {MAX_PRIORITY}")
    if priority and task.at_front:
        raise InvalidTaskError("priority", "stands beside at_front", "use one of them")
    return priority


def _seconds(name: str, value: int, least: int, *, no_zero: bool = False) -> int:
    fix = f"use whole seconds, {least} or more"
    if not least <= whole(name, value, fix) <= MAX_SECONDS:
        raise InvalidTaskError(name, f"{value!r}", fix)
    if no_zero and value == 0:
        raise InvalidTaskError(name, "0", "use -1 for no limit")
    return int(value)


def _call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The call as RQ describes it, each argument cut short."""
    shown = [_short(value) for value in args[:MAX_DESCRIPTION]]
    if kwargs:
        shown += sorted(f"{key}={_short(value)}" for key, value in kwargs.items())
    return f"{name}({', '.join(shown)})"


def _short(value: object) -> str:
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001 - whatever it is, the job does not hang on its description
        return f"<{type(value).__name__}>"
    return shown if len(shown) <= _DESCRIBED else f"{shown[:_DESCRIBED]}..."


def _described(description: str) -> str:
    # It is for people: what UTF-8 cannot hold is no reason to refuse a job.
    if len(description) > MAX_DESCRIPTION:
        description = f"{description[: MAX_DESCRIPTION - 3]}..."
    return description if description.isascii() else description.encode(errors="replace").decode()
