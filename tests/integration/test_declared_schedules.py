"""Schedules that pools declare, on a real API server and Redis: made, told of, taken away."""

from __future__ import annotations

import base64
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from redis import Redis

from engineroom.kube.client.errors import Invalid
from engineroom.kube.client.resources import LEASES, SECRETS, WORKERPOOLS
from engineroom.tasks import Every, Missed, Once, Schedule, Task, Tasks
from engineroom.tasks.schedules.model import OWNERS
from tests.integration.hollow import HollowKubelet
from tests.integration.pools import OperatorProcess, Stage, eventually, pool
from tests.support import RedisServer, redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engineroom.kube.client.client import Client
    from tests.cluster.api import Cluster

DAILY = {"name": "daily", "cron": "0 3 * * *", "timeZone": "Europe/Berlin", "function": "a.b"}


@pytest.fixture
def stage(client: Client, namespace: str, redis: RedisServer) -> Stage:
    return Stage(client, namespace, redis)


@pytest_asyncio.fixture
async def operator(
    control_plane: Cluster, redis: RedisServer, namespace: str
) -> AsyncIterator[OperatorProcess]:
    process = OperatorProcess(control_plane.kubeconfig, redis.url, namespace)
    await process.start()
    yield process
    await process.stop()


def names(stage: Stage) -> list[str]:
    prefix = f"{stage.namespace}_"
    found = (known.name for known in Tasks(stage.redis).schedules(limit=1000))
    return sorted(name.removeprefix(prefix) for name in found)


async def told(stage: Stage, name: str, pool_name: str = "mail") -> dict[str, Any]:
    status = (await stage.pool(pool_name)).get("status") or {}
    return next((row for row in status.get("schedules") or () if row["name"] == name), {})


async def test_a_due_schedule_wakes_a_pool_at_zero(
    stage: Stage, client: Client, namespace: str, operator: OperatorProcess
) -> None:
    every = {
        "name": "tick", "every": "3s", "function": "tests.integration.jobs.booked",
        "args": [stage.url, 0.1], "resultTTL": "1m", "retry": {"max": 2, "intervals": ["5s"]},
    }  # fmt: skip
    async with HollowKubelet(client, namespace):
        await client.create(WORKERPOOLS, pool(namespace, schedules=[every, DAILY]))
        finished = lambda: stage.redis.hgetall("booked:finished")  # noqa: E731
        await eventually("two ticks have run", lambda: len(finished()) >= 2, 60)
        row = await eventually("status tells of it", lambda: told(stage, "tick"))
        assert row["lastJobID"].startswith(f"{namespace}_mail_tick-")
        assert row["missed"] == 0
        assert row["lastTime"] < row["nextTime"]
        assert (await told(stage, "daily"))["nextTime"].endswith((":00:00Z",))
        assert (await stage.condition("SchedulesActive"))[:2] == ("True", "Reconciled")
        # A tick is a job once, whoever looks.
        assert set(finished().values()) == {b"1"}


