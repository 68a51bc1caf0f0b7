"""Changes of jobs, queues and schedules through the API: single, in bulk, now and later."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from engineroom.api import ANNOTATION_DRAIN_PODS
from engineroom.console.background import operations
from engineroom.console.background.operation_store import (
    Operation,
    OperationAction,
    OperationStatus,
    OperationStore,
)
from engineroom.console.background.operations import LEASE, OperationRunner
from engineroom.core.clock import SystemClock
from engineroom.kube.client.resources import RATELIMITPOLICIES, WORKERPOOLS
from engineroom.tasks import AsyncTasks, JobFilter, Reporter, Schedule, State, Task, Unique
from engineroom.tasks.triggers import Every
from tests.integration.console.api import Api, code, manifest, pool
from tests.integration.pools import eventually, record_owned
from tests.integration.ratelimit.policies import policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.kube.client.client import Client
    from tests.support import RedisServer

SECRET = b"s" * 48
ADD = "tests.integration.tasks.work.add"


async def stage(api: Api, client: Client, namespace: str, *queues: str, **spec: Any) -> str:
    """Create a pool that reads these queues, and an operator's API key."""
    body = pool("mail", **spec)
    body["metadata"]["namespace"] = namespace
    body["spec"]["queues"] = [{"name": queue} for queue in queues]
    await client.create(WORKERPOOLS, body)
    await record_owned(client, body)
    await eventually("listed", lambda: api.services.hub.queues(namespace) >= set(queues), 5)
    return await api.key("operator", namespace)


async def fail(api: Api, count: int, queue: str, function: str = ADD) -> list[str]:
    """Create failed jobs."""
    done = await api.services.tasks.enqueue_many(
        [Task(function, (n,), queue=queue) for n in range(count)]
    )
    redis = api.services.redis
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.delete(f"rq:queue:{queue}")
        for number, item in enumerate(done):
            moment = "2026-01-01T00:00:00.000000Z"
            fields = {"status": "failed", "ended_at": moment}
            pipeline.hset(f"rq:job:{item.job_id}", mapping=fields)
            pipeline.zadd(f"rq:failed:{queue}", {item.job_id: 1e12 + number})
        await pipeline.execute()
    return [item.job_id for item in done]


async def ended(api: Api, token: str, path: str, within: float = 10) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        operation = (await api.get(path, token)).json()
        return None if operation["status"] == "running" else operation

    result: dict[str, Any] = {}

    async def good() -> bool:
        latest = await look()
        result.update(latest or {})
        return latest is not None

    await eventually("the operation ends", good, within)
    return result


# -- queues -----------------------------------------------------------------------------------


async def test_a_queue_is_paused_limited_and_resumed(
    api: Api, client: Client, namespace: str
) -> None:
    operator = await stage(api, client, namespace, "mail", "bills")
    here = f"/namespaces/{namespace}/queues"
    page = (await api.get(f"{here}?limit=1", operator)).json()
    assert [item["name"] for item in page["items"]] == ["bills"]
    rest = (await api.get(f"{here}?limit=1&cursor={page['nextCursor']}", operator)).json()
    assert ([item["name"] for item in rest["items"]], rest["nextCursor"]) == (["mail"], None)
    paused = await api.post(f"{here}/mail/pause", operator, {"reason": "upgrade"})
    assert (paused.json()["paused"], paused.json()["reason"]) == (True, "upgrade")
    assert (await api.post(f"{here}/mail/resume", operator)).json()["paused"] is False
    limited = await api.call("PUT", f"{here}/mail/limit", operator, {"rate": "10/s"})
    assert limited.json()["limit"] == {"concurrency": None, "rate": "10/s"}
    empty = await api.call("PUT", f"{here}/mail/limit", operator, {})
    assert (empty.status_code, code(empty)) == (422, "task_invalid")
    assert (await api.call("DELETE", f"{here}/mail/limit", operator)).json()["limit"] is None
    assert (await api.post(f"{here}/other/pause", operator, {})).status_code == 404
    viewer = await api.key("viewer", namespace)
    assert (await api.post(f"{here}/mail/pause", viewer, {})).status_code == 403


