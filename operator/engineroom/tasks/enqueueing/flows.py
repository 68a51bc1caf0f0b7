"""Flows: jobs one after another, beside each other, and after all of a group.

A flow is data, made of tasks and other flows, and becomes RQ jobs that depend on each other; any
worker of RQ runs them. They are written by one script: all or none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

from engineroom.core import tracing
from engineroom.queue import keys
from engineroom.tasks.enqueueing import dependents
from engineroom.tasks.enqueueing.dependents import EncodedFlow
from engineroom.tasks.enqueueing.enqueue import Enqueued, Reason, flow_invocation
from engineroom.tasks.enqueueing.task import (
    Encoded,
    Rules,
    Serializer,
    Task,
    Unique,
    check_task,
    encode,
    size,
)
from engineroom.tasks.errors import InvalidTaskError, JobExistsError, TaskTooLargeError
from engineroom.tasks.redis_steps import Batch, Steps, run, text
from engineroom.tasks.results import JobResult, results_of
from engineroom.tasks.type_checks import check_kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

#: Jobs of one flow; they are written in one step, during which Redis serves nobody else: 5 ms.
MAX_JOBS = 250
#: Times that a job of a flow waits for another.
MAX_EDGES = 2000
#: Results that others of the flow want are kept so long, unless the task says otherwise (seconds).
RESULT_TTL = 86400

_FLOW_ID = re.compile(r"[A-Za-z0-9_-]{1,150}")


@dataclass(frozen=True, slots=True)
class Flow:
    """Tasks, and for each the numbers of those that have to finish before it.

    Made by ``chain``, ``group``, ``fan_in`` and ``graph``; parents stand before their children.
    """

    tasks: tuple[Task, ...]
    parents: tuple[tuple[int, ...], ...]

    @property
    def first(self) -> tuple[int, ...]:
        """Numbers of the tasks that wait for no other of the flow."""
        return tuple(number for number, parents in enumerate(self.parents) if not parents)

    @property
    def last(self) -> tuple[int, ...]:
        """Numbers of the tasks that no other of the flow waits for."""
        awaited = {each for parents in self.parents for each in parents}
        return tuple(number for number in range(len(self.tasks)) if number not in awaited)


#: What flows are made of.
Part: TypeAlias = Task | Flow


@dataclass(frozen=True, slots=True)
class EnqueuedFlow:
    """The jobs of a flow in its order; ``created`` is False where an earlier one stands for it."""

    flow_id: str
    jobs: tuple[Enqueued, ...]
    created: bool = True


def chain(*parts: Part) -> Flow:
    """One after another: what begins a part waits for all that ends the one before."""
    tasks: list[Task] = []
    parents: list[tuple[int, ...]] = []
    before: tuple[int, ...] = ()
    for part in _flows(parts, "chain"):
        start = len(tasks)
        tasks += part.tasks
        parents += [
            tuple(start + each for each in waits) if waits else before for waits in part.parents
        ]
        before = tuple(start + each for each in part.last)
    return _checked(tasks, parents)


def group(*parts: Part) -> Flow:
    """Beside each other, in no order."""
    tasks: list[Task] = []
    parents: list[tuple[int, ...]] = []
    for part in _flows(parts, "group"):
        start = len(tasks)
        tasks += part.tasks
        parents += [tuple(start + each for each in waits) for waits in part.parents]
    return _checked(tasks, parents)


def fan_in(parts: Part | Sequence[Part], then: Part) -> Flow:
    """``then`` after all of ``parts`` have finished; it reads their results by ``parents()``."""
    if isinstance(parts, (Task, Flow)):
        return chain(parts, then)
    check_kind("parts", parts, Iterable, "use a list of tasks and flows")
    return chain(group(*parts), then)


def graph(tasks: Mapping[str, Task], after: Mapping[str, Sequence[str]]) -> Flow:
    """Any order: ``after`` says of a task's name which others have to finish before it.

    Raises InvalidTaskError for a cycle, and for a name that is not among ``tasks``.
    """
    check_kind("tasks", tasks, Mapping, "use a dict of tasks by name")
    check_kind("after", after, Mapping, "use a dict of lists of names")
    for name, waits in after.items():
        if isinstance(waits, str):
            raise InvalidTaskError(f"after[{name!r}]", "is a string", "use a list of names")
        check_kind(f"after[{name!r}]", waits, Iterable, "use a list of names")
        for each in (name, *waits):
            if each not in tasks:
                raise InvalidTaskError(
                    f"after[{name!r}]", f"{str(each)[:50]!r} is no task", "use the names of tasks"
                )
    order = _ordered({name: list(after.get(name, ())) for name in tasks})
    number = {name: at for at, name in enumerate(order)}
    return _checked(
        [tasks[name] for name in order],
        [tuple(sorted({number[each] for each in after.get(name, ())})) for name in order],
    )


def enqueue_flow(
    flow: Part,
    rules: Rules,
    now: datetime,
    flow_id: str | None = None,
    unique: Unique | None = None,
) -> Steps[EnqueuedFlow]:
    """Write all jobs of the flow in one step or none; see Tasks.enqueue_flow."""
    with tracing.span("enqueue flow", kind="producer") as span:
        encoded = encode_flow(flow, rules, now, flow_id, unique)
        span.note(flow=encoded.flow_id, messaging__batch__message_count=len(encoded.jobs))
        reply = yield flow_invocation(encoded)
    if reply[0] == 3:
        raise dependents.parent_canceled(reply)
    if reply[0] == 2:
        raise JobExistsError(
            f"flow: job {text(reply[1])} exists; use another flow_id or job_id, or a unique key"
        )
    if reply[0] == 1:
        jobs = tuple(Enqueued(job.job_id, job.queue) for job in encoded.jobs)
        return EnqueuedFlow(encoded.flow_id, jobs)
    return (yield from _earlier(text(reply[1]), text(reply[2])))


def encode_flow(
    flow: Part, rules: Rules, now: datetime, flow_id: str | None, unique: Unique | None
) -> EncodedFlow:
    """The flow as RQ's jobs; raises InvalidTaskError."""
    flow = flow if isinstance(flow, Flow) else group(flow)
    check_kind("flow_id", flow_id, (str, NoneType), "use text")
    check_kind("unique", unique, (Unique, NoneType), "use Unique(key)")
    if flow_id is None:
        flow_id = str(uuid4())
    elif not _FLOW_ID.fullmatch(flow_id):
        raise InvalidTaskError(
            "flow_id", f"{flow_id[:50]!r}", "use 1 to 150 letters, digits, '_' and '-'"
        )
    if unique is not None and unique.until == "end" and len(flow.last) > 1:
        raise InvalidTaskError(
            "unique.until", "is 'end' for a flow with several ends", "let it end in one task"
        )
    ids = [task.job_id or f"{flow_id}-{number}" for number, task in enumerate(flow.tasks)]
    awaited = {each for waits in flow.parents for each in waits}
    jobs: list[Encoded] = []
    weight = 0
    for number, (task, waits) in enumerate(zip(flow.tasks, flow.parents, strict=True)):
        try:
            _check_member(task, awaited=number in awaited)
            keep = task.result_ttl
            if keep is None and number in awaited:
                keep = RESULT_TTL
            own = [*(ids[each] for each in waits), *task.depends_on]
            job = encode(
                replace(task, job_id=ids[number], depends_on=own, result_ttl=keep), rules, now
            )
        except InvalidTaskError as error:
            error.args = (f"flow[{number}].{error}",)
            raise
        job.fields.extend(["er_flow", flow_id])
        jobs.append(job)
        weight += size(job)
        if weight > rules.max_flow_bytes:
            raise TaskTooLargeError(
                "flow",
                f"its jobs are more than {rules.max_flow_bytes} bytes as they are stored",
                "store the data elsewhere and pass its key, or raise max_flow_bytes",
            )
    jobs[-1].fields.extend(["er_flow_jobs", json.dumps([[job.job_id, job.queue] for job in jobs])])
    return EncodedFlow(flow_id, jobs, unique)


