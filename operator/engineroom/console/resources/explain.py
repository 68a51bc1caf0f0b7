"""Why a pool has its size, and who works in it."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic needs it at run time
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from engineroom.auth.permissions import Permission
from engineroom.console.cursors import decode_cursor, encode_cursor
from engineroom.console.resources.pools import Condition, read, view
from engineroom.console.resources.queues import owned
from engineroom.console.rest.pagination import Paged, etag
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core import reasons

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from engineroom.tasks.inspection.workers import Worker

#: Conditions that are as they should be in this state, by type; others speak of a normal course.
_GOOD = {"Ready": "True", "RedisReachable": "True", "SchedulesActive": "True", "Stalled": "False"}


class SeenQueue(Model):
    """A queue as the operator saw it when it last wrote the pool's status."""

    name: str
    depth: int
    running: int
    scheduled: int
    failed: int
    oldest_job_age: str | None


class Finding(Model):
    """Something that is not as it should be, in the operator's words."""

    what: str
    reason: str
    message: str
    since: str | None


class Why(Model):
    """Why the pool has its size: the operator's own arithmetic, and what is in its way.

    `current` says whether the operator has answered the pool's newest generation.
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
    queues: list[SeenQueue]
    findings: list[Finding]
    conditions: list[Condition]


class WorkersQuery(Paged):
    """Which workers: of a pool, of a queue, or of all of the namespace."""

    pool: Annotated[str, Field(max_length=63)] = ""
    queue: Annotated[str, Field(max_length=200)] = ""


class WorkerView(Model):
    """A worker as it describes itself. `memory` is bytes, `cpu` cores lately."""

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
    """A page of workers, by name."""

    items: list[WorkerView]
    next_cursor: str | None


async def explain_pool(call: Call) -> Answer:
    """Why it has its size."""
    pool = await read(call)
    tag = {"etag": etag(pool["metadata"]["resourceVersion"])}
    return Answer(why(pool), headers=tag)


async def list_workers(call: Call) -> Answer:
    """A page of the workers of the namespace's pools, in the Redis of the installation."""
    wanted: WorkersQuery = call.query
    queue = owned(call, wanted.queue) if wanted.queue else None
    after, limit = decode_cursor(wanted.cursor), wanted.limit
    prefix = f"{call.namespace}/"
    pools = {f"{prefix}{wanted.pool}"} if wanted.pool else None
    found = [
        each
        for each in await call.services.tasks.workers(queue)
        if each.name > after and each.pool.startswith(prefix)
        if pools is None or each.pool in pools
    ]
    cursor = found[limit - 1].name if len(found) > limit else None
    items = [_worker(each) for each in found[:limit]]
    return Answer(WorkerList(items=items, next_cursor=encode_cursor(cursor)))


def why(pool: Mapping[str, Any]) -> Why:
    """What an object of the API server says of its size. Pure."""
    metadata, spec = pool["metadata"], pool.get("spec") or {}
    status = pool.get("status") or {}
    shown = view(pool)
    auto = shown.autoscaling
    return Why(
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
            SeenQueue(
                name=each["name"],
                depth=each.get("depth") or 0,
                running=each.get("running") or 0,
                scheduled=each.get("scheduled") or 0,
                failed=each.get("failed") or 0,
                oldest_job_age=each.get("oldestJobAge"),
            )
            for each in status.get("queues") or ()
        ],
        findings=list(_findings(status)),
        conditions=shown.conditions,
    )


def _findings(status: Mapping[str, Any]) -> Iterator[Finding]:
    if not status:
        told = "its status is empty; look whether an operator runs and watches this namespace"
        yield Finding(what="Unseen", reason="Unseen", message=told, since=None)
    for each in status.get("conditions") or ():
        kind, said = each["type"], each["status"]
        limited = kind == "ScalingLimited" and said == "True"
        if not limited and _GOOD.get(kind, said) == said:
            continue
        reason = each.get("reason") or ""
        message = each.get("message") or reasons.DESCRIPTIONS.get(reason, "")
        since = each.get("lastTransitionTime")
        yield Finding(what=f"{kind}={said}", reason=reason, message=message, since=since)


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
        handler=explain_pool, summary="Why a pool has its size", tag="pools", answer=Why,
        conditional=True, errors=(404,),
    ),
    Route(
        method="GET", path=f"{_HERE}/workers", needs=Permission.NAMESPACE_POOLS_READ,
        handler=list_workers, summary="Workers and how they are", tag="pools",
        query=WorkersQuery, answer=WorkerList, cost=5,
    ),
)  # fmt: skip
