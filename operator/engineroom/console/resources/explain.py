"""The reasons for a pool's size, and the workers of a namespace."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic needs it at run time
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from engineroom.auth.permissions import Permission
from engineroom.console.cursors import decode_cursor, encode_cursor
from engineroom.console.resources.objects import Condition, observed_generation
from engineroom.console.resources.pools import pool_view, read_pool
from engineroom.console.resources.queues import require_queue
from engineroom.console.rest.pagination import PageQuery, etag
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core import reasons

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from engineroom.tasks.inspection.workers import Worker

#: The healthy status of conditions that report problems; other types report progress.
_GOOD = {"Ready": "True", "RedisReachable": "True", "SchedulesActive": "True", "Stalled": "False"}


class ObservedQueue(Model):
    """A queue as the operator last observed it."""

    name: str
    depth: int
    running: int
    scheduled: int
    failed: int
    oldest_job_age: str | None


class Finding(Model):
    """A problem that a condition of the pool reports."""

    what: str
    reason: str
    message: str
    since: str | None


class PoolExplanation(Model):
    """The operator's decision about the pool's size, its inputs, and problems.

    `current` says whether the operator has observed the pool's newest generation.
    """

    name: str
    current: bool
    decision: str
    desired: int
    replicas: int
    ready: int
    leaving: int
    minimum: int | None
    maximum: int | None
    pause: str
    suspended: bool
    busy_workers: int
    waiting_jobs: int
    jobs_per_minute: int
    last_scale_time: str | None
    last_out_of_memory_time: str | None
    recommended_resources: dict[str, Any] | None
    queues: list[ObservedQueue]
    findings: list[Finding]
    conditions: list[Condition]


class WorkersQuery(PageQuery):
    """A filter for workers: by pool, by queue, or none."""

    pool: Annotated[str, Field(max_length=63)] = ""
    queue: Annotated[str, Field(max_length=200)] = ""


class WorkerView(Model):
    """A worker as it reports itself. `memory` is bytes, `cpu` recent use in cores."""

    name: str
    pool: str
    pod: str
    health: str
    state: str
    queues: list[str]
    job: str
    job_started: datetime | None
    heartbeat: datetime | None
    memory: int | None
    cpu: float | None
    rq_version: str
    finished: int
    failed: int


class WorkerList(Model):
    """A page of workers, sorted by name."""

    items: list[WorkerView]
    next_cursor: str | None


async def explain_pool(call: Call) -> Answer:
    """Explain a pool's size."""
    pool = await read_pool(call)
    tag = {"etag": etag(pool["metadata"]["resourceVersion"])}
    return Answer(explanation_of(pool), headers=tag)


async def list_workers(call: Call) -> Answer:
    """Return a page of workers of the namespace that use the installation's Redis."""
    query: WorkersQuery = call.query
    queue = require_queue(call, query.queue) if query.queue else None
    after, limit = decode_cursor(query.cursor), query.limit
    prefix = f"{call.namespace}/"
    workers = [
        worker
        for worker in await call.services.tasks.workers(queue)
        if worker.name > after and worker.pool.startswith(prefix)
        if not query.pool or worker.pool == f"{prefix}{query.pool}"
    ]
    cursor = workers[limit - 1].name if len(workers) > limit else None
    items = [_worker(worker) for worker in workers[:limit]]
    return Answer(WorkerList(items=items, next_cursor=encode_cursor(cursor)))


def explanation_of(pool: Mapping[str, Any]) -> PoolExplanation:
    """Explain the size of a WorkerPool object by its status."""
    metadata, spec = pool["metadata"], pool.get("spec") or {}
    status = pool.get("status") or {}
    view = pool_view(pool)
    auto = view.autoscaling
    return PoolExplanation(
        name=metadata["name"],
        current=status.get("observedGeneration") == metadata.get("generation"),
        decision=status.get("decision") or "",
        desired=status.get("desiredReplicas") or 0,
        replicas=status.get("replicas") or 0,
        ready=status.get("readyReplicas") or 0,
        leaving=status.get("drainingReplicas") or 0,
        minimum=auto.min_replicas if auto else None,
        maximum=auto.max_replicas if auto else None,
        pause=auto.pause if auto else "None",
        suspended=bool(spec.get("suspend")),
        busy_workers=status.get("busyWorkers") or 0,
        waiting_jobs=status.get("waitingJobs") or 0,
        jobs_per_minute=status.get("jobsPerMinute") or 0,
        last_scale_time=status.get("lastScaleTime"),
        last_out_of_memory_time=status.get("lastOutOfMemoryTime"),
        recommended_resources=status.get("recommendedResources"),
        queues=[
            ObservedQueue(
                name=queue["name"],
                depth=queue.get("depth") or 0,
                running=queue.get("running") or 0,
                scheduled=queue.get("scheduled") or 0,
                failed=queue.get("failed") or 0,
                oldest_job_age=queue.get("oldestJobAge"),
            )
            for queue in status.get("queues") or ()
        ],
        findings=list(_findings(status)),
        conditions=view.conditions,
    )


def _findings(status: Mapping[str, Any]) -> Iterator[Finding]:
    if observed_generation(status) is None:
        message = "its status is empty; check that an operator runs and watches this namespace"
        yield Finding(what="Unseen", reason="Unseen", message=message, since=None)
    for condition in status.get("conditions") or ():
        kind, state = condition["type"], condition["status"]
        limited = kind == "ScalingLimited" and state == "True"
        if not limited and _GOOD.get(kind, state) == state:
            continue
        reason = condition.get("reason") or ""
        message = condition.get("message") or reasons.DESCRIPTIONS.get(reason, "")
        since = condition.get("lastTransitionTime")
        yield Finding(what=f"{kind}={state}", reason=reason, message=message, since=since)


def _worker(worker: Worker) -> WorkerView:
    return WorkerView(
        name=worker.name,
        pool=worker.pool.partition("/")[2],
        pod=worker.pod,
        health=worker.health.value,
        state=worker.state,
        queues=list(worker.queues),
        job=worker.job,
        job_started=worker.job_started,
        heartbeat=worker.heartbeat,
        memory=worker.memory,
        cpu=worker.cpu,
        rq_version=worker.rq_version,
        finished=worker.finished,
        failed=worker.failed,
    )


_HERE = f"{BASE}/namespaces/{{namespace}}"
ROUTES = (
    Route(
        method="GET", path=f"{_HERE}/pools/{{pool}}/why", needs=Permission.NAMESPACE_POOLS_READ,
        handler=explain_pool, summary="Explain the size of a pool", tag="pools",
        answer=PoolExplanation, conditional=True, errors=(404,),
    ),
    Route(
        method="GET", path=f"{_HERE}/workers", needs=Permission.NAMESPACE_POOLS_READ,
        handler=list_workers, summary="List workers and their health", tag="pools",
        query=WorkersQuery, answer=WorkerList, cost=5,
    ),
)  # fmt: skip