async def test_what_was_made_at_run_time_is_never_touched(
    stage: Stage, client: Client, namespace: str, operator: OperatorProcess
) -> None:
    tasks = Tasks(stage.redis)
    theirs = Schedule(f"{namespace}_mail_daily", Every(86400), Task("x.y"))
    tasks.put_schedule(theirs)
    hourly = {"name": "hourly", "every": "1h", "jitter": "5m", "function": "a.b"}
    await client.create(WORKERPOOLS, pool(namespace, schedules=[DAILY, hourly]))
    await eventually("one stands", lambda: names(stage) == ["mail_daily", "mail_hourly"])

    async def refused() -> bool:
        return (await stage.condition("SchedulesActive"))[1] == "ScheduleNameTaken"

    await eventually("the condition says so", refused)
    status, reason, message = await stage.condition("Ready")
    assert (status, reason) == ("False", "ScheduleNameTaken")
    assert "daily: one of its name was made at run time" in message
    assert tasks.schedule(theirs.name).trigger == Every(86400)

    weekly = {"name": "weekly", "cron": "0 3 * * 1", "function": "a.b", "suspend": True}
    await client.merge_patch(
        WORKERPOOLS, namespace, "mail", {"spec": {"schedules": [hourly, weekly]}}
    )
    expected = ["mail_daily", "mail_hourly", "mail_weekly"]
    await eventually("the other one stands", lambda: names(stage) == expected)
    assert tasks.schedule(f"{namespace}_mail_weekly").paused

    async def fine() -> bool:
        return (await stage.condition("Ready"))[0] == "True"

    await eventually("the pool is fine", fine)
    # Redis loses everything: what is declared comes back.
    stage.redis.flushall()
    await eventually("they are back", lambda: names(stage) == ["mail_hourly", "mail_weekly"])
    tasks.put_schedule(theirs)
    await client.merge_patch(WORKERPOOLS, namespace, "mail", {"spec": {"schedules": None}})
    await eventually("only theirs is left", lambda: names(stage) == ["mail_daily"])

    async def silent() -> bool:
        return await stage.condition("SchedulesActive") == ("", "", "")

    await eventually("status has forgotten them", silent)
    await client.merge_patch(WORKERPOOLS, namespace, "mail", {"spec": {"schedules": [hourly]}})
    await eventually("it is back", lambda: names(stage) == ["mail_daily", "mail_hourly"])
    await client.delete(WORKERPOOLS, namespace, "mail")
    await eventually("it went with the pool", lambda: names(stage) == ["mail_daily"])
    assert stage.redis.hlen(OWNERS) == 0


async def test_a_restart_writes_nothing_and_finds_what_went_meanwhile(
    stage: Stage, client: Client, namespace: str, operator: OperatorProcess
) -> None:
    for name in ("mail", "fax", "post"):
        spec = pool(namespace, name, schedules=[DAILY])
        spec["spec"]["queues"] = [{"name": f"{namespace}-{name}"}]
        await client.create(WORKERPOOLS, spec)
    await eventually("all stand", lambda: len(names(stage)) == 3)
    await eventually("status says so", lambda: told(stage, "daily", "post"))
    await operator.stop()

    before = stage.redis.info("persistence")["rdb_changes_since_last_save"]
    await operator.start()

    async def led() -> bool:
        return any("caches are filled" in entry.get("event", "") for entry in operator.log()[-20:])

    await eventually("it is back", led)
    versions = {known.name: known.version for known in Tasks(stage.redis).schedules()}
    assert set(versions.values()) == {1}
    assert stage.redis.info("persistence")["rdb_changes_since_last_save"] == before

    await operator.stop()
    await client.delete(WORKERPOOLS, namespace, "fax")
    await client.merge_patch(WORKERPOOLS, namespace, "post", {"spec": {"schedules": None}})
    # Of another installation a pool that is not here may well be there.
    stage.redis.hset(OWNERS, f"{namespace}/elsewhere", "another")
    await operator.start()
    await eventually("only mail's is left", lambda: names(stage) == ["mail_daily"])
    owners = {f"{namespace}/mail".encode(), f"{namespace}/elsewhere".encode()}
    await eventually("no other owner is left", lambda: set(stage.redis.hkeys(OWNERS)) == owners)


