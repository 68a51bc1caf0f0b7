"""Flows: jobs in sequence, in parallel, and after all jobs of a group.

A flow is data that consists of tasks and other flows. It becomes RQ jobs that depend on each other,
and any RQ worker runs them. One script writes all of them or none.
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
from engineroom.core.redis_replies import text
from engineroom.queue import keys
from engineroom.tasks.enqueueing import dependents
from engineroom.tasks.enqueueing.dependents import EncodedFlow
from engineroom.tasks.enqueueing.encode import EncodedJob, encode, size
from engineroom.tasks.enqueueing.enqueue import Enqueued, Reason, flow_invocation
from engineroom.tasks.enqueueing.task import EnqueueRules, Task, Unique, check_task
from engineroom.tasks.errors import InvalidTaskError, JobExistsError, TaskTooLargeError
from engineroom.tasks.redis_steps import BatchStep, Steps, run
from engineroom.tasks.results import JobResult, results_of
from engineroom.tasks.type_checks import check_type

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from engineroom.tasks.serializers import Serializer

#: Jobs of one flow; writing them blocks Redis for 5 ms.
MAX_JOBS = 250
#: Dependencies between the jobs of one flow.
MAX_EDGES = 2000
#: Time to live of results that later jobs of the flow read, unless the task sets one (seconds).
RESULT_TTL = 86400

_FLOW_ID = re.compile(r"[A-Za-z0-9_-]{1,150}")


@dataclass(frozen=True, slots=True)
class Flow:
    """Tasks, and for each task the indexes of those that have to finish before it.

    Use ``chain``, ``group``, ``fan_in`` and ``graph`` to build one; parents come before their
    children.
    """

    tasks: tuple[Task, ...]
    parents: tuple[tuple[int, ...], ...]

    @property
    def first(self) -> tuple[int, ...]:
        """The indexes of the tasks without a dependency in the flow."""
        return tuple(number for number, parents in enumerate(self.parents) if not parents)

    @property
    def last(self) -> tuple[int, ...]:
        """The indexes of the tasks without a dependent in the flow."""
        awaited = {parent for parents in self.parents for parent in parents}
        return tuple(number for number in range(len(self.tasks)) if number not in awaited)


#: A part of a flow.
Part: TypeAlias = Task | Flow


@dataclass(frozen=True, slots=True)
class EnqueuedFlow:
    """The jobs of a flow in order; ``created`` is False if an earlier flow has the unique key."""

    flow_id: str
    jobs: tuple[Enqueued, ...]
    created: bool = True


def chain(*parts: Part) -> Flow:
    """Run the parts in sequence: each part starts after all of the part before has finished."""
    tasks: list[Task] = []
    parents: list[tuple[int, ...]] = []
    before: tuple[int, ...] = ()
    for part in _flows(parts, "chain"):
        start = len(tasks)
        tasks += part.tasks
        parents += [
            tuple(start + parent for parent in waits) if waits else before for waits in part.parents
        ]
        before = tuple(start + last for last in part.last)
    return _ordered_flow(tasks, parents)


def group(*parts: Part) -> Flow:
    """Run the parts in parallel."""
    tasks: list[Task] = []
    parents: list[tuple[int, ...]] = []
    for part in _flows(parts, "group"):
        start = len(tasks)
        tasks += part.tasks
        parents += [tuple(start + parent for parent in waits) for waits in part.parents]
    return _ordered_flow(tasks, parents)


def fan_in(parts: Part | Sequence[Part], then: Part) -> Flow:
    """Run ``then`` after all ``parts`` have finished; it reads their results by ``parents()``."""
    if isinstance(parts, (Task, Flow)):
        return chain(parts, then)
    check_type("parts", parts, Iterable, "use a list of tasks and flows")
    return chain(group(*parts), then)


def graph(tasks: Mapping[str, Task], after: Mapping[str, Sequence[str]]) -> Flow:
    """Run tasks in the order of a graph: ``after`` maps a task's name to its dependencies.

    Raises InvalidTaskError for a cycle, and for a name that is not in ``tasks``.
    """
    check_type("tasks", tasks, Mapping, "use a dict of tasks by name")
    check_type("after", after, Mapping, "use a dict of lists of names")
    for name, waits in after.items():
        if isinstance(waits, str):
            raise InvalidTaskError(f"after[{name!r}]", "is a string", "use a list of names")
        check_type(f"after[{name!r}]", waits, Iterable, "use a list of names")
        for used in (name, *waits):
            if used not in tasks:
                raise InvalidTaskError(
                    f"after[{name!r}]", f"{str(used)[:50]!r} is no task", "use the names of tasks"
                )
    order = _topological_order({name: list(after.get(name, ())) for name in tasks})
    index = {name: position for position, name in enumerate(order)}
    return _ordered_flow(
        [tasks[name] for name in order],
        [tuple(sorted({index[parent] for parent in after.get(name, ())})) for name in order],
    )


def enqueue_flow(
    flow: Part,
    rules: EnqueueRules,
    now: datetime,
    flow_id: str | None = None,
    unique: Unique | None = None,
) -> Steps[EnqueuedFlow]:
    """Write all jobs of the flow or none; see Tasks.enqueue_flow."""
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
    return (yield from _existing_flow(text(reply[1]), text(reply[2])))


def encode_flow(
    flow: Part, rules: EnqueueRules, now: datetime, flow_id: str | None, unique: Unique | None
) -> EncodedFlow:
    """Return the flow as RQ jobs. Raises InvalidTaskError."""
    flow = flow if isinstance(flow, Flow) else group(flow)
    check_type("flow_id", flow_id, (str, NoneType), "use text")
    check_type("unique", unique, (Unique, NoneType), "use Unique(key)")
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
    awaited = {parent for waits in flow.parents for parent in waits}
    jobs: list[EncodedJob] = []
    total_bytes = 0
    for number, (task, waits) in enumerate(zip(flow.tasks, flow.parents, strict=True)):
        try:
            _check_member(task, awaited=number in awaited)
            result_ttl = task.result_ttl
            if result_ttl is None and number in awaited:
                result_ttl = RESULT_TTL
            depends_on = [*(ids[parent] for parent in waits), *task.depends_on]
            member = replace(task, job_id=ids[number], depends_on=depends_on, result_ttl=result_ttl)
            job = encode(member, rules, now)
        except InvalidTaskError as error:
            error.args = (f"flow[{number}].{error}",)
            raise
        job.fields.extend(["er_flow", flow_id])
        jobs.append(job)
        total_bytes += size(job)
        if total_bytes > rules.max_flow_bytes:
            raise TaskTooLargeError(
                "flow",
                f"its jobs are more than {rules.max_flow_bytes} bytes as they are stored",
                "store the data elsewhere and pass its key, or raise max_flow_bytes",
            )
    jobs[-1].fields.extend(["er_flow_jobs", json.dumps([[job.job_id, job.queue] for job in jobs])])
    return EncodedFlow(flow_id, jobs, unique)


def parents() -> list[JobResult]:
    """Return the results of the current job's dependencies, in the order of the flow.

    A failed dependency (``allow_failure``) has a traceback; one whose result has expired has
    neither value nor traceback. Raises InvalidTaskError outside of a job.
    """
    from rq import get_current_job

    job: Any = get_current_job()
    if job is None:
        raise InvalidTaskError("job", "no job runs here", "call this inside a job")
    return run(job.connection, parents_of(job.id, job.serializer))


def parents_of(job_id: str, serializer: Serializer) -> Steps[list[JobResult]]:
    """Return the results of the dependencies of ``job_id``, in their order."""
    [ids_json] = yield BatchStep([["HGET", keys.job(job_id), "dependency_ids"]])
    return (yield from results_of(json.loads(ids_json) if ids_json else [], serializer))


def _check_member(task: Task, *, awaited: bool) -> None:
    if task.unique is not None:
        raise InvalidTaskError(
            "unique", "stands in a flow", "give it to enqueue_flow: it is for the whole"
        )
    if task.ttl is not None and awaited:
        raise InvalidTaskError(
            "ttl", "others wait for this task, and would for ever", "leave it out"
        )


def _existing_flow(last: str, queue: str) -> Steps[EnqueuedFlow]:
    """Return the earlier flow that ends with the job ``last``."""
    [[flow_id, jobs_json]] = yield BatchStep([["HMGET", keys.job(last), "er_flow", "er_flow_jobs"]])
    # If the last job has expired, the flow's other jobs are unknown.
    jobs = json.loads(jobs_json) if jobs_json else [[last, queue]]
    return EnqueuedFlow(
        text(flow_id),
        tuple(Enqueued(job_id, job_queue, Reason.UNIQUE) for job_id, job_queue in jobs),
        created=False,
    )


def _flows(parts: Sequence[Part], combinator: str) -> list[Flow]:
    if not parts:
        raise InvalidTaskError("flow", f"an empty {combinator}", "give it at least one task")
    for part in parts:
        if not isinstance(part, (Task, Flow)):
            raise InvalidTaskError(
                "flow", f"{type(part).__name__} in a {combinator}", "use a Task, or a flow"
            )
    return [part if isinstance(part, Flow) else Flow((part,), ((),)) for part in parts]


def _ordered_flow(tasks: Sequence[Task], waits: Sequence[Sequence[int]]) -> Flow:
    """Return the flow, ordered also by the ``depends_on`` of its tasks. Raises InvalidTaskError."""
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
    parents = [
        list(dict.fromkeys([*waits[number], *(named[i] for i in task.depends_on if i in named)]))
        for number, task in enumerate(tasks)
    ]
    edges = sum(map(len, parents))
    if edges > MAX_EDGES:
        raise InvalidTaskError(
            "flow", f"its jobs wait {edges} times for another", f"use at most {MAX_EDGES}: put one "
            "task between two groups",
        )  # fmt: skip
    labels = [_label(number, task) for number, task in enumerate(tasks)]
    numbers = {label: number for number, label in enumerate(labels)}
    graph_of_labels = {
        labels[number]: [labels[parent] for parent in its_parents]
        for number, its_parents in enumerate(parents)
    }
    order = [numbers[label] for label in _topological_order(graph_of_labels)]
    position = {number: index for index, number in enumerate(order)}
    return Flow(
        tuple(tasks[number] for number in order),
        tuple(tuple(position[parent] for parent in parents[number]) for number in order),
    )


def _label(number: int, task: Task) -> str:
    """Return a name of the task for messages, unique in its flow."""
    if task.job_id is not None:
        return task.job_id
    name = task.function if isinstance(task.function, str) else repr(task.function)
    return f"{number}:{getattr(task.function, '__qualname__', name)}"


def _topological_order(waits: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names with parents before children. Raises InvalidTaskError for a cycle.

    Kahn's algorithm (Communications of the ACM 5(11), 1962).
    """
    children: dict[str, list[str]] = {name: [] for name in waits}
    left = {name: len(set(parents)) for name, parents in waits.items()}
    for name, parents in waits.items():
        for parent in set(parents):
            children[parent].append(name)
    # An order that already has parents before children stays, so that job numbers stay, too.
    done: list[str] = []
    ready = [name for name in waits if not left[name]]
    position = {name: index for index, name in enumerate(waits)}
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
    """Describe one cycle, from parent to child, by at most ten names."""
    ordered = set(done)
    name = next(name for name in waits if name not in ordered)
    path: list[str] = []
    while name not in path:
        path.append(name)
        name = next(parent for parent in waits[name] if parent not in ordered)
    ring = [*path[path.index(name) :], name][::-1]
    return " -> ".join(ring if len(ring) <= 10 else [*ring[:9], "...", ring[-1]])
