"""Jobs in every state: listed page by page, counted, and shown one by one, without side effects."""

from __future__ import annotations

import pickle
import random
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis as AsyncRedis
from rq import Queue
from rq.job import Job

from engineroom.core.errors import JobMissingError
from engineroom.tasks import (
    AsyncTasks,
    InvalidTaskError,
    JobFilter,
    JSONSerializer,
    Retry,
    State,
    Task,
    Tasks,
)
from engineroom.tasks.inspection.failures import STEP
from tests.integration.tasks.test_failures import fail
from tests.integration.tasks.work import add, boom, fragile, step

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tests.support import RedisServer


def listed(tasks: Tasks, *states: State, limit: int = 100, **more: Any) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = tasks.jobs(states or tuple(State), cursor=cursor, limit=limit, **more)
        assert len(page.jobs) <= limit
        found += [each.job_id for each in page.jobs]
        cursor = page.cursor
        if cursor is None:
            return found


def one_of_each(redis: Redis, tasks: Tasks, work: Callable[..., None]) -> dict[State, str]:
    """A job in each state, brought there by RQ and by us."""
    failed, finished = tasks.enqueue(boom, "no").job_id, tasks.enqueue(add, 1, 2).job_id
    work()
    canceled = tasks.enqueue(add, 3, 4).job_id
    Job.fetch(canceled, connection=redis).cancel()
    waiting = tasks.enqueue(Task(add, (5, 6))).job_id
    scheduled = tasks.enqueue(Task(add, (7, 8), delay=600)).job_id
    parent = Job.fetch(waiting, connection=redis)
    deferred = Queue(connection=redis).enqueue(add, 9, depends_on=parent).id
    running = tasks.enqueue(Task(step, (3,), job_id="runs")).job_id
    redis.lrem("rq:queue:default", 0, running)
    redis.hset(f"rq:job:{running}", mapping={"status": "started", "worker_name": "w.1"})
    redis.zadd("rq:wip:default", {f"{running}:abc": time.time() + 60})
    return {
        State.RUNNING: running, State.WAITING: waiting, State.SCHEDULED: scheduled,
        State.DEFERRED: deferred, State.FAILED: failed, State.FINISHED: finished,
        State.CANCELED: canceled,
    }  # fmt: skip


def test_each_state_lists_its_own(redis: Redis, tasks: Tasks, work: Callable[..., None]) -> None:
    made = one_of_each(redis, tasks, work)
    before = {key: redis.dump(key) for key in redis.scan_iter()}
    for state, job in made.items():
        [found] = tasks.jobs([state]).jobs
        assert (found.job_id, found.state, found.queue) == (job, state, "default")
        assert found.function.startswith("tests.integration.tasks.work.")
        assert found.at is not None or state is State.RUNNING
        assert tasks.count_jobs(state).matched == 1
    assert listed(tasks, limit=2) == [made[state] for state in State]
    for job in made.values():
        tasks.job(job)
    tasks.workers()
    assert {key: redis.dump(key) for key in redis.scan_iter()} == before


@pytest.mark.parametrize("limit", [1, 7, 200])
def test_pages_go_through_queues_and_states_once(tasks: Tasks, limit: int) -> None:
    fail(tasks, 2 * STEP + 3, queue="q1")
    made = [
        each.job_id
        for each in tasks.enqueue_many(
            Task(add, (at,), queue=f"q{at % 3}", delay=at if at % 2 else None) for at in range(90)
        )
    ]
    seen = listed(tasks, limit=limit)
    assert len(seen) == len(set(seen)) == 90 + 2 * STEP + 3
    assert set(made) <= set(seen)
    assert seen[:15] == made[0::6]
    assert listed(tasks, State.WAITING, queues=["q1"]) == made[4::6]
    assert listed(tasks, State.SCHEDULED, queues=["q0"]) == made[3::6]


def test_a_place_in_a_queue_holds_while_jobs_are_taken_and_put(redis: Redis, tasks: Tasks) -> None:
    made = [each.job_id for each in tasks.enqueue_many(Task(add, (at,)) for at in range(40))]
    seen: list[str] = []
    cursor = None
    for _ in range(4):
        page = tasks.jobs([State.WAITING], cursor=cursor, limit=5)
        seen += [each.job_id for each in page.jobs]
        cursor = page.cursor
        redis.lpop("rq:queue:default", 2)
        tasks.enqueue(add, 1)
    assert seen == made[:20]
    # All that was seen is taken, the place with it.
    for job in redis.lpop("rq:queue:default", 22) or ():
        redis.hset(b"rq:job:" + job, "status", "started")
    page = tasks.jobs([State.WAITING], cursor=cursor, limit=1)
    assert page.jobs[0].job_id == made[30]


