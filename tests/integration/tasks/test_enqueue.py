"""Enqueueing: plain RQ jobs, nothing by half, unique ones once."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from rq import Queue
from rq import Retry as RqRetry
from rq.job import Job

from engineroom.tasks import (
    AsyncTasks,
    InvalidTaskError,
    JobExistsError,
    JSONSerializer,
    Limit,
    Retry,
    Task,
    Tasks,
    TasksUnavailableError,
    TaskTooLargeError,
    Unique,
    UnknownQueueError,
)
from engineroom.tasks.enqueueing.enqueue import CHUNK, TURN
from tests.integration.runtime.lab import eventually
from tests.integration.tasks.work import Mailer, add, boom
from tests.support import RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def test_a_job_has_the_same_fields_as_one_of_rq(redis: Redis, tasks: Tasks) -> None:
    options: dict[str, Any] = {"ttl": 90, "result_ttl": 60, "failure_ttl": 70, "meta": {"a": 1}}
    theirs = Queue("mail", connection=redis).enqueue(
        add, 1, right=2, retry=RqRetry(2, [5, 9]), job_timeout=30, **options
    )
    task = Task(add, (1,), {"right": 2}, "mail", timeout=30, retry=Retry(2, (5, 9)), **options)
    ours = tasks.enqueue(task)

    def fields(job_id: str) -> dict[str, Any]:
        job = Job.fetch(job_id, connection=redis)
        found = {key: value for key, value in job.to_dict().items() if not key.endswith("_at")}
        found["times"] = bool(job.created_at) and bool(job.enqueued_at)
        return {**found, "data": job.data, "hash": set(redis.hgetall(job.key))}

    assert fields(ours.job_id) == fields(theirs.id)
    assert redis.lrange("rq:queue:mail", 0, -1) == [theirs.id.encode(), ours.job_id.encode()]
    assert redis.smembers("rq:queues") == {b"rq:queue:mail"}
    assert 0 < redis.ttl(f"rq:job:{ours.job_id}") <= 90


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (add, (1, 2), 3),
        ("tests.integration.tasks.work.add", (3, 4), 7),
        (Mailer("mx").send, ("you",), "you by mx"),
        (Mailer("mx"), (), "mx"),
    ],
)
def test_rqs_own_worker_runs_it(
    tasks: Tasks, work: Callable[..., None], function: Any, args: Any, expected: Any
) -> None:
    job = tasks.enqueue(function, *args)
    work()
    result = tasks.result(job.job_id)
    assert (result.status, result.value) == ("finished", expected)


def test_a_batch_keeps_its_order_over_transactions(redis: Redis, tasks: Tasks) -> None:
    many = [Task(add, (at,), queue="ab"[at % 3 == 0]) for at in range(2 * CHUNK + 7)]
    many[3] = Task(add, (3,), queue="b", unique=Unique("three"))
    done = tasks.enqueue_many(many)
    for queue in "ab":
        expected = [each.job_id.encode() for each in done if each.queue == queue]
        assert redis.lrange(f"rq:queue:{queue}", 0, -1) == expected
    assert all(redis.exists(f"rq:job:{each.job_id}") for each in done)
    assert tasks.enqueue_many([]) == []


def test_what_is_put_off_waits_in_rqs_schedule(redis: Redis, tasks: Tasks) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    job = tasks.enqueue(Task(add, (1,), at=at, ttl=5))
    assert redis.zscore("rq:scheduled:default", job.job_id) == at.timestamp()
    assert Job.fetch(job.job_id, connection=redis).get_status() == "scheduled"
    assert redis.ttl(f"rq:job:{job.job_id}") == -1
    [other] = tasks.enqueue_many([Task(add, (1,), delay=30)])
    assert redis.zscore("rq:scheduled:default", other.job_id)


def test_at_front_and_json(redis: Redis) -> None:
    tasks = Tasks(redis, serializer=JSONSerializer)
    last, first = tasks.enqueue(add, 1), tasks.enqueue(Task(add, (2,), at_front=True))
    ids = redis.lrange("rq:queue:default", 0, -1)
    assert ids == [first.job_id.encode(), last.job_id.encode()]
    job = Job.fetch(first.job_id, connection=redis, serializer="rq.serializers.JSONSerializer")
    assert list(job.args) == [2]


@pytest.mark.parametrize(
    ("task", "error", "said"),
    [
        (Task(add, (1, threading.Lock())), InvalidTaskError, "args[1]"),
        (Task(add, (), {"right": lambda: 0}), InvalidTaskError, "kwargs['right']"),
        (Task(add, meta={"x": threading.Lock()}), InvalidTaskError, "meta"),
        (Task(lambda: 0), InvalidTaskError, "cannot be imported"),
        (Task("no-path"), InvalidTaskError, "function"),
        (Task(add, (b"x" * 2000,)), TaskTooLargeError, "more than 1000"),
        (Task(add, queue="unknown"), UnknownQueueError, "use one of default"),
        (Task(add, queue="default:intermediate"), InvalidTaskError, "queue"),
        (Task(add, timeout=0), InvalidTaskError, "timeout"),
        (Task(add, ttl=0), InvalidTaskError, "ttl"),
        (Task(add, delay=-1), InvalidTaskError, "delay"),
        (Task(add, delay=float("nan")), InvalidTaskError, "delay"),
        (Task(add, at=datetime(2030, 1, 1)), InvalidTaskError, "time zone"),  # noqa: DTZ001
        (Task(add, job_id="a b"), InvalidTaskError, "job_id"),
    ],
)
def test_nothing_is_written_for_a_task_that_cannot_be(
    redis: Redis, task: Task, error: type[InvalidTaskError], said: str
) -> None:
    tasks = Tasks(redis, queues={"default"}, max_bytes=1000)
    with pytest.raises(error, match=r".+; .+") as alone:
        tasks.enqueue(task)
    assert said in str(alone.value)
    with pytest.raises(error) as among:
        tasks.enqueue_many([Task(add, (1,))] * 300 + [task])
    assert "tasks[300]" in str(among.value)
    assert redis.keys() == []


def test_a_redis_that_decodes_is_refused(server: RedisServer) -> None:
    with pytest.raises(InvalidTaskError, match="decode_responses"):
        Tasks(Redis(port=server.port, decode_responses=True))


def test_a_redis_that_is_away_is_an_error_of_ours() -> None:
    with pytest.raises(TasksUnavailableError) as away:
        Tasks(Redis(port=free_port())).enqueue(add)
    assert away.value.retryable
    assert away.value.done == 0


def test_a_named_job_is_never_overwritten(redis: Redis, tasks: Tasks) -> None:
    tasks.enqueue(Task(add, (1,), job_id="me"))
    with pytest.raises(JobExistsError, match="me"):
        tasks.enqueue(Task(add, (2,), job_id="me"))
    assert not tasks.enqueue_many([Task(add, (2,), job_id="me")])[0].created
    assert Job.fetch("me", connection=redis).args == (1,)
    assert redis.llen("rq:queue:default") == 1
    with pytest.raises(InvalidTaskError, match="twice"):
        tasks.enqueue_many([Task(add, job_id="twin"), Task(add, job_id="twin")])


class Shy:
    """One of those whose repr is not ready when it is needed."""

    def __repr__(self) -> str:
        raise AttributeError("engine")


class Name(str, Enum):  # noqa: UP042 - unlike a StrEnum it is not formatted as its value
    MAIL = "mail"


class Level(IntEnum):
    HIGH = 9


def test_a_description_is_for_people_and_never_in_the_way(redis: Redis, tasks: Tasks) -> None:
    def described(**more: Any) -> str:
        job = tasks.enqueue(Task(add, **more))
        return str(redis.hget(f"rq:job:{job.job_id}", "description").decode())

    assert described(args=(Shy(), 1)) == "tests.integration.tasks.work.add(<Shy>, 1)"
    assert described(description="x" * 50_000_000) == "x" * 1997 + "..."
    assert described(description="half a \ud83d") == "half a ?"
    assert len(described(args=(0,) * 100_000)) == 2000


def test_members_of_enumerations_are_the_values_that_they_stand_for(
    redis: Redis, work: Callable[..., None]
) -> None:
    tasks = Tasks(redis, queues={"mail"})
    unique = Unique(Name.MAIL)
    one = Task(add, (1,), queue=Name.MAIL, job_id=Name.MAIL, unique=unique, priority=Level.HIGH)
    assert tasks.enqueue(one).queue == "mail"
    limit = Limit(Name.MAIL, Level.HIGH)
    retry = Retry(Level.HIGH, (Level.HIGH,))
    two = Task(add, queue="mail", timeout=Level.HIGH, retry=retry, limit=limit)
    tasks.enqueue_many([replace(two, args=(1,), depends_on=[Name.MAIL])])
    assert redis.hmget("rq:job:mail", "origin", "er_priority") == [b"mail", b"9"]
    assert redis.exists("engineroom:unique:mail")
    work("mail")
    assert not redis.llen("rq:queue:mail")
    assert tasks.result("mail").value == 1


@pytest.mark.parametrize("given", ["default", b"default", 5, {1}])
def test_queues_are_a_set_of_names(redis: Redis, given: Any) -> None:
    with pytest.raises(InvalidTaskError, match=r"queues: is of type \w+; use a set of names"):
        Tasks(redis, queues=given)


class Watched(Redis):
    """Counts what each transaction holds."""

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        pipeline = super().pipeline(transaction, shard_hint)
        execute = pipeline.execute

        def counted(*args: Any) -> Any:
            words = [word for command in pipeline.command_stack for word in command[0]]
            self.held.append(sum(len(word) for word in words if isinstance(word, (str, bytes))))
            return execute(*args)

        pipeline.execute = counted  # type: ignore[method-assign]
        return pipeline


def test_a_transaction_holds_about_a_mebibyte(redis: Redis) -> None:
    watched = Watched(connection_pool=redis.connection_pool)
    watched.held = []
    sizes = [300_000] * 7 + [1_500_000] + [10] * 300
    tasks = Tasks(watched, max_bytes=2_000_000)
    done = tasks.enqueue_many(Task(add, (os.urandom(each),)) for each in sizes)
    assert [each.decode() for each in redis.lrange("rq:queue:default", 0, -1)] == [
        each.job_id for each in done
    ]
    assert [round(each / 100_000) for each in watched.held] == [9, 9, 3, 15, 1, 0]


async def test_a_large_batch_leaves_the_event_loop_to_others(
    server: RedisServer, redis: Redis
) -> None:
    turns, most, done = 0, 0, False

    async def others() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    def many() -> Iterator[Task]:
        nonlocal most
        began, taken = turns, 0
        for number in range(1000):
            began, taken = (began, taken + 1) if turns == began else (turns, 1)
            most = max(most, taken)
            # Whatever is wrong with the last is found before the first is written.
            assert not redis.exists("rq:queue:default")
            yield Task(add, (number,))

    async with AsyncRedis(port=server.port) as client:
        beside = asyncio.create_task(others())
        assert len(await AsyncTasks(client).enqueue_many(many())) == 1000
        done = True
        await beside
    assert most <= TURN


# -- unique ----------------------------------------------------------------------------------------


def test_the_same_work_within_its_window_is_one_job(redis: Redis, tasks: Tasks) -> None:
    task = Task(add, (1,), queue="mail", unique=Unique("invoice-7", window=60))
    first = tasks.enqueue(task)
    again = tasks.enqueue(Task(add, (1,), queue="other", unique=Unique("invoice-7")))
    assert (first.created, again.created) == (True, False)
    assert (again.job_id, again.queue) == (first.job_id, "mail")
    assert [each.created for each in tasks.enqueue_many([task, task])] == [False, False]
    assert redis.llen("rq:queue:mail") == 1
    assert not redis.exists("rq:queue:other")


def test_a_window_ends_by_time_alone(tasks: Tasks, work: Callable[..., None]) -> None:
    task = Task(add, (1,), unique=Unique("k", window=60), result_ttl=0)
    first = tasks.enqueue(task)
    work()
    assert tasks.enqueue(task).job_id == first.job_id
    assert 50_000 < tasks.redis.pttl("engineroom:unique:k") <= 60_000
    tasks.redis.pexpire("engineroom:unique:k", 1)
    eventually(lambda: not tasks.redis.exists("engineroom:unique:k"), "the window to be over")
    assert tasks.enqueue(task).created


@pytest.mark.parametrize("function", [add, boom])
def test_until_the_end_the_key_is_freed_when_the_job_has_ended(
    tasks: Tasks, work: Callable[..., None], function: Any
) -> None:
    task = Task(function, (1,), unique=Unique("k", until="end"))
    first = tasks.enqueue(task)
    assert tasks.enqueue(task).job_id == first.job_id
    work()
    second = tasks.enqueue(task)
    assert second.created
    tasks.redis.delete(f"rq:job:{second.job_id}")
    assert tasks.enqueue(task).created


async def test_many_callers_at_once_make_one_job(server: RedisServer, redis: Redis) -> None:
    async with AsyncRedis(port=server.port) as client:
        tasks = AsyncTasks(client)
        task = Task(add, (1,), unique=Unique("race"))
        done = await asyncio.gather(*(tasks.enqueue(task) for _ in range(50)))
        assert sum(each.created for each in done) == 1
        assert len({each.job_id for each in done}) == 1
        assert redis.llen("rq:queue:default") == 1
        assert len(await tasks.enqueue_many([Task(add, (at,)) for at in range(10)])) == 10
        [counts] = await tasks.counts()
        assert counts.waiting == 11