async def test_two_operators_that_both_lead_make_each_job_once_and_one_of_them_is_killed(
    stage: Stage, client: Client, namespace: str, operator: OperatorProcess,
    control_plane: Cluster, redis: RedisServer,
) -> None:  # fmt: skip
    second = OperatorProcess(control_plane.kubeconfig, redis.url, namespace)
    await second.start()
    # A queue that no pool reads: what is on it stays.
    await client.create(WORKERPOOLS, pool(namespace, schedules=[DAILY]))
    await eventually("the pool's stands", lambda: names(stage) == ["mail_daily"])
    tasks, count, begins = Tasks(stage.redis), 300, time.time() + 3
    for number in range(count):
        once = Once(round(begins + 3 * number / count, 3))
        task = Task("a.b", (number,), queue="nobody")
        tasks.put_schedule(Schedule(f"s{number}", once, task, Missed.RUN_ALL))
    queued = lambda: stage.redis.llen("rq:queue:nobody")  # noqa: E731
    await eventually("half of the jobs are there", lambda: queued() >= count // 2, 60)
    operator.kill()
    await operator.gone()
    await eventually("all jobs are there", lambda: queued() >= count, 60)
    jobs = [job.decode().partition("-")[0] for job in stage.redis.lrange("rq:queue:nobody", 0, -1)]
    assert Counter(jobs) == {f"s{number}": 1 for number in range(count)}
    assert await second.stop() == 0


async def test_one_that_does_not_lead_makes_the_jobs_that_nobody_else_makes(
    stage: Stage, client: Client, namespace: str, control_plane: Cluster, redis: RedisServer
) -> None:
    spec = {"holderIdentity": "somebody who died", "leaseDurationSeconds": 3600}
    lease = {"metadata": {"namespace": namespace, "name": "engineroom-operator"}, "spec": spec}
    await client.create(LEASES, lease)
    await client.create(WORKERPOOLS, pool(namespace, schedules=[DAILY]))
    once = Once(round(time.time() + 1, 3))
    Tasks(stage.redis).put_schedule(Schedule("a", once, Task("a.b", queue="nobody")))
    stands_by = OperatorProcess(
        control_plane.kubeconfig, redis.url, namespace,
        leader_election=True, lease_namespace=namespace,
    )  # fmt: skip
    await stands_by.start()
    await eventually("the job is there", lambda: stage.redis.llen("rq:queue:nobody") == 1, 40)
    # What is declared is the leader's business.
    assert names(stage) == ["a"]
    assert await stands_by.stop() == 0


async def test_schedules_move_with_their_pool_to_another_redis_and_off_a_dead_one(
    stage: Stage, client: Client, namespace: str, operator: OperatorProcess
) -> None:
    with redis_server() as other, Redis(port=other.port) as there:
        url = base64.b64encode(other.url.encode()).decode()
        secret = {"metadata": {"namespace": namespace, "name": "other"}, "data": {"url": url}}
        await client.create(SECRETS, secret)
        await client.create(WORKERPOOLS, pool(namespace, schedules=[DAILY]))
        await eventually("it stands here", lambda: names(stage) == ["mail_daily"])
        moved = {"redis": {"urlSecretRef": {"name": "other", "key": "url"}}}
        await client.merge_patch(WORKERPOOLS, namespace, "mail", {"spec": moved})
        await eventually("it stands there", lambda: len(Tasks(there).schedules()) == 1)
        await eventually("and not here", lambda: names(stage) == [])
        other.stop()
        await client.merge_patch(WORKERPOOLS, namespace, "mail", {"spec": {"redis": None}})
        await eventually("it stands here again", lambda: names(stage) == ["mail_daily"])


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"name": "a", "function": "a.b"}, "write exactly one of cron, every and at"),
        ({"name": "a", "every": "1h", "cron": "0 3 * * *", "function": "a.b"}, "exactly one of"),
        ({"name": "a", "every": "1h", "timeZone": "UTC", "function": "a.b"}, "set without cron"),
        ({"name": "a", "every": "1h", "queue": "x", "function": "a.b"}, "none of the pool's"),
        ({"name": "a", "every": "0s", "function": "a.b"}, "is zero"),
        ({"name": "a", "cron": "@daily", "function": "a.b"}, "is a nickname"),
        ({"name": "a", "at": "2026-01-01T00:00:00Z", "jitter": "1s", "function": "a.b"}, "remove"),
        ({"name": "a", "every": "1h", "function": "report"}, "function"),
    ],
)
async def test_the_api_server_refuses_what_cannot_be(
    client: Client, namespace: str, schedule: dict[str, Any], said: str
) -> None:
    with pytest.raises(Invalid, match=said):
        await client.create(WORKERPOOLS, pool(namespace, schedules=[schedule]))


async def test_the_api_server_keeps_arguments_as_they_are(client: Client, namespace: str) -> None:
    schedule = {
        **DAILY, "args": [1, "a", {"b": [True, 1.5]}, None], "kwargs": {"c": {"d": [1]}},
    }  # fmt: skip
    made = await client.create(WORKERPOOLS, pool(namespace, schedules=[schedule]))
    [stored] = made["spec"]["schedules"]
    assert {key: stored[key] for key in schedule} == schedule
    # Defaults inside lists are the operator's: stored ones would differ from what is in Git.
    assert stored == schedule