@pytest.mark.parametrize("limit", [1, 4, 100])
def test_running_jobs_are_listed_once_though_their_heartbeats_move_them(
    redis: Redis, tasks: Tasks, limit: int
) -> None:
    made = [each.job_id for each in tasks.enqueue_many(Task(add, (at,)) for at in range(10))]
    redis.delete("rq:queue:default")
    seen: list[str] = []
    cursor = None
    while True:
        redis.zadd("rq:wip:default", {f"{job}:run": random.random() for job in made})
        page = tasks.jobs([State.RUNNING], cursor=cursor, limit=limit)
        seen += [each.job_id for each in page.jobs]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == sorted(made)


def test_filters_and_counts(redis: Redis, tasks: Tasks, work: Callable[..., None]) -> None:
    made = one_of_each(redis, tasks, work)
    assert listed(tasks, where=JobFilter(function="*.boom")) == [made[State.FAILED]]
    assert listed(tasks, where=JobFilter(exception="Runtime*")) == [made[State.FAILED]]
    assert listed(tasks, where=JobFilter(prefix=made[State.FINISHED][:12])) == [
        made[State.FINISHED]
    ]
    assert listed(tasks, State.SCHEDULED, where=JobFilter(before=datetime.now(UTC))) == []
    soon = datetime.now(UTC) + timedelta(seconds=601)
    assert listed(tasks, State.SCHEDULED, where=JobFilter(before=soon)) == [made[State.SCHEDULED]]
    assert tasks.count_jobs(State.FAILED, JobFilter(function="nobody")).matched == 0
    fail(tasks, 1200)
    impact = tasks.count_jobs(State.FAILED, JobFilter(text="boom"), most=50)
    assert (impact.complete, impact.total) == (False, 1201)
    assert 50 <= impact.matched < 1201
    whole = tasks.count_jobs(State.FAILED, JobFilter(text="boom"))
    assert (whole.matched, whole.total, whole.complete) == (1201, 1201, True)


def test_wrong_places_and_limits_are_refused(tasks: Tasks) -> None:
    tasks.enqueue_many(Task(add, (at,)) for at in range(3))
    cursor = tasks.jobs([State.WAITING], limit=1).cursor
    for wrong in ("x", "e30", "WyJhIiwiYiIsImMiXQ", "é"):
        with pytest.raises(InvalidTaskError, match="cursor"):
            tasks.jobs(cursor=wrong)
    with pytest.raises(InvalidTaskError, match="same filter"):
        tasks.jobs([State.FAILED], cursor=cursor)
    for limit in (0, 501):
        with pytest.raises(InvalidTaskError, match="limit"):
            tasks.jobs(limit=limit)
    with pytest.raises(InvalidTaskError, match="queues"):
        tasks.jobs(queues=[str(at) for at in range(1001)])


def test_a_page_of_many_failed_jobs_takes_few_bounded_steps(redis: Redis, tasks: Tasks) -> None:
    fail(tasks, 3000)
    cursor = tasks.jobs([State.FAILED], limit=500).cursor
    redis.config_resetstat()
    assert len(tasks.jobs([State.FAILED], cursor=cursor, limit=100).jobs) == 100
    assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] == 100 / STEP
    # However few match, a page looks at a bounded number of jobs.
    page = tasks.jobs([State.FAILED], JobFilter(function="nobody"))
    assert (page.jobs, page.scanned) == ((), 1000)
    assert page.cursor is not None


# -- one job ---------------------------------------------------------------------------------------