def parents() -> list[JobResult]:
    """What the jobs that this one waited for have left, in the order of the flow.

    For use inside a job. Of one that has failed (``allow_failure``) there is the traceback, of one
    whose result has expired nothing. Raises InvalidTaskError outside of a job.
    """
    from rq import get_current_job

    job: Any = get_current_job()
    if job is None:
        raise InvalidTaskError("job", "no job runs here", "call this inside a job")
    return run(job.connection, parents_of(job.id, job.serializer))


def parents_of(job_id: str, serializer: Serializer) -> Steps[list[JobResult]]:
    """What the jobs that ``job_id`` waited for have left, in their order."""
    [said] = yield Batch([["HGET", keys.job(job_id), "dependency_ids"]])
    return (yield from results_of(json.loads(said) if said else [], serializer))


def _check_member(task: Task, *, awaited: bool) -> None:
    if task.unique is not None:
        raise InvalidTaskError(
            "unique", "stands in a flow", "give it to enqueue_flow: it is for the whole"
        )
    if task.ttl is not None and awaited:
        raise InvalidTaskError(
            "ttl", "others wait for this task, and would for ever", "leave it out"
        )


def _earlier(last: str, queue: str) -> Steps[EnqueuedFlow]:
    [[flow_id, jobs]] = yield Batch([["HMGET", keys.job(last), "er_flow", "er_flow_jobs"]])
    # Nothing is left of it where its last job has ended and expired: that one is known, no more.
    known = json.loads(jobs) if jobs else [[last, queue]]
    return EnqueuedFlow(
        text(flow_id),
        tuple(Enqueued(job_id, at, Reason.UNIQUE) for job_id, at in known),
        created=False,
    )


