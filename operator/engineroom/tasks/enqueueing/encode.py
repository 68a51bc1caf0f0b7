"""The RQ job that a task becomes.

The fields are those of ``rq.job.Job.to_dict``, the same in RQ 2 and RQ 3; a test compares them with
RQ's own.
"""

from __future__ import annotations

import inspect
import json
import re
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from engineroom.core.context import carried
from engineroom.queue.priority import MAX_PRIORITY
from engineroom.tasks.enqueueing.task import (
    MAX_DEPENDENCIES,
    MAX_SECONDS,
    Callback,
    EnqueueRules,
    Task,
    check_queue,
    check_task,
)
from engineroom.tasks.errors import InvalidTaskError, TaskTooLargeError
from engineroom.tasks.type_checks import (
    check_number,
    check_type,
    plain_text,
    whole_number,
    wrong_type,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engineroom.tasks.enqueueing.task import Function, Unique
    from engineroom.tasks.serializers import Serializer

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
#: Characters of a function's dotted path.
MAX_PATH = 500
#: Characters of a description, and of each argument in it.
MAX_DESCRIPTION, _MAX_DESCRIBED_ARGUMENT = 2000, 75


@dataclass(frozen=True, slots=True)
class EncodedJob:
    """A job ready to be written; ``fields`` are names and values of its hash in turn."""

    job_id: str
    queue: str
    fields: list[Any]
    ttl: int | None
    #: Unix seconds at which it is due; None for now.
    due: float | None
    at_front: bool
    unique: Unique | None
    #: Whether the caller chose the id.
    named: bool
    priority: int = 0
    depends_on: Sequence[str] = ()
    allow_failure: bool = False


def encode(task: Task, rules: EnqueueRules, now: datetime, *, carry: bool = True) -> EncodedJob:
    """Return the RQ job of ``task``, enqueued at ``now``.

    ``carry`` adds the current ids of request and trace to the job's meta. Raises InvalidTaskError.
    """
    check_task(task)
    check_queue(task.queue, rules)
    instance, name = resolve(task.function)
    args, kwargs = tuple(task.args), dict(task.kwargs)
    data = _serialise_call(rules.serializer, (name, instance, args, kwargs), task)
    values = {**carried(), **(task.meta or {})} if carry else task.meta
    meta = _serialise_meta(rules.serializer, values) if values else b""
    if len(data) + len(meta) > rules.max_bytes:
        raise TaskTooLargeError(
            "args",
            f"{len(data) + len(meta)} bytes are more than {rules.max_bytes}",
            "store the data elsewhere and pass its key, or raise max_bytes",
        )
    due = _due(task, now)
    depends_on = _dependencies(task)
    job_id, queue = _job_id(task), plain_text(task.queue)
    ttl = None if task.ttl is None else _seconds("ttl", task.ttl, least=1)
    stamp = timestamp(now)
    fields: list[Any] = [
        "created_at", stamp,
        "data", zlib.compress(data, 1),
        *_callback_fields(task),
        "started_at", "", "ended_at", "", "last_heartbeat", "", "worker_name", "", "group_id", "",
        "origin", queue,
        "description", _cut_description(task.description or _describe_call(name, args, kwargs)),
        "timeout", _seconds("timeout", task.timeout, least=-1, no_zero=True),
        "status", "queued" if due is None else "scheduled",
    ]  # fmt: skip
    if due is None:
        fields += "enqueued_at", stamp
    fields += _lifetime_fields(task, ttl)
    if meta:
        fields += "meta", meta
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
    return EncodedJob(
        job_id, queue, fields, ttl, due, task.at_front, task.unique,
        task.job_id is not None, priority, depends_on, task.allow_failure,
    )  # fmt: skip


def size(job: EncodedJob) -> int:
    """Return the approximate size of the job's hash and ids in bytes."""
    ids = sum(map(len, job.depends_on)) if job.depends_on else 0
    return ids + sum([len(word) for word in job.fields if type(word) is not int])


def set_enqueued_at(job: EncodedJob, now: datetime) -> None:
    """Set the time of enqueueing to ``now``; leave a job that is scheduled for later unchanged."""
    names = job.fields[::2]
    if "enqueued_at" in names:
        job.fields[2 * names.index("enqueued_at") + 1] = timestamp(now)


def resolve(function: Function) -> tuple[Any, str]:
    """Return instance and dotted name as RQ stores them.

    Raises InvalidTaskError for a function that a worker cannot import.
    """
    if isinstance(function, str):
        if len(function) > MAX_PATH:
            raise InvalidTaskError(
                "function", f"{len(function)} characters", f"use a path of at most {MAX_PATH}"
            )
        if not _PATH.fullmatch(function):
            raise InvalidTaskError("function", f"{function[:80]!r}", "use 'package.module.name'")
        return None, plain_text(function)
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


def timestamp(moment: datetime) -> str:
    """Return the time in UTC as RQ writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _job_id(task: Task) -> str:
    job_id = task.job_id
    if job_id is None:
        return str(uuid4())
    if not _JOB_ID.fullmatch(job_id):
        raise InvalidTaskError("job_id", f"{job_id[:50]!r}", "use letters, digits, '_' and '-'")
    return plain_text(job_id)


def _lifetime_fields(task: Task, ttl: int | None) -> list[Any]:
    fields: list[Any] = []
    if task.retry is not None:
        fields += "retries_left", int(task.retry.maximum)
        fields += "retry_intervals", json.dumps(task.retry.for_rq())
    if task.result_ttl is not None:
        fields += "result_ttl", _seconds("result_ttl", task.result_ttl, least=-1)
    if task.failure_ttl is not None:
        fields += "failure_ttl", _seconds("failure_ttl", task.failure_ttl, least=-1)
    if ttl is not None:
        fields += "ttl", ttl
    return fields


def _dependencies(task: Task) -> list[str]:
    """Return the ids of ``depends_on`` in their order, without duplicates."""
    if not task.depends_on:
        return []
    for job_id in task.depends_on:
        check_type("depends_on", job_id, str, "use the ids of jobs")
    ids = list(dict.fromkeys(map(plain_text, task.depends_on)))
    if len(ids) > MAX_DEPENDENCIES:
        raise InvalidTaskError("depends_on", f"{len(ids)} jobs", f"use at most {MAX_DEPENDENCIES}")
    for job_id in ids:
        if not _JOB_ID.fullmatch(job_id):
            raise InvalidTaskError("depends_on", f"{job_id[:50]!r}", "use the ids of jobs")
        if job_id == task.job_id:
            raise InvalidTaskError("depends_on", "names the job itself", "leave it out")
    if ids and (task.delay is not None or task.at is not None):
        raise InvalidTaskError("delay", "conflicts with depends_on", "use one of the two")
    return ids


def _callback_fields(task: Task) -> list[Any]:
    names: list[Any] = []
    timeouts: list[Any] = []
    for event in ("success", "failure", "stopped"):
        callback = getattr(task, f"on_{event}")
        name = ""
        if callback is not None:
            name, timeout = _resolve_callback(f"on_{event}", callback)
            timeouts += f"{event}_callback_timeout", timeout
        names += f"{event}_callback_name", name
    return names + timeouts


def _resolve_callback(field: str, callback: Callback | Function) -> tuple[str, int]:
    """Return the callback's dotted name and its timeout in seconds. Raises InvalidTaskError."""
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


def _serialise_call(serializer: Serializer, call: tuple[Any, ...], task: Task) -> bytes:
    try:
        return _check_bytes(serializer.dumps(call))
    except InvalidTaskError:
        raise
    except Exception as error:
        raise InvalidTaskError(
            _unserialisable_field(serializer, task),
            f"cannot be serialised: {_error_type(error)}",
            "pass plain data, such as an id, and load the rest in the job",
        ) from error


def _serialise_meta(serializer: Serializer, meta: Mapping[str, Any]) -> bytes:
    try:
        return _check_bytes(serializer.dumps(dict(meta)))
    except InvalidTaskError:
        raise
    except Exception as error:
        raise InvalidTaskError(
            "meta", f"cannot be serialised: {_error_type(error)}", "use plain data"
        ) from error


def _check_bytes(dumped: Any) -> bytes:
    if isinstance(dumped, bytes):
        return dumped
    raise wrong_type("serializer", dumped, "let its dumps return bytes")


def _unserialisable_field(serializer: Serializer, task: Task) -> str:
    """Return the path of the first argument that cannot be serialised."""
    values = [(f"args[{index}]", value) for index, value in enumerate(task.args)]
    values += [(f"kwargs[{key[:80]!r}]", value) for key, value in task.kwargs.items()]
    for path, value in values:
        try:
            serializer.dumps(value)
        except Exception:  # noqa: BLE001 - any error names the argument
            return path
    return "function"


def _error_type(error: Exception) -> str:
    # An exception's message may repeat the value, which may be a secret.
    return type(error).__name__


def _due(task: Task, now: datetime) -> float | None:
    """Return the time in Unix seconds at which the job is due; None for now."""
    if task.delay is None and task.at is None:
        return None
    if task.delay is not None and task.at is not None:
        raise InvalidTaskError("delay", "conflicts with at", "use one of them")
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
    priority = whole_number("priority", task.priority)
    if not 0 <= priority <= MAX_PRIORITY:
        raise InvalidTaskError("priority", f"{priority}", f"use 0 to {MAX_PRIORITY}")
    if priority and task.at_front:
        raise InvalidTaskError("priority", "conflicts with at_front", "use one of them")
    return priority


def _seconds(name: str, value: int, least: int, *, no_zero: bool = False) -> int:
    fix = f"use whole seconds, {least} or more"
    if not least <= whole_number(name, value, fix) <= MAX_SECONDS:
        raise InvalidTaskError(name, f"{value!r}", fix)
    if no_zero and value == 0:
        raise InvalidTaskError(name, "0", "use -1 for no limit")
    return int(value)


def _describe_call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the call as RQ describes it, with each argument cut."""
    described = [_describe_value(value) for value in args[:MAX_DESCRIPTION]]
    if kwargs:
        described += sorted(f"{key}={_describe_value(value)}" for key, value in kwargs.items())
    return f"{name}({', '.join(described)})"


def _describe_value(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a failing repr must not prevent the job
        return f"<{type(value).__name__}>"
    if len(text) <= _MAX_DESCRIBED_ARGUMENT:
        return text
    return f"{text[:_MAX_DESCRIBED_ARGUMENT]}..."


def _cut_description(description: str) -> str:
    if len(description) > MAX_DESCRIPTION:
        description = f"{description[: MAX_DESCRIPTION - 3]}..."
    # The description is for people, so text that UTF-8 cannot encode is replaced, not refused.
    return description if description.isascii() else description.encode(errors="replace").decode()
