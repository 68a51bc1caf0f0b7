"""A pool on a real API server with real workers: sizes, drains, suspensions, faults, healing."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from engineroom.kube.client.resources import DEPLOYMENTS, EVENTS, NAMESPACES, SECRETS, WORKERPOOLS
from tests.integration.hollow import HollowKubelet
from tests.integration.pools import OperatorProcess, Stage, eventually, pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster
    from tests.integration.faultproxy import FaultProxy, Request
    from tests.support import RedisServer


@pytest.fixture
def stage(client: Client, namespace: str, redis: RedisServer) -> Stage:
    return Stage(client, namespace, redis)


@pytest_asyncio.fixture
async def kubelet(client: Client, namespace: str) -> AsyncIterator[HollowKubelet]:
    async with HollowKubelet(client, namespace) as running:
        yield running


@pytest_asyncio.fixture
async def operator(
    control_plane: Cluster, redis: RedisServer, namespace: str
) -> AsyncIterator[OperatorProcess]:
    process = OperatorProcess(control_plane.kubeconfig, redis.url, namespace)
    await process.start()
    yield process
    await process.stop()


async def test_from_zero_and_back(stage, kubelet, operator):
    await stage.client.create(WORKERPOOLS, pool(stage.namespace))
    await eventually("the pool is ready at zero", lambda: ready_at(stage, 0))
    stage.enqueue(6, 0.3)
    await eventually("the jobs are done", lambda: stage.ledger().finished == 6)
    await eventually("the pool is at zero", lambda: stage.at_rest())
    assert (stage.ledger().lost, stage.ledger().doubled) == (0, 0)
    status = (await eventually("the status says so", lambda: settled(stage)))["status"]
    assert status["desiredReplicas"] == status["replicas"] == 0
    assert stage.redis.smembers(f"engineroom:workers:{{{stage.namespace}/mail}}") == set()


async def ready_at(stage: Stage, size: int) -> bool:
    return (await stage.condition("Ready"))[0] == "True" and await stage.size() == size


async def settled(stage: Stage):
    found = await stage.pool()
    status = found.get("status") or {}
    states = {c["type"]: c["status"] for c in status.get("conditions") or ()}
    if (
        status.get("observedGeneration") == found["metadata"]["generation"]
        and states.get("Reconciling") == states.get("Draining") == "False"
        and not status.get("jobsPerMinute")
    ) or (status.get("replicas") == 0 and states.get("Reconciling") == "False"):
        return found
    return None


async def test_a_busy_worker_is_not_touched_when_the_pool_shrinks(stage, kubelet, operator):
    await stage.client.create(WORKERPOOLS, pool(stage.namespace))
    stage.enqueue(1, 8)
    stage.enqueue(2, 0.2)
    await eventually("three pods work", lambda: len(kubelet.pods()) == 3, 40)
    await eventually("two are gone", lambda: len(kubelet.pods()) == 1, 40)
    assert stage.redis.hgetall("booked:finished").get(stage.enqueued[0].encode()) is None
    await eventually("the long one ends", lambda: stage.ledger().finished == 3)
    await eventually("the pool is at zero", lambda: stage.at_rest())
    assert (stage.ledger().lost, stage.ledger().doubled) == (0, 0)


async def test_kubectl_scale_and_suspension(stage, kubelet, operator):
    await two_by_hand(stage, kubelet)
    await stage.client.merge_patch(
        WORKERPOOLS, stage.namespace, "mail", {"spec": {"replicas": 1}}, subresource="scale"
    )
    await eventually("one pod", lambda: len(kubelet.pods()) == 1)
    await patch(stage, {"suspend": True})
    await eventually(
        "redis knows",
        lambda: stage.redis.exists(f"engineroom:suspended:{{{stage.namespace}/mail}}"),
    )
    await eventually("workers read it", lambda: all_in_state(stage, b"suspended"))
    stage.enqueue(2)
    assert (await stage.condition("ScalingActive"))[1] == "Suspended"
    assert stage.queue.count == 2
    await patch(stage, {"suspend": False})
    await eventually("the jobs are done", lambda: stage.ledger().finished == 2)


def all_in_state(stage: Stage, state: bytes) -> bool:
    names = stage.redis.smembers(f"engineroom:workers:{{{stage.namespace}/mail}}")
    return bool(names) and all(
        stage.redis.hget(f"rq:worker:{name.decode()}", "state") == state for name in names
    )


async def patch(stage: Stage, spec: dict) -> None:
    await stage.client.merge_patch(WORKERPOOLS, stage.namespace, "mail", {"spec": spec})


async def test_a_killed_worker_s_job_is_given_back(stage, kubelet, operator):
    await stage.client.create(
        WORKERPOOLS, pool(stage.namespace, recovery={"requeueOrphans": "Always"})
    )
    stage.enqueue(1, 3)
    started = lambda: stage.redis.hgetall("booked:started")  # noqa: E731
    await eventually("it runs", started)
    kubelet.kill(kubelet.pods()[0])
    await eventually("it runs again", lambda: list(started().values()) == [b"2"], 40)
    await eventually("it is done", lambda: stage.ledger().finished == 1)
    assert stage.ledger().doubled == 0


async def test_redis_gone_for_a_while_keeps_size_and_jobs(stage, kubelet, operator, redis):
    await stage.client.create(WORKERPOOLS, pool(stage.namespace))
    stage.enqueue(2, 6)
    stage.enqueue(4, 0.2)
    await eventually("three pods work", lambda: len(kubelet.pods()) == 3, 40)
    await eventually("two long ones run", lambda: stage.redis.hlen("booked:started") >= 2)
    size = await stage.size()
    redis.stop()
    await eventually("the condition says so", lambda: unreachable(stage), 10)
    await asyncio.sleep(5)
    assert await stage.size() == size
    redis.start()
    await eventually("reachable again", lambda: reachable(stage), 15)
    await eventually("all jobs are done", lambda: stage.ledger().finished == 6, 60)
    await eventually("the pool is at zero", lambda: stage.at_rest(), 40)
    assert stage.ledger().doubled == 0


async def unreachable(stage: Stage) -> bool:
    return (await stage.condition("RedisReachable"))[:2] == ("False", "RedisUnreachable")


async def reachable(stage: Stage) -> bool:
    return (await stage.condition("RedisReachable"))[0] == "True"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "SecretNotFound"),
        ({"other": "redis://127.0.0.1"}, "SecretKeyNotFound"),
        ({"url": "http://127.0.0.1"}, "RedisUrlInvalid"),
        ({"url": "redis://127.0.0.1:1"}, "RedisUnreachable"),
    ],
)
async def test_a_wrong_redis_says_why_and_heals(stage, operator, redis, value, reason):
    reference = {"urlSecretRef": {"name": "redis", "key": "url"}}
    if value is not None:
        await write_secret(stage, value)
    await stage.client.create(WORKERPOOLS, pool(stage.namespace, redis=reference))

    async def said() -> bool:
        return (await stage.condition("RedisReachable"))[:2] == ("False", reason)

    await eventually(f"the condition says {reason}", said)
    assert (await stage.condition("Ready"))[1] == reason
    await write_secret(stage, {"url": redis.url})
    await eventually("it heals by itself", lambda: reachable(stage), 45)


async def write_secret(stage: Stage, values: dict[str, str]) -> None:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    await stage.client.apply(
        SECRETS, {"metadata": {"namespace": stage.namespace, "name": "redis"}, "data": data}
    )


async def test_nothing_is_written_at_the_fixed_point_nor_by_a_restart(
    stage, kubelet, proxy: FaultProxy, redis, tmp_path: Path
):
    operator = OperatorProcess(proxy.kubeconfig(tmp_path), redis.url, stage.namespace)
    await operator.start()
    manual = pool(stage.namespace, "manual", replicas=1)
    del manual["spec"]["autoscaling"]
    await stage.client.create(WORKERPOOLS, manual)
    await stage.client.create(WORKERPOOLS, pool(stage.namespace))

    async def at_fixed_point() -> bool:
        states = [await stage.condition("Reconciling", name) for name in ("mail", "manual")]
        return bool(kubelet.pods()) and [state[0] for state in states] == ["False", "False"]

    await eventually("both are as their specs say", at_fixed_point)
    before = len(proxy.writes())
    await asyncio.sleep(5)
    assert [r.path for r in proxy.writes()[before:]] == []
    assert await operator.stop() == 0
    await operator.start()
    await eventually("it runs", lambda: caches_filled(operator) >= 2)
    await asyncio.sleep(5)
    assert [r.path for r in proxy.writes()[before:]] == []
    await operator.stop()


def done(stage: Stage, count: int) -> bool:
    return stage.ledger().finished == count


def caches_filled(operator: OperatorProcess) -> int:
    return sum(line.get("event") == "caches are filled" for line in operator.log())


async def test_a_foreign_edit_is_put_right(stage, operator):
    held = pool(stage.namespace, autoscaling={"minReplicas": 1})
    await stage.client.create(WORKERPOOLS, held)
    await eventually("the pool is ready", lambda: ready_at(stage, 1))
    image = {"containers": [{"name": "app", "image": "evil"}]}
    await stage.client.apply(
        DEPLOYMENTS,
        {
            "metadata": {"namespace": stage.namespace, "name": "mail"},
            "spec": {
                "selector": {"matchLabels": {"engineroom.dev/pool": "mail"}},
                "template": {"spec": image},
            },
        },
        field_manager="somebody",
    )

    async def back() -> bool:
        made = await stage.client.get(DEPLOYMENTS, stage.namespace, "mail")
        return made["spec"]["template"]["spec"]["containers"][0]["image"] == "none"

    await eventually("the image is back", back, every=0.001)
    # Its own write and the deletion come to it as one.
    os.kill(operator.pid, signal.SIGSTOP)
    await stage.client.delete(DEPLOYMENTS, stage.namespace, "mail")
    await asyncio.sleep(0.5)
    os.kill(operator.pid, signal.SIGCONT)
    await eventually("the Deployment is back", lambda: ready_at(stage, 1))


async def test_one_wrong_spec_hurts_no_other(stage, operator):
    """Past admission by the template, which the CRD cannot check."""
    wrong = pool(stage.namespace, "wrong", template={"spec": {"containers": []}})
    await stage.client.create(WORKERPOOLS, wrong)
    await stage.client.create(WORKERPOOLS, pool(stage.namespace))

    async def stalled() -> bool:
        return (await stage.condition("Stalled", "wrong"))[:2] == ("True", "InvalidSpec")

    await eventually("the wrong one is stalled", stalled)
    await eventually("the other one is ready", lambda: ready_at(stage, 0))
    assert "spec.template.spec.containers" in (await stage.condition("Stalled", "wrong"))[2]


async def test_what_a_pod_may_follows_the_label_of_its_namespace(stage, kubelet, operator):
    """Admission says the same; who came past it gets no more than the namespace allows."""
    body = pool(stage.namespace)
    body["spec"]["template"]["spec"]["hostNetwork"] = True
    await stage.client.create(WORKERPOOLS, body)

    async def stalled() -> bool:
        status, _, message = await stage.condition("Stalled")
        return status == "True" and "hostNetwork" in message

    await eventually("restricted does not allow it", stalled)
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}
    await stage.client.merge_patch(NAMESPACES, None, stage.namespace, label)
    stage.enqueue(1, 0.1)
    await eventually("the job is done", lambda: done(stage, 1))


async def test_no_more_failed_jobs_are_kept_than_the_spec_says(stage, kubelet, operator):
    failed = [
        stage.queue.enqueue("tests.integration.jobs.missing", job_id=f"{stage.namespace}-{number}")
        for number in range(6)
    ]
    stage.enqueue(1, 0.1)
    await stage.client.create(WORKERPOOLS, pool(stage.namespace, deadLetter={"maxJobs": 2}))
    registry = stage.queue.failed_job_registry
    left = lambda: stage.redis.zrange(registry.key, 0, -1)  # noqa: E731
    await eventually("all have run", lambda: done(stage, 1))
    await eventually("two are left", lambda: len(left()) == 2)
    ids = {job_id.decode() for job_id in left()}
    # Nothing of the others is left either.
    assert {job.id for job in failed if stage.redis.exists(job.key)} == ids
    [message] = await told(stage, "DeadLettersDropped")
    assert f"queue {stage.namespace}" in message


async def test_stuck_workers_are_reported_and_stale_workers_removed(stage, kubelet, operator):
    ghost = "rq:worker:gone-since-long"
    lists = ("rq:workers", f"rq:workers:{stage.namespace}")
    for each in lists:
        stage.redis.sadd(each, ghost)
    await two_by_hand(stage, kubelet)
    cleared = await told(stage, "GhostWorkersCleared")
    assert cleared == {"1 workers of the pool's queues no longer exist: gone-since-long"}
    assert not any(stage.redis.sismember(each, ghost) for each in lists)

    registered = f"engineroom:workers:{{{stage.namespace}/mail}}"
    names = await eventually("both are there", lambda: both(stage.redis.smembers(registered)))
    stage.enqueue(1, 15)
    state = lambda name: stage.redis.hget(f"rq:worker:{name}", "state")  # noqa: E731
    busy = await eventually(
        "one works", lambda: next((n for n in names if state(n) == b"busy"), None)
    )
    [idle] = names - {busy}
    assert await told(stage, "WorkerStuck", wait=False) == set()
    # One works on, beyond the time-out of its job, as it would stand there in half an hour.
    stage.redis.hset(f"rq:worker:{busy}", "er_job_started", f"{time.time() - 1800:.3f}")
    # The other hangs; its pod is ready all the same.
    pod = next(each for each in kubelet.pods() if idle.startswith(f"{each}."))
    kubelet.freeze(pod)
    silent = (datetime.now(UTC) - timedelta(seconds=90)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    stage.redis.hset(f"rq:worker:{idle}", "last_heartbeat", silent)
    wanted = {
        f"worker {busy} runs job {stage.enqueued[0]} beyond its time-out",
        f"worker {idle} has sent no heartbeat for a minute and its pod is ready",
    }

    async def both_told() -> bool:
        return await told(stage, "WorkerStuck", wait=False) == wanted

    await eventually("an event for each", both_told)
    # That is all: neither is taken for dead.
    assert stage.redis.smembers(registered) == {name.encode() for name in names}
    await eventually("the job ends where it is", lambda: done(stage, 1))
    assert stage.redis.hget("booked:started", stage.enqueued[0]) == b"1"


def both(members: set[bytes]) -> set[str] | None:
    return {each.decode() for each in members} if len(members) == 2 else None


async def told(stage: Stage, reason: str, *, wait: bool = True) -> set[str]:
    """Messages of the pool's events with that reason, as soon as there is one."""

    async def look() -> set[str]:
        events, _ = await stage.client.list(EVENTS, stage.namespace)
        mine = (each for each in events if each["reason"] == reason)
        return {each["note"] for each in mine if each["regarding"]["kind"] == "WorkerPool"}

    return await eventually(f"{reason} is told", look) if wait else await look()