def _flows(parts: Sequence[Part], what: str) -> list[Flow]:
    if not parts:
        raise InvalidTaskError("flow", f"an empty {what}", "give it at least one task")
    for part in parts:
        if not isinstance(part, (Task, Flow)):
            raise InvalidTaskError(
                "flow", f"{type(part).__name__} in a {what}", "use a Task, or a flow"
            )
    return [part if isinstance(part, Flow) else Flow((part,), ((),)) for part in parts]


def _checked(tasks: Sequence[Task], waits: Sequence[Sequence[int]]) -> Flow:
    """The flow, with what its tasks say themselves about each other taken into its order."""
    if len(tasks) > MAX_JOBS:
        raise InvalidTaskError(
            "flow", f"{len(tasks)} jobs", f"use at most {MAX_JOBS}, or jobs that enqueue others"
        )
    named: dict[str, int] = {}
    for number, task in enumerate(tasks):
        try:
            check_task(task)
        except InvalidTaskError as error:
            error.args = (f"flow[{number}].{error}",)
            raise
        if task.job_id is not None and named.setdefault(task.job_id, number) != number:
            raise InvalidTaskError(
                "flow", f"job_id {task.job_id[:50]!r} is there twice", "use it once"
            )
    everything = [
        list(
            dict.fromkeys([*waits[at], *(named[each] for each in task.depends_on if each in named)])
        )
        for at, task in enumerate(tasks)
    ]
    edges = sum(map(len, everything))
    if edges > MAX_EDGES:
        raise InvalidTaskError(
            "flow", f"its jobs wait {edges} times for another", f"use at most {MAX_EDGES}: put one "
            "task between two groups",
        )  # fmt: skip
    shown = [_shown(number, task) for number, task in enumerate(tasks)]
    numbers = {name: number for number, name in enumerate(shown)}
    order = [
        numbers[name]
        for name in _ordered(
            {shown[at]: [shown[each] for each in each_] for at, each_ in enumerate(everything)}
        )
    ]
    place = {number: at for at, number in enumerate(order)}
    return Flow(
        tuple(tasks[number] for number in order),
        tuple(tuple(place[each] for each in everything[number]) for number in order),
    )


def _shown(number: int, task: Task) -> str:
    if task.job_id is not None:
        return task.job_id
    name = task.function if isinstance(task.function, str) else repr(task.function)
    return f"{number}:{getattr(task.function, '__qualname__', name)}"


def _ordered(waits: Mapping[str, Sequence[str]]) -> list[str]:
    """Names with parents before children, else in the order given; raises for a cycle.

    Kahn's algorithm (Communications of the ACM 5(11), 1962).
    """
    children: dict[str, list[str]] = {name: [] for name in waits}
    left = {name: len(set(parents)) for name, parents in waits.items()}
    for name, parents in waits.items():
        for parent in set(parents):
            children[parent].append(name)
    # In the order given wherever that has parents before children, so that numbers stay.
    done: list[str] = []
    ready = [name for name in waits if not left[name]]
    position = {name: at for at, name in enumerate(waits)}
    if all(position[parent] < position[name] for name in waits for parent in waits[name]):
        return list(waits)
    while ready:
        name = ready.pop(0)
        done.append(name)
        for child in children[name]:
            left[child] -= 1
            if not left[child]:
                ready.append(child)
    if len(done) < len(waits):
        raise InvalidTaskError(
            "flow", f"{_cycle(waits, done)} is a cycle", "let one of them not wait"
        )
    return done


def _cycle(waits: Mapping[str, Sequence[str]], done: Sequence[str]) -> str:
    """One cycle, from parent to child, the first ten of it."""
    gone = set(done)
    name = next(each for each in waits if each not in gone)
    path: list[str] = []
    while name not in path:
        path.append(name)
        name = next(each for each in waits[name] if each not in gone)
    ring = [*path[path.index(name) :], name][::-1]
    return " -> ".join(ring if len(ring) <= 10 else [*ring[:9], "...", ring[-1]])
