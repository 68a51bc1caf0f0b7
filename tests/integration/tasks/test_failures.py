"""Failed jobs: listed, filtered, explained, and put back however often it is interrupted."""

from __future__ import annotations

import gc
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.job import Job

from engineroom.tasks import (
    InvalidTaskError,
    JobFilter,
    JSONSerializer,
    NotFailedError,
    NothingMatchesError,
    Requeueing,
    Retry,
    SupersededError,
    Task,
    Tasks,
    TasksUnavailableError,
    Unique,
)
from engineroom.tasks.inspection.failures import STEP
from engineroom.tasks.inspection.requeueing import next_step
from engineroom.tasks.inspection.scan import exception_of
from tests.integration.tasks.work import boom, fragile, patient, until

if TYPE_CHECKING:
    from collections.abc import Callable


def fail(
    tasks: Tasks, count: int, queue: str = "default", expiry: float | None = None
) -> list[str]:
    """Jobs as RQ leaves them when they failed, without running each."""
    made = tasks.enqueue_many([Task(boom, (at,), queue=queue) for at in range(count)])
    ids = [each.job_id for each in made]
    now = datetime.now(UTC)
    pipeline = tasks.redis.pipeline()
    pipeline.delete(f"rq:queue:{queue}")
    for at, job_id in enumerate(ids):
        ended = (now - timedelta(seconds=count - at)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        pipeline.hset(f"rq:job:{job_id}", mapping={"status": "failed", "ended_at": ended})
        # Many with one score: RQ's are whole seconds.
        score = time.time() + 1000 if expiry is None else expiry
        pipeline.zadd(f"rq:failed:{queue}", {job_id: float(int(score)) + at // 7})
    pipeline.execute()
    return ids


def pages(tasks: Tasks, limit: int, where: JobFilter | None = None) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = tasks.failures("default", where or JobFilter(), cursor=cursor, limit=limit)
        found += [each.job_id for each in page.failures]
        cursor = page.cursor
        if cursor is None:
            return found


def in_order(redis: Redis) -> list[str]:
    return [each.decode() for each in redis.zrevrange("rq:failed:default", 0, -1)]


@pytest.mark.parametrize("limit", [1, 7, 100, 500])
def test_pages_show_each_job_once_newest_first(redis: Redis, tasks: Tasks, limit: int) -> None:
    fail(tasks, 40 if limit == 1 else 230)
    assert pages(tasks, limit) == in_order(redis)


def test_jobs_that_come_and_go_shift_nothing(redis: Redis, tasks: Tasks) -> None:
    fail(tasks, 60)
    before = in_order(redis)
    seen: list[str] = []
    cursor = None
    for at in range(20):
        page = tasks.failures("default", cursor=cursor, limit=3)
        seen += [each.job_id for each in page.failures]
        cursor = page.cursor
        # The place itself goes, another that was seen comes back newer, and a new one comes.
        tasks.requeue(seen[-1])
        redis.zadd("rq:failed:default", {seen[-2]: 9e9 + at})
    assert seen == before


def test_what_is_known_of_a_failure(tasks: Tasks, work: Callable[..., None]) -> None:
    job = tasks.enqueue(boom, "no such file")
    work()
    [failure] = tasks.failures("default").failures
    assert failure.job_id == job.job_id
    assert failure.function == "tests.integration.tasks.work.boom"
    assert (failure.exception, failure.message) == ("RuntimeError", "no such file")
    assert failure.description.endswith("boom('no such file')")
    assert failure.failed_at is not None
    assert abs(datetime.now(UTC) - failure.failed_at) < timedelta(seconds=30)
    [attempt] = tasks.attempts(job.job_id)
    assert "raise RuntimeError" in attempt.traceback
    assert tasks.attempts("nothing-of-the-kind") == []


def test_the_function_of_json_is_read_too(redis: Redis, work: Callable[..., None]) -> None:
    tasks = Tasks(redis, serializer=JSONSerializer)
    fail(tasks, 1)
    assert tasks.failures("default").failures[0].function.endswith("work.boom")


def test_filters(tasks: Tasks, work: Callable[..., None]) -> None:
    bug, poison = tasks.enqueue(fragile, "bug"), tasks.enqueue(fragile, "poison")
    plain = tasks.enqueue(boom, "disk full")
    work()

    def found(**where: Any) -> set[str]:
        return set(pages(tasks, 100, JobFilter(**where)))

    everything = {bug.job_id, poison.job_id, plain.job_id}
    assert found() == everything
    assert found(function="*.boom") == found(text="disk") == {plain.job_id}
    assert found(exception="Type*") == found(category="permanent") == {bug.job_id}
    assert found(category="poison", function="tests.*") == {poison.job_id}
    soon = datetime.now(UTC) + timedelta(seconds=1)
    assert found(before=soon) == everything
    assert found(after=soon) == set()
    for wrong in ({"text": ""}, {"before": datetime(2030, 1, 1)}):  # noqa: DTZ001
        with pytest.raises(InvalidTaskError):
            JobFilter(**wrong)  # type: ignore[arg-type]
    for cursor in ("x", "1", "nan:a", "1;2:a"):
        with pytest.raises(InvalidTaskError, match="cursor"):
            tasks.failures("default", cursor=cursor)


# -- by the kind of failure ------------------------------------------------------------------------


def test_retries_follow_the_rule_and_are_remembered(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    job = tasks.enqueue(fragile, "away")
    work()
    assert tasks.result(job.job_id).status == "failed"
    history = tasks.attempts(job.job_id)
    assert [each.category for each in history] == ["transient"] * 3
    assert history[0].exception == "ConnectionError"
    assert "hunter2" not in repr([each.message for each in history])
    assert "raise" in history[-1].traceback
    assert Job.fetch(job.job_id, connection=redis).meta["engineroom"]["category"] == "transient"
    tasks.requeue(job.job_id)
    work()
    assert len(tasks.attempts(job.job_id)) == 6


@pytest.mark.parametrize(("kind", "runs"), [("bug", 1), ("poison", 1), ("odd", 4)])
def test_what_cannot_pass_is_not_tried_again(
    tasks: Tasks, work: Callable[..., None], kind: str, runs: int
) -> None:
    job = tasks.enqueue(Task(fragile, (kind,), retry=Retry(3)))
    work()
    assert tasks.result(job.job_id).status == "failed"
    assert len(tasks.attempts(job.job_id)) == runs


# RQ 2 leaves the event loop of a coroutine open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_coroutine_waits_as_its_rule_says(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    job = tasks.enqueue(patient)
    work()
    due = redis.zscore("rq:scheduled:default", job.job_id)
    assert due is not None
    assert 50 < due - time.time() <= 61
    assert Job.fetch(job.job_id, connection=redis).retries_left == 2
    gc.collect()


# -- putting back ----------------------------------------------------------------------------------


def test_one_job_is_put_back(redis: Redis, tasks: Tasks, work: Callable[..., None]) -> None:
    job = tasks.enqueue(Task(boom, failure_ttl=50))
    work()
    assert redis.ttl(f"rq:job:{job.job_id}") > 0
    assert tasks.requeue(job.job_id) == "default"
    assert redis.ttl(f"rq:job:{job.job_id}") == -1
    fetched = Job.fetch(job.job_id, connection=redis)
    assert (fetched.get_status(), fetched.ended_at) == ("queued", None)
    for wrong in (job.job_id, "nothing"):
        with pytest.raises(NotFailedError):
            tasks.requeue(wrong)
    assert redis.llen("rq:queue:default") == 1
    redis.hset(f"rq:job:{job.job_id}", mapping={"status": "failed", "rate_limit_key": "k"})
    with pytest.raises(NotFailedError, match="rate limit"):
        tasks.requeue(job.job_id)


class Cut(Redis):
    """A connection that is cut before or after its nth command: the reply is lost, or the rest."""

    left = 0
    after = False

    def execute_command(self, *args: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise RedisConnectionError("cut")
        reply = super().execute_command(*args, **options)
        if self.left == 0:
            raise RedisConnectionError("cut")
        return reply


@pytest.mark.parametrize("after", [False, True])
def test_interrupted_anywhere_each_is_put_back_once(
    redis: Redis, tasks: Tasks, *, after: bool
) -> None:
    ids = fail(tasks, 3 * STEP + 20)
    wanted = [job for at, job in enumerate(ids) if at % 2]
    for job in wanted:
        redis.hset(f"rq:job:{job}", "description", "wanted")
    cut = Cut(connection_pool=redis.connection_pool)
    cut.after = after
    half = Tasks(cut)
    started = tasks.start_requeueing("default", JobFilter(text="wanted"))
    assert started.total == len(ids)
    interruptions = 0
    told: list[Requeueing] = []
    while True:
        cut.left = 3
        try:
            done = half.carry_on_requeueing(started.operation, told.append)
        except TasksUnavailableError as error:
            assert "cut" in str(error)  # noqa: PT017 - any other is a failure
            interruptions += 1
            assert interruptions < 50
            continue
        break
    assert interruptions >= 3
    assert (done.scanned, done.requeued, done.done) == (len(ids), len(wanted), True)
    assert [each.requeued for each in told] == sorted(each.requeued for each in told)
    queued = [each.decode() for each in redis.lrange("rq:queue:default", 0, -1)]
    assert sorted(queued) == sorted(wanted)
    assert redis.zcard("rq:failed:default") == len(ids) - len(wanted)
    assert tasks.carry_on_requeueing(started.operation) == done


def test_two_at_one_operation_share_it(redis: Redis, tasks: Tasks) -> None:
    ids = fail(tasks, 2 * STEP)
    for job in ids[::2]:
        redis.hset(f"rq:job:{job}", "description", "wanted")
    started = tasks.start_requeueing("default", JobFilter(text="wanted"))

    def other(_: Requeueing) -> None:
        tasks.carry_on_requeueing(started.operation)

    done = tasks.carry_on_requeueing(started.operation, other)
    assert (done.requeued, done.scanned) == (STEP, 2 * STEP)
    assert redis.llen("rq:queue:default") == STEP


def test_what_fails_again_meanwhile_stays(redis: Redis, tasks: Tasks) -> None:
    ids = fail(tasks, STEP + 5)
    [(_, newest)] = redis.zrange("rq:failed:default", -1, -1, withscores=True)
    again = 0

    def refail(_: Requeueing) -> None:
        # What was put back fails at once, to stand where the walk has yet to come.
        nonlocal again
        for job in redis.lpop("rq:queue:default", 1000) or ():
            ended = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            redis.hset(b"rq:job:" + job, mapping={"status": "failed", "ended_at": ended})
            redis.zadd("rq:failed:default", {job: newest})
            again += 1
        assert again <= len(ids)

    started = tasks.start_requeueing("default")
    done = tasks.carry_on_requeueing(started.operation, refail)
    assert done.requeued == len(ids)
    assert done.scanned > len(ids)


def test_a_filter_that_matches_nothing_says_so(tasks: Tasks) -> None:
    fail(tasks, 3)
    started = tasks.start_requeueing("default", JobFilter(function="nobody.*"))
    with pytest.raises(NothingMatchesError, match="none of the 3"):
        tasks.carry_on_requeueing(started.operation)
    with pytest.raises(InvalidTaskError, match="not known"):
        tasks.carry_on_requeueing("unheard-of")


def test_a_step_that_held_redis_too_long_is_followed_by_a_smaller_one() -> None:
    assert next_step(STEP, 0.001) == STEP
    step, sizes = STEP, []
    for _ in range(6):
        step = next_step(step, 0.02)
        sizes.append(step)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == STEP // 2
    assert sizes[-1] == 5
    assert 5 < next_step(step, 0.0) < STEP


def test_large_arguments_and_results_are_not_copied_for_a_list(redis: Redis, tasks: Tasks) -> None:
    ids = fail(tasks, 10)
    for job in ids:
        redis.hset(f"rq:job:{job}", mapping={"data": b"x" * (1 << 20), "description": "a.b(1)"})
        redis.xadd(f"rq:results:{job}", {"exc_string": b"y" * (1 << 20)})
    redis.config_resetstat()
    found = tasks.failures("default").failures
    assert [(each.function, each.exception) for each in found] == [("a.b", "")] * 10
    touched = redis.info("commandstats")
    assert "cmdstat_hget" not in touched
    assert "cmdstat_xrevrange" not in touched


def test_a_step_ends_when_it_has_touched_enough(redis: Redis, tasks: Tasks) -> None:
    ids = fail(tasks, 40)
    for job in ids:
        redis.hset(f"rq:job:{job}", "data", b"x" * 60_000)
    redis.config_resetstat()
    assert pages(tasks, 500) == in_order(redis)
    assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] >= 4


def test_the_exception_is_what_the_traceback_ends_with() -> None:
    told = 'Traceback (most recent call last):\n  File "a.py"\n    x()\nmail.Error: first\nrest: x'
    assert exception_of(told) == ("mail.Error", "first")
    assert exception_of("") == ("", "")


# -- unique until the end --------------------------------------------------------------------------


@pytest.mark.parametrize("flow", [False, True])
def test_a_job_whose_key_another_has_by_now_is_not_put_back(
    redis: Redis, tasks: Tasks, work: Callable[..., None], flow: bool
) -> None:
    key = Unique("close", until="end")

    def enqueue(name: str) -> str:
        if flow:
            part = Task(until, (name,), result_ttl=60)
            return tasks.enqueue_flow(part, unique=key).jobs[-1].job_id
        parents = [] if name == "first" else ["gone"]
        return tasks.enqueue(Task(until, (name,), unique=key, depends_on=parents)).job_id

    first = enqueue("first")
    work()
    second = enqueue("second")
    assert first != second
    with pytest.raises(SupersededError, match="another job has its unique key by now"):
        tasks.requeue(first)
    operation = tasks.start_requeueing("default")
    done = tasks.carry_on_requeueing(operation.operation)
    assert (done.requeued, done.skipped) == (0, 1)
    assert tasks.result(first).status == "failed"
    work()
    # Now both have failed: the first to be put back has the key, for what is left of its window.
    left = redis.pttl("engineroom:unique:close")
    operation = tasks.start_requeueing("default")
    done = tasks.carry_on_requeueing(operation.operation)
    assert (done.requeued, done.skipped) == (1, 1)
    [again] = redis.lrange("rq:queue:default", 0, -1)
    assert redis.get("engineroom:unique:close") == again
    assert 0 < redis.pttl("engineroom:unique:close") <= left
    assert enqueue("third") == again.decode()
    assert redis.llen("rq:queue:default") == 1


def test_a_job_that_has_its_key_still_or_whose_window_is_over_is_put_back(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    job = tasks.enqueue(Task(boom, unique=Unique("k", until="end"))).job_id
    work()
    tasks.requeue(job)
    work()
    redis.delete("engineroom:unique:k")
    tasks.requeue(job)
    assert not redis.exists("engineroom:unique:k")