async def test_a_push_is_heard_long_before_the_next_resync(stage, operator):
    """No pod ever comes up here; all that counts is when the size is asked for."""
    await stage.client.create(WORKERPOOLS, pool(stage.namespace))
    for _ in range(3):
        await eventually("the pool is ready at zero", lambda: ready_at(stage, 0))
        await eventually("no pod is left", lambda: stage.at_rest())
        # Figures that are held back make the operator look for two more seconds; idle pools are
        # looked at every 10 s without a push: three times in a row is no luck.
        await asyncio.sleep(2.5)
        stage.enqueue(1)
        await eventually("it grows at once", lambda: above_zero(stage), 1)
        stage.queue.empty()


async def above_zero(stage: Stage) -> bool:
    return await stage.size() > 0


async def two_by_hand(stage: Stage, kubelet: HollowKubelet) -> None:
    manual = pool(stage.namespace, replicas=2)
    del manual["spec"]["autoscaling"]
    await stage.client.create(WORKERPOOLS, manual)
    await eventually("two pods", lambda: len(kubelet.pods()) == 2)


async def test_who_drains_is_called_back_when_it_is_wanted_again(stage, kubelet, operator):
    await two_by_hand(stage, kubelet)
    before = kubelet.pods()
    stage.enqueue(2, 10)
    await eventually("both work", lambda: stage.redis.hlen("booked:started") == 2)
    await patch(stage, {"replicas": 1})
    await eventually("one is asked", lambda: list(stage.redis.scan_iter("engineroom:drain:*")))
    await patch(stage, {"replicas": 2})
    # Long before the request would run out by itself.
    await eventually(
        "nobody is asked any more",
        lambda: not list(stage.redis.scan_iter("engineroom:drain:*")),
        5,
    )
    await eventually("both jobs are done", lambda: done(stage, 2))
    assert kubelet.pods() == before