# -- jobs and schedules -----------------------------------------------------------------------


async def test_a_job_is_enqueued_once_with_the_ids_of_its_request(
    api: Api, client: Client, namespace: str
) -> None:
    operator = await stage(api, client, namespace, "mail")
    here = f"/namespaces/{namespace}/jobs"
    wanted = {"function": ADD, "args": [1], "queue": "mail", "uniqueKey": "u"}
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    first = await api.post(here, operator, wanted, x_request_id="abc-1", traceparent=trace)
    assert (first.status_code, first.json()["created"]) == (200, True), first.text
    again = (await api.post(here, operator, wanted)).json()
    assert again == {**first.json(), "created": False}
    job = await api.services.redis.hgetall(f"rq:job:{first.json()['id']}")
    meta = api.services.tasks.rules.serializer.loads(job[b"meta"])
    assert meta["engineroom_context"]["request_id"] == "abc-1"
    assert meta["engineroom_context"]["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    elsewhere = await api.post(here, operator, {**wanted, "queue": "bills"})
    assert elsewhere.status_code == 404
    bad = await api.post(here, operator, {**wanted, "function": "no path"})
    assert (bad.status_code, code(bad)) == (422, "task_invalid")


async def test_a_job_is_shown_with_the_progress_that_it_reports(
    api: Api, client: Client, namespace: str, redis: RedisServer
) -> None:
    operator = await stage(api, client, namespace, "mail")
    job = (await api.services.tasks.enqueue(Task(ADD, (1,), queue="mail"))).job_id

    async def said() -> tuple[Any, ...]:
        job_view = (await api.get(f"/namespaces/{namespace}/jobs/{job}", operator)).json()
        names = ("progress", "progressCount", "progressTotal", "progressMessage")
        assert (job_view["progressAt"] is None) is (job_view["progressCount"] is None)
        return tuple(job_view[name] for name in names)

    assert await said() == (None, None, None, "")
    with Redis.from_url(redis.url) as connection:
        Reporter(connection, job).report(40, 100, "importing")
        assert await said() == (0.4, 40, 100, "importing")
        Reporter(connection, job).report(41, None, "who knows")
        assert await said() == (None, 41, None, "who knows")


async def test_a_schedule_is_created_changed_paused_run_and_deleted(
    api: Api, client: Client, namespace: str
) -> None:
    operator = await stage(api, client, namespace, "mail")
    here = f"/namespaces/{namespace}/schedules"
    wanted = {"function": ADD, "args": [1], "queue": "mail", "every": 3600}
    created = await api.call("PUT", f"{here}/nightly", operator, wanted)
    assert (created.status_code, created.json()["version"]) == (200, 1), created.text
    tag = created.headers["etag"]
    changed = await api.call(
        "PUT", f"{here}/nightly", operator, {**wanted, "every": 60}, if_match=tag
    )
    assert "60" in changed.json()["trigger"]
    for method, body in (("PUT", wanted), ("DELETE", None)):
        stale = await api.call(method, f"{here}/nightly", operator, body, if_match=tag)
        assert (stale.status_code, code(stale)) == (412, "precondition_failed")
    absent = await api.call("PUT", f"{here}/other", operator, wanted, if_match="*")
    assert absent.status_code == 412
    assert (await api.post(f"{here}/nightly/pause", operator)).json()["paused"] is True
    assert (await api.post(f"{here}/nightly/resume", operator)).json()["next"] is not None
    job = (await api.post(f"{here}/nightly/run", operator)).json()["id"]
    assert (await api.get(f"/namespaces/{namespace}/jobs/{job}", operator)).json()["args"] == [1]
    two = await api.call("PUT", f"{here}/x", operator, {**wanted, "cron": "* * * * *"})
    assert two.json()["errors"][0]["field"] == "body"
    assert (await api.call("DELETE", f"{here}/nightly", operator)).status_code == 204
    assert (await api.get(f"{here}/nightly", operator)).status_code == 404


async def test_a_schedule_name_of_another_namespace_conflicts_and_is_unchanged(
    api: Api, client: Client, namespace: str
) -> None:
    operator = await stage(api, client, namespace, "mail")
    tasks = api.services.tasks
    await tasks.put_schedule(Schedule("theirs", Every(60.0), Task(ADD, (1,), queue="bills")))
    here = f"/namespaces/{namespace}/schedules/theirs"
    wanted = {"function": ADD, "queue": "mail", "every": 3600}
    taken = await api.call("PUT", here, operator, wanted)
    assert (taken.status_code, code(taken)) == (409, "schedule_owned")
    for method, path in (("POST", "/pause"), ("POST", "/run"), ("DELETE", "")):
        assert (await api.call(method, f"{here}{path}", operator)).status_code == 404
    before = await tasks.schedule("theirs")
    assert (before.queue, before.paused, before.version) == ("bills", False, 1)


# -- many by a filter -------------------------------------------------------------------------


async def test_failed_jobs_are_counted_and_requeued_by_a_filter(
    api: Api, client: Client, namespace: str
) -> None:
    operator = await stage(api, client, namespace, "mail", "bills")
    ours = await fail(api, 120, "mail")
    await fail(api, 30, "bills", "shop.other")
    await fail(api, 5, "elsewhere")
    here = f"/namespaces/{namespace}/operations"
    wanted = {"function": "tests.*"}
    counted = (await api.post(f"{here}/retry", operator, {**wanted, "dryRun": True})).json()
    assert (counted["id"], counted["status"], counted["matched"]) == (None, "counted", 120)
    refused = await api.post(f"{here}/retry", operator, {**wanted, "atMost": 119})
    assert (refused.status_code, code(refused)) == (409, "impact_exceeded")
    assert (await api.post(f"{here}/retry", operator, {})).status_code == 422
    begun = await api.post(f"{here}/retry", operator, wanted, idempotency_key="k")
    assert begun.status_code == 200, begun.text
    again = await api.post(f"{here}/retry", operator, wanted, idempotency_key="k")
    assert again.json()["id"] == begun.json()["id"]
    finished = await ended(api, operator, f"{here}/{begun.json()['id']}")
    assert (finished["status"], finished["done"], finished["skipped"]) == ("done", 120, 0)
    records = [dict(item.body) for item in await api.services.audit.read(0, 500)]
    [end] = [record for record in records if record["action"] == "operation.end"]
    assert (end["who"], end["namespace"], end["outcome"]) == (finished["by"], namespace, "done")
    assert end["details"] == {
        "operation": finished["id"], "action": "retry", "done": 120, "skipped": 0,
    }  # fmt: skip
    redis = api.services.redis
    assert {item.decode() for item in await redis.lrange("rq:queue:mail", 0, -1)} == set(ours)
    assert await redis.zcard("rq:failed:bills") == 30
    assert await redis.zcard("rq:failed:elsewhere") == 5
    listed = (await api.get(here, operator)).json()["items"]
    assert [item["id"] for item in listed] == [begun.json()["id"]]
    stranger = await api.key("operator", "somewhere-else")
    assert (await api.get(f"{here}/{finished['id']}", stranger)).status_code == 403


async def test_unique_keys_are_separate_by_namespace(
    api: Api, client: Client, namespace: str
) -> None:
    operator = await stage(api, client, namespace, "mail")
    redis, where = api.services.redis, f"/namespaces/{namespace}/jobs"
    # Another tenant's job, enqueued by its application; the key is easy to guess.
    theirs = await api.services.tasks.enqueue(
        Task(ADD, (1,), queue="theirs", unique=Unique("invoice:42"))
    )
    wanted = {"function": ADD, "args": [1], "queue": "mail", "uniqueKey": "invoice:42"}
    first = (await api.post(where, operator, wanted)).json()
    assert first["created"]
    assert (first["queue"], first["id"] == theirs.job_id) == ("mail", False)
    again = (await api.post(where, operator, wanted)).json()
    assert again == {**first, "created": False}
    # A key claimed here blocks no other namespace's job, in any spelling.
    for key in ("invoice:42", f"{namespace}:invoice:42"):
        other = await api.services.tasks.enqueue(
            Task(ADD, (1,), queue="mail2", unique=Unique(f"{key}:new"))
        )
        assert other.created
    # The job moved to another namespace with its pool's queue: its id is not revealed.
    await redis.hset(f"rq:job:{first['id']}", "origin", "theirs")
    response = await api.post(where, operator, wanted)
    assert (response.status_code, code(response)) == (409, "job_exists")
    assert first["id"] not in response.text
    assert "theirs" not in response.text
    # An id is the installation's: that it is taken is all that is said.
    named = await api.post(where, operator, {**wanted, "uniqueKey": "x", "jobId": theirs.job_id})
    assert (named.status_code, code(named)) == (409, "job_exists")
    assert "theirs" not in named.text


async def test_cancelling_leaves_other_namespaces_jobs_alone(
    api: Api, client: Client, namespace: str
) -> None:
    operator = await stage(api, client, namespace, "mail", "bills")
    tasks = api.services.tasks
    here = f"/namespaces/{namespace}"

    async def family() -> list[str]:
        """Return our job, another namespace's dependent, our dependent of that one, and one more of
        ours.
        """
        job_ids: list[str] = []
        for queue, parent in (("mail", None), ("theirs", 0), ("bills", 1), ("bills", 0)):
            waits = () if parent is None else (job_ids[parent],)
            done = await tasks.enqueue(Task(ADD, (1,), queue=queue, depends_on=waits))
            job_ids.append(done.job_id)
        return job_ids

    async def statuses(ids: list[str]) -> list[bytes | None]:
        return [await api.services.redis.hget(f"rq:job:{item}", "status") for item in ids]

    first = await family()
    done = await api.post(f"{here}/jobs/{first[0]}/cancel", operator, {})
    assert done.json() == {"canceled": [first[0], first[3]], "running": [], "skipped": 1}
    assert await statuses(first) == [b"canceled", b"deferred", b"deferred", b"canceled"]
    many = await family()
    begun = await api.post(f"{here}/operations/cancel", operator,
                           {"state": "waiting", "queue": "mail", "all": True})  # fmt: skip
    ends = await ended(api, operator, f"{here}/operations/{begun.json()['id']}")
    assert (ends["done"], ends["skipped"]) == (2, 1)
    assert await statuses(many) == [b"canceled", b"deferred", b"deferred", b"canceled"]


async def test_waiting_jobs_are_cancelled_by_a_filter(
    api: Api, client: Client, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "ROUND", 100)  # several rounds, as with very many jobs
    operator = await stage(api, client, namespace, "mail")
    tasks = api.services.tasks
    await tasks.enqueue_many([Task(ADD, (n,), queue="mail") for n in range(260)])
    later = await tasks.enqueue(Task("tests.integration.tasks.work.step", (1,), queue="mail"))
    here = f"/namespaces/{namespace}/operations"
    wanted = {"state": "waiting", "function": ADD, "atMost": 260}
    begun = await api.post(f"{here}/cancel", operator, wanted)
    assert begun.status_code == 200, begun.text
    finished = await ended(api, operator, f"{here}/{begun.json()['id']}")
    assert (finished["status"], finished["done"], finished["skipped"]) == ("done", 260, 0)
    assert await api.services.redis.lrange("rq:queue:mail", 0, -1) == [later.job_id.encode()]
    ended_already = await api.call("DELETE", f"{here}/{finished['id']}", operator)
    assert ended_already.json()["status"] == "done"


class Dying:
    """Tasks of a replica that dies at the n-th call of Redis."""

    def __init__(self, redis: Any, allowed: int) -> None:
        self._execute = redis.execute_command
        self.left = allowed

    async def __call__(self, *words: Any, **options: Any) -> Any:
        if self.left <= 0:
            raise asyncio.CancelledError
        self.left -= 1
        return await self._execute(*words, **options)


@pytest.mark.parametrize("action", [OperationAction.RETRY, OperationAction.CANCEL])
async def test_after_a_crash_at_any_step_another_replica_finishes_without_repetition(
    api: Api, client: Client, namespace: str, action: OperationAction, make_redis: Callable[[], Any]
) -> None:
    await stage(api, client, namespace, "mail")
    jobs = 60
    for allowed in range(0, 40, 3):
        redis = api.services.redis
        await redis.flushall()
        if action is OperationAction.RETRY:
            await fail(api, jobs, "mail")
        else:
            await api.services.tasks.enqueue_many([Task(ADD, (1,), queue="mail")] * jobs)
        state = State.FAILED if action is OperationAction.RETRY else State.WAITING
        operation = Operation(
            "ab" * 16, namespace, action, state, ("mail",), JobFilter(), "test",
            SystemClock().now().timestamp(), jobs,
        )  # fmt: skip
        mortal = make_redis()
        mortal.execute_command = Dying(mortal, allowed)
        told: list[Operation] = []

        async def on_end(end: Operation, told: list[Operation] = told) -> None:
            told.append(end)

        store = OperationStore(redis, SECRET)
        first = OperationRunner(OperationStore(mortal, SECRET), AsyncTasks(mortal), on_end=on_end)
        second = OperationRunner(store, AsyncTasks(redis), on_end=on_end)
        await second.start(operation)
        with_lease = first.execute(operation.id)
        await asyncio.gather(with_lease, return_exceptions=True)
        await redis.delete(f"engineroom:console:operation:{operation.id}:lease")  # it runs out
        await second.execute(operation.id)
        ends = await store.get(operation.id)
        assert ends is not None
        assert ends.status is OperationStatus.DONE, allowed
        # Twice where one died between telling and noting it, never not at all.
        assert {item.status for item in told} == {OperationStatus.DONE}, allowed
        waiting = {item.decode() for item in await redis.lrange("rq:queue:mail", 0, -1)}
        if action is OperationAction.RETRY:
            assert (len(waiting), ends.done) == (jobs, jobs), allowed
            assert await redis.llen("rq:queue:mail") == jobs
        else:
            assert waiting == set(), allowed
            # Killed between a step and its note, the step's jobs count as found cancelled.
            assert ends.done + ends.skipped == jobs, allowed


async def test_one_replica_at_a_time_executes_an_operation_and_a_stop_ends_it(
    api: Api, client: Client, namespace: str
) -> None:
    await stage(api, client, namespace, "mail")
    redis = api.services.redis
    both = [OperationStore(redis, SECRET) for _ in range(2)]
    operation = Operation(
        "cd" * 16, namespace, OperationAction.CANCEL, State.WAITING, ("mail",), JobFilter(), "test",
        SystemClock().now().timestamp(), 0,
    )  # fmt: skip
    await both[0].start(operation)
    assert await both[0].acquire(operation.id, LEASE)
    assert not await both[1].acquire(operation.id, LEASE)
    assert await both[1].stop(operation.id)
    assert not await both[0].acquire(operation.id, LEASE)
    stored = await both[0].get(operation.id)
    assert stored is not None
    assert stored.status is OperationStatus.STOPPED
    assert not await both[1].stop(operation.id)


# -- pools ------------------------------------------------------------------------------------


async def test_a_pool_and_its_pods_are_drained_and_undrained(
    api: Api, client: Client, namespace: str
) -> None:
    operator = await stage(api, client, namespace, "mail")
    here = f"/namespaces/{namespace}/pools/mail"
    drained = await api.post(f"{here}/drain", operator)
    assert (drained.json()["draining"], drained.json()["held"]) == (True, None), drained.text
    assert (await api.call("DELETE", f"{here}/drain", operator)).json()["draining"] is False
    unknown = await api.post(f"{here}/pods/mail-1-x/drain", operator)
    assert unknown.status_code == 404
    redis = api.services.redis
    record = {"er_pool": f"{namespace}/mail", "er_pod": "mail-1-x", "state": "idle",
              "last_heartbeat": "2999-01-01T00:00:00.000000Z", "queues": "mail"}  # fmt: skip
    await redis.hset("rq:worker:w1", mapping=record)
    await redis.sadd("rq:workers", "rq:worker:w1")
    drained_pod = await api.post(f"{here}/pods/mail-1-x/drain", operator)
    assert drained_pod.json()["pods"] == ["mail-1-x"], drained_pod.text
    live = await client.get(WORKERPOOLS, namespace, "mail")
    assert live["metadata"]["annotations"][ANNOTATION_DRAIN_PODS] == "mail-1-x"
    back = await api.call("DELETE", f"{here}/pods/mail-1-x/drain", operator)
    assert back.json()["pods"] == []
    workers = (await api.get(f"/namespaces/{namespace}/workers?pool=mail", operator)).json()
    assert [(w["name"], w["pool"], w["health"]) for w in workers["items"]] == [
        ("w1", "mail", "well")
    ]
    stranger = await api.key("operator", "somewhere-else")
    elsewhere = await api.get("/namespaces/somewhere-else/workers", stranger)
    assert elsewhere.json()["items"] == []


async def test_a_pool_explains_its_size(api: Api, client: Client, namespace: str) -> None:
    operator = await stage(api, client, namespace, "mail")
    here = f"/namespaces/{namespace}/pools/mail/why"
    unseen = (await api.get(here, operator)).json()
    assert (unseen["current"], unseen["findings"][0]["what"]) == (False, "Unseen")
    status = {
        "observedGeneration": 1, "decision": "3 jobs / 1 per worker = 3", "desiredReplicas": 3,
        "conditions": [
            {"type": "Ready", "status": "False", "reason": "Scaling", "message": "1 of 3",
             "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1},
            {"type": "RedisReachable", "status": "True", "reason": "Reconciled", "message": "",
             "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1},
        ],
    }  # fmt: skip
    await client.merge_patch(
        WORKERPOOLS, namespace, "mail", {"status": status}, subresource="status"
    )
    explained = (await api.get(here, operator)).json()
    assert (explained["current"], explained["decision"], explained["desired"]) == (
        True, "3 jobs / 1 per worker = 3", 3,
    )  # fmt: skip
    assert [finding["what"] for finding in explained["findings"]] == ["Ready=False"]


# -- rate limits ------------------------------------------------------------------------------


async def test_policies_are_applied_with_pools_as_one_transaction(
    api: Api, client: Client, namespace: str, person: Any
) -> None:
    limits = {"apiVersion": "engineroom.dev/v1alpha1", "kind": "RateLimitPolicy",
              **policy(namespace)}  # fmt: skip
    admin = await api.key("admin", namespace)
    here = f"/namespaces/{namespace}/manifests"
    done = await api.post(here, admin, {"manifest": manifest(pool("mail"), limits)})
    assert done.status_code == 200, done.text
    assert [(o["kind"], o["action"]) for o in done.json()["objects"]] == [
        ("WorkerPool", "create"), ("RateLimitPolicy", "create"),
    ]  # fmt: skip
    assert await client.get(RATELIMITPOLICIES, namespace, "api")
    limits["spec"] = {**limits["spec"], "limits": []}
    wrong = await api.post(here, admin, {"manifest": manifest(limits)})
    assert (wrong.status_code, code(wrong)) == (422, "invalid_spec")
    assert "spec.limits" in wrong.json()["errors"][0]["field"]
    # Who limits rates makes no pods, unless a Secret is reached for as a pod does.
    kinds = {"apiGroups": ["engineroom.dev"], "resources": ["workerpools", "ratelimitpolicies"]}
    token = await person("limiter", {**kinds, "verbs": ["get", "create", "patch"]})
    limits = {**limits, **policy(namespace, "second")}
    allowed = await api.post(here, token, {"manifest": manifest(limits)})
    assert allowed.status_code == 200, allowed.text
    limits["metadata"]["name"] = "third"
    limits["spec"]["redis"] = {"urlSecretRef": {"name": "redis", "key": "url"}}
    refused = await api.post(here, token, {"manifest": manifest(limits)})
    assert (refused.status_code, code(refused)) == (403, "permission_denied")
    assert "create pods" in refused.json()["detail"]