def test_what_is_known_of_a_failed_job(tasks: Tasks, work: Callable[..., None]) -> None:
    job = tasks.enqueue(Task(fragile, ("away",), timeout=77, failure_ttl=1000))
    work()
    known = tasks.job(job.job_id)
    assert (known.status, known.job.state) == ("failed", State.FAILED)
    assert (known.job.exception, known.job.category) == ("ConnectionError", "transient")
    assert "hunter2" not in repr(known.job)
    assert known.call.args == ("away",)
    assert known.timeout == 77
    assert len(known.attempts) == 3
    assert "raise" in known.attempts[-1].traceback
    assert [each.what for each in known.timeline].count("failed") == 3
    assert known.timeline[0].what == "created"
    assert known.expires_at is not None
    assert 900 < (known.expires_at - datetime.now(UTC)).total_seconds() <= 1000


def test_what_a_job_waits_for_and_what_waits_for_it(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    made = one_of_each(redis, tasks, work)
    parent, child = tasks.job(made[State.WAITING]), tasks.job(made[State.DEFERRED])
    assert [(each.job_id, each.status) for each in parent.dependents] == [
        (made[State.DEFERRED], "deferred")
    ]
    assert [(each.job_id, each.status) for each in child.depends_on] == [
        (made[State.WAITING], "queued")
    ]
    assert parent.ahead == 0
    assert child.ahead is None
    scheduled = tasks.job(made[State.SCHEDULED])
    assert scheduled.job.due_at is not None
    assert "due" in [each.what for each in scheduled.timeline]


def test_progress_retries_and_position_are_told(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    done = tasks.enqueue(step, 2)
    work()
    progress = tasks.job(done.job_id).progress
    assert progress is not None
    assert progress.fraction == 1
    tasks.enqueue_many(Task(add, (at,)) for at in range(5))
    last = tasks.enqueue(Task(add, (1,), retry=Retry(3, (10, 60)), ttl=50))
    known = tasks.job(last.job_id)
    assert (known.ahead, known.job.retries_left, known.ttl) == (5, 3, 50)
    assert known.retry_intervals[:2] == (10, 60)


def test_a_job_that_is_not_there_says_so(tasks: Tasks) -> None:
    with pytest.raises(JobMissingError, match="no job 'nothing'"):
        tasks.job("nothing")
    with pytest.raises(InvalidTaskError, match="job_id"):
        tasks.job("a\nb")


class Bomb:
    """Would do something if it were unpickled."""

    exploded = False

    def __reduce__(self) -> Any:
        return setattr, (Bomb, "exploded", True)


def test_nothing_of_a_job_is_ever_run_and_secrets_are_not_shown(redis: Redis, tasks: Tasks) -> None:
    job = tasks.enqueue(
        Task(add, (Bomb(), {"password": "hunter2"}, list(range(200))), {"token": "abc", "x": 1.5})
    )
    call = tasks.job(job.job_id).call
    tasks.jobs()
    assert not Bomb.exploded
    assert call.function.endswith("work.add")
    assert call.args[0] == "<builtins.setattr>"
    assert call.args[1] == {"password": "[redacted]"}
    assert call.args[2][-1] == "... 150 more"
    assert call.kwargs == {"token": "[redacted]", "x": 1.5}
    assert pickle.loads(pickle.dumps(Bomb())) is None
    assert Bomb.exploded


def test_json_arguments_and_those_that_are_too_large(redis: Redis) -> None:
    tasks = Tasks(redis, serializer=JSONSerializer, max_bytes=8 << 20)
    call = tasks.job(tasks.enqueue(Task(add, (1,), {"right": [None, True]})).job_id).call
    assert (call.args, call.kwargs) == ((1,), {"right": [None, True]})
    large = tasks.job(tasks.enqueue(Task(add, ("x" * (5 << 20),))).job_id).call
    assert "bytes" in large.problem
    odd = tasks.enqueue(add, 1)
    for data in (b"", b"\x80\x05.", b"\x80\x05garbage", b"[1]", b"\x80\x04\x8c\xff"):
        redis.hset(f"rq:job:{odd.job_id}", "data", data)
        assert "serializer" in tasks.job(odd.job_id).call.problem


# -- the other half --------------------------------------------------------------------------------


async def test_the_async_half_reads_the_same(
    server: RedisServer, redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    made = one_of_each(redis, tasks, work)
    async with AsyncRedis(port=server.port) as client:
        half = AsyncTasks(client)
        assert await half.jobs() == tasks.jobs()
        assert (await half.job(made[State.WAITING])).job == tasks.job(made[State.WAITING]).job
        assert await half.count_jobs(State.FAILED) == tasks.count_jobs(State.FAILED)
        assert await half.workers() == tasks.workers()
