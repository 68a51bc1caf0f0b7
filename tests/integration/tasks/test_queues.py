"""Queues: counted without side effects, paused, moved and emptied; and what jobs leave."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from engineroom.core.clock import FakeClock
from engineroom.tasks import InvalidTaskError, NotConfirmedError, Reporter, Task, Tasks, reporter
from engineroom.tasks.inspection.queues import STEP
from tests.integration.tasks.work import add, boom, step

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis


def test_counting_changes_nothing(redis: Redis, tasks: Tasks, work: Callable[..., None]) -> None:
    tasks.enqueue(boom)
    work()
    tasks.enqueue(add, 1)
    tasks.enqueue(Task(add, (1,), delay=0))
    # RQ's own counting would take expired entries away, and fail the abandoned job.
    redis.zadd("rq:failed:default", {"long-gone": 1})
    redis.zadd("rq:wip:default", {"abandoned:x": 1, "running:y": time.time() + 60})
    before = {key: redis.dump(key) for key in redis.scan_iter()}
    [counts] = tasks.counts()
    assert {key: redis.dump(key) for key in redis.scan_iter()} == before
    assert (counts.name, counts.waiting, counts.running) == ("default", 1, 1)
    assert (counts.scheduled, counts.due, counts.failed) == (1, 1, 2)
    [nothing] = tasks.counts(["nowhere"])
    assert (nothing.waiting, nothing.paused) == (0, False)


def test_queues_are_listed_and_created(tasks: Tasks) -> None:
    assert tasks.create_queue("mail")
    assert not tasks.create_queue("mail")
    tasks.enqueue(add, 1)
    assert tasks.queue_names() == ["default", "mail"]
    with pytest.raises(InvalidTaskError):
        tasks.create_queue("")


def test_pause_says_so(tasks: Tasks) -> None:
    assert tasks.pause_queue("mail", "the provider is down")
    assert not tasks.pause_queue("mail", "still down")
    [counts] = tasks.counts(["mail"])
    assert (counts.paused, counts.reason) == (True, "still down")
    assert tasks.resume_queue("mail")
    assert not tasks.resume_queue("mail")
    assert not tasks.counts(["mail"])[0].paused


def test_only_what_waits_is_emptied_and_only_by_name(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    failed = tasks.enqueue(boom)
    work()
    tasks.enqueue_many([Task(add, (at,)) for at in range(STEP + 5)])
    later = tasks.enqueue(Task(add, (1,), delay=60))
    with pytest.raises(NotConfirmedError, match="repeat the queue's name"):
        tasks.empty_queue("default", confirm="yes")
    assert tasks.counts()[0].waiting == STEP + 5
    assert tasks.empty_queue("default", confirm="default") == STEP + 5
    jobs = {key.decode() for key in redis.keys("rq:job:*")}
    assert jobs == {f"rq:job:{failed.job_id}", f"rq:job:{later.job_id}"}


def test_moved_jobs_keep_their_order_and_run_there(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    many = tasks.enqueue_many([Task(add, (at,)) for at in range(STEP + 3)])
    ids = [each.job_id.encode() for each in many]
    assert tasks.move_jobs("default", "other", limit=2) == 2
    assert redis.lrange("rq:queue:other", 0, -1) == ids[:2]
    redis.delete(f"rq:job:{many[4].job_id}")
    assert tasks.move_jobs("default", "other") == STEP
    assert redis.lrange("rq:queue:other", 0, -1) == ids[:4] + ids[5:]
    assert redis.llen("rq:queue:default") == 0
    assert redis.hget(f"rq:job:{many[0].job_id}", "origin") == b"other"
    assert tasks.move_jobs("other", "other") == 0
    tasks.move_jobs("other", "default", limit=STEP)
    work("other")
    assert tasks.result(many[-1].job_id).value == STEP + 2


# -- what jobs report and leave --------------------------------------------------------------------


def test_a_job_reports_and_leaves_a_result(tasks: Tasks, work: Callable[..., None]) -> None:
    job = tasks.enqueue(step, 40)
    assert tasks.progress(job.job_id) is None
    assert tasks.result(job.job_id).status == "queued"
    work()
    said = tasks.progress(job.job_id)
    assert said is not None
    assert (said.count, said.total, said.message, said.fraction) == (40, 40, "step 40", 1.0)
    assert 0 < tasks.redis.ttl(f"engineroom:progress:{job.job_id}") <= 86400
    failed = tasks.enqueue(boom, "it broke")
    gone = tasks.enqueue(Task(add, (1,), result_ttl=0))
    kept = tasks.enqueue(Task(add, (1,), result_ttl=100))
    work()
    assert "RuntimeError: it broke" in tasks.result(failed.job_id).traceback
    assert tasks.result(gone.job_id).status == ""
    assert 90 < tasks.redis.ttl(f"rq:results:{kept.job_id}") <= 100


def test_reports_are_written_no_faster_than_told(redis: Redis, tasks: Tasks) -> None:
    clock = FakeClock()
    said = Reporter(redis, "j", clock)
    written = []
    for count in range(1, 21):
        written.append(said.report(count, 20))
        clock.advance(0.125)
    assert written == [at in (0, 4, 8, 12, 16, 19) for at in range(20)]
    said.report(21)
    assert said.report(22) is False
    assert said.flush()
    assert not said.flush()
    last = tasks.progress("j")
    assert last is not None
    assert (last.count, last.total, last.fraction) == (22, None, None)


def test_there_is_no_reporter_outside_of_a_job() -> None:
    with pytest.raises(InvalidTaskError, match="inside a job"):
        reporter()