async def test_a_size_is_not_lowered_by_what_was_seen_before_a_change(
    stage, kubelet, proxy: FaultProxy, redis, tmp_path: Path
):
    """Who was chosen to go was chosen for the Deployment as it was seen."""
    operator = OperatorProcess(proxy.kubeconfig(tmp_path), redis.url, stage.namespace)
    await operator.start()
    await two_by_hand(stage, kubelet)
    smaller: list[Request] = []

    async def somebody_is_faster(request: Request) -> None:
        if request.path.endswith("/deployments/mail") and b'"replicas":1' in request.body:
            smaller.append(request)
            if len(smaller) == 1:
                edit = {"metadata": {"annotations": {"example.com/edited": "yes"}}}
                await stage.client.merge_patch(DEPLOYMENTS, stage.namespace, "mail", edit)

    proxy.before(somebody_is_faster)
    await patch(stage, {"replicas": 1})
    await eventually("one pod", lambda: len(kubelet.pods()) == 1)
    assert [request.status for request in smaller] == [409, 200]
    await operator.stop()


async def test_a_deleted_pool_takes_everything_with_it(stage, kubelet, operator):
    await stage.client.create(WORKERPOOLS, pool(stage.namespace))
    stage.enqueue(1, 0.5)
    await eventually("done", lambda: done(stage, 1))
    await stage.client.delete(WORKERPOOLS, stage.namespace, "mail")

    async def empty() -> bool:
        deployments, _ = await stage.client.list(DEPLOYMENTS, stage.namespace)
        return not deployments and not await stage.pods()

    await eventually("all children are gone", empty, 60)


async def test_drained_pods_are_marked_before_the_deployment_shrinks(
    stage, kubelet, proxy: FaultProxy, redis, tmp_path: Path
):
    """The order of the protocol, as the API server sees it."""
    operator = OperatorProcess(proxy.kubeconfig(tmp_path), redis.url, stage.namespace)
    await operator.start()
    await stage.client.create(WORKERPOOLS, pool(stage.namespace))
    stage.enqueue(3, 0.3)
    await eventually("up", lambda: len(kubelet.pods()) == 3, 40)
    await eventually("down", lambda: stage.at_rest(), 60)
    await operator.stop()
    order = [
        "mark" if "/pods/" in r.path else "resize"
        for r in proxy.writes()
        if r.method == "PATCH" and ("/pods/" in r.path or b'"replicas":0' in r.body)
    ]
    assert order.count("mark") == 3
    assert order[-1] == "resize"


async def test_the_api_server_restarted_under_load_loses_nothing(
    stage, kubelet, operator, control_plane: Cluster
):
    await stage.client.create(WORKERPOOLS, pool(stage.namespace))
    stage.enqueue(12, 1.0)
    await eventually("pods work", lambda: len(kubelet.pods()) == 3, 40)
    await asyncio.to_thread(control_plane.restart, "apiserver")
    await eventually("all jobs are done", lambda: stage.ledger().lost == 0, 60)
    await eventually("the pool is at zero", lambda: stage.at_rest(), 60)
    assert stage.ledger().doubled == 0
