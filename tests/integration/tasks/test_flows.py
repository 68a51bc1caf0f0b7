"""Flows, run by RQ's own worker: order, results, failures, cancelling; all written or nothing."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis as AsyncRedis
from rq import Callback as RqCallback
from rq import Queue
from rq.job import Dependency, Job

from engineroom.core.errors import JobMissingError
from engineroom.tasks import (
    AsyncTasks,
    Callback,
    InvalidTaskError,
    JobEndedError,
    JobExistsError,
    Limit,
    ParentCanceledError,
    Task,
    Tasks,
    Unique,
    chain,
    fan_in,
    graph,
    group,
)
from engineroom.tasks.enqueueing.dependents import STEP
from engineroom.tasks.outbox import Relay
from engineroom.tasks.outbox import add as into_outbox
from engineroom.tasks.outbox import add_flow as flow_into_outbox
from tests.integration.tasks.conftest import snapshot
from tests.integration.tasks.work import add, boom, note, outcomes, total, until

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg
    from redis import Redis

    from engineroom.tasks import EnqueuedFlow


def states(tasks: Tasks, flow: EnqueuedFlow) -> list[str]:
    return [tasks.result(job.job_id).status for job in flow.jobs]


def test_a_chain_a_group_and_what_waits_for_it(
    tasks: Tasks, redis: Redis, work: Callable[..., None]
) -> None:
    flow = tasks.enqueue_flow(
        fan_in([Task(add, (1, 2)), chain(Task(add, (3,)), Task(add, (4,), queue="b"))], Task(total))
    )
    assert states(tasks, flow) == ["queued", "queued", "deferred", "deferred"]
    assert [count.deferred for count in tasks.counts(["default", "b"])] == [1, 1]
    work("default", "b")
    assert states(tasks, flow) == ["finished"] * 4
    # The chain's first is no parent of the last.
    assert tasks.result(flow.jobs[-1].job_id).value == 7
    assert not redis.exists("rq:deferred:default", "rq:deferred:b")


def test_what_is_written_is_what_rq_writes(redis: Redis, tasks: Tasks) -> None:
    parent = Queue(connection=redis).enqueue(add, 1)
    options: dict[str, Any] = {"meta": {"a": 1}, "description": "mine", "result_ttl": 60}
    theirs = Queue("mail", connection=redis).enqueue(
        add, 2, job_timeout=30, depends_on=Dependency([parent], allow_failure=True),
        on_success=RqCallback(note, timeout=7), on_failure=RqCallback(note),
        on_stopped=RqCallback("tests.integration.tasks.work.note"), **options,
    )  # fmt: skip
    ours = tasks.enqueue(
        Task(
            add, (2,), queue="mail", timeout=30, depends_on=[parent.id], allow_failure=True,
            on_success=Callback(note, 7), on_failure=note,
            on_stopped="tests.integration.tasks.work.note", **options,
        )
    )  # fmt: skip

    def fields(job_id: str) -> dict[str, Any]:
        job = Job.fetch(job_id, connection=redis)
        found = {key: value for key, value in job.to_dict().items() if not key.endswith("_at")}
        # RQ writes the time-out of a callback where there is one, in some versions always.
        known = {key for key in redis.hgetall(job.key) if b"callback_timeout" not in key}
        return {**found, "enqueued": job.enqueued_at, "data": job.data, "hash": known}

    mine, rqs = fields(ours.job_id), fields(theirs.id)
    for front in ("enqueue_at_front", b"enqueue_at_front"):
        rqs.pop(front, None)  # type: ignore[call-overload]
        rqs["hash"].discard(front)
    assert mine == rqs
    for each in (ours.job_id, theirs.id):
        assert Job.fetch(each, connection=redis).dependency_ids == [parent.id]
    assert redis.smembers(f"rq:job:{parent.id}:dependents") == {
        ours.job_id.encode(), theirs.id.encode(),
    }  # fmt: skip
    assert redis.zcard("rq:deferred:mail") == 2


def test_callbacks_are_called(redis: Redis, tasks: Tasks, work: Callable[..., None]) -> None:
    good = tasks.enqueue(Task(add, (1,), on_success=note, on_failure=boom))
    bad = tasks.enqueue(Task(boom, on_failure=Callback(note, 5), on_success=boom))
    work()
    assert redis.lrange("test:noted", 0, -1) == [good.job_id.encode(), bad.job_id.encode()]


def test_a_parent_that_has_ended_is_not_waited_for(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    done, failed = tasks.enqueue(add, 5), tasks.enqueue(boom)
    work()
    ids = [done.job_id, "long-gone"]
    now = tasks.enqueue(Task(total, depends_on=ids))
    never = tasks.enqueue(Task(total, depends_on=[failed.job_id, *ids]))
    anyway = tasks.enqueue(Task(outcomes, depends_on=[failed.job_id, *ids], allow_failure=True))
    work()
    assert tasks.result(now.job_id).value == 5
    assert tasks.result(never.job_id).status == "deferred"
    assert tasks.result(anyway.job_id).value == ["failed", "finished", ""]


def test_a_failed_parent_that_is_put_back_resumes_the_flow(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    flow = tasks.enqueue_flow(
        chain(
            Task(until, ("go",), failure_ttl=100),
            group(Task(add, (1,)), Task(outcomes, allow_failure=True)),
            Task(outcomes),
        )
    )
    work()
    # What may run after a failure has run; the rest waits.
    assert states(tasks, flow) == ["failed", "deferred", "finished", "deferred"]
    assert tasks.result(flow.jobs[2].job_id).value == ["failed"]
    redis.set("go", 1)
    tasks.requeue(flow.jobs[0].job_id)
    dependents = f"rq:job:{flow.jobs[0].job_id}:dependents"
    assert redis.ttl(dependents) == -1, "it would forget who waits before it runs"
    redis.hset(f"rq:job:{flow.jobs[2].job_id}", "ran", "once")
    work()
    assert states(tasks, flow) == ["finished"] * 4
    assert redis.hget(f"rq:job:{flow.jobs[2].job_id}", "ran") == b"once"
    assert redis.llen("rq:queue:default") == 0


@pytest.mark.parametrize("at", [0, 1])
def test_cancelling_takes_all_that_hangs_on_it(
    redis: Redis, tasks: Tasks, work: Callable[..., None], at: int
) -> None:
    tree = {name: Task(add, (1,), queue=name[0]) for name in ("a", "b", "c1", "c2", "d", "e")}
    after = {"b": ["a"], "c1": ["b"], "c2": ["b"], "d": ["c1", "c2"], "e": ["a"]}
    flow = tasks.enqueue_flow(graph(tree, after), flow_id="tree")
    other = tasks.enqueue(Task(add, (1,), queue="a"))
    canceled = tasks.cancel(f"tree-{at}")
    expected = [0, 1, 2, 3, 4, 5] if at == 0 else [1, 2, 3, 4]
    assert set(canceled.canceled) == {f"tree-{each}" for each in expected}
    assert set(tasks.cancel(f"tree-{at}").canceled) == set(canceled.canceled)
    work("a", "b", "c", "d", "e")
    ended = states(tasks, flow)
    assert ended == ["canceled" if each in expected else "finished" for each in range(6)]
    assert tasks.result(other.job_id).status == "finished"
    assert sum(count.canceled for count in tasks.counts()) == len(expected)
    assert sum(count.deferred for count in tasks.counts()) == 0


def test_cancelling_whatever_state_it_is_in(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    failed = tasks.enqueue(boom)
    done = tasks.enqueue(add, 1)
    work()
    later = tasks.enqueue(Task(add, (1,), delay=60))
    for job in (failed, later):
        assert tasks.cancel(job.job_id).canceled == (job.job_id,)
    [counts] = tasks.counts(["default"])
    assert (counts.failed, counts.scheduled, counts.canceled) == (0, 0, 2)
    with pytest.raises(JobEndedError, match="has finished; nothing"):
        tasks.cancel(done.job_id)
    with pytest.raises(JobMissingError, match="no job 'nobody'; see"):
        tasks.cancel("nobody")
    with pytest.raises(ParentCanceledError, match=f"depends_on: job {failed.job_id} is canceled"):
        tasks.enqueue(Task(add, (1,), depends_on=[failed.job_id]))
    with pytest.raises(ParentCanceledError):
        tasks.enqueue_flow(chain(Task(add), Task(add, depends_on=[later.job_id])))
    [refused] = tasks.enqueue_many([Task(add, (1,), depends_on=[later.job_id])])
    assert not refused.created
    assert redis.llen("rq:queue:default") == 0


def test_a_running_parent_is_asked_to_stop_only_if_told(redis: Redis, tasks: Tasks) -> None:
    flow = tasks.enqueue_flow(chain(Task(add, (1,)), Task(add, (2,))), flow_id="f")
    redis.hset("rq:job:f-0", mapping={"status": "started", "worker_name": "w"})
    with redis.pubsub() as heard:
        heard.subscribe("rq:pubsub:w")
        heard.get_message(timeout=5)
        first = tasks.cancel("f-0")
        assert (first.canceled, first.running) == ((flow.jobs[1].job_id,), ("f-0",))
        assert heard.get_message(timeout=0.05) is None
        tasks.cancel("f-0", stop=True)
        said = heard.get_message(timeout=5)
    assert said is not None
    assert said["data"] == b'{"command": "stop-job", "job_id": "f-0"}'


def test_many_are_cancelled_in_bounded_steps_also_beside_a_long_queue(
    redis: Redis, tasks: Tasks
) -> None:
    tasks.enqueue_many([Task(add, (at,), result_ttl=1) for at in range(10_300)])
    flow = tasks.enqueue_flow(chain(Task(add, (1,)), group(*[Task(add, (2,))] * (2 * STEP + 9))))
    redis.config_set("slowlog-log-slower-than", 0)
    redis.config_set("slowlog-max-len", 2000)
    redis.slowlog_reset()
    assert len(tasks.cancel(flow.jobs[0].job_id).canceled) == 2 * STEP + 10
    scripts = [each for each in redis.slowlog_get(999) if each["command"].startswith(b"EVAL")]
    redis.config_set("slowlog-log-slower-than", 10_000)
    # The first finds its job in the long queue and does no more; the rest go 50 at a time.
    assert len(scripts) == 4
    assert redis.llen("rq:queue:default") == 10_300


def test_a_unique_flow_stands_once_for_its_work(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    flow, key = chain(Task(add, (1,)), Task(total)), Unique("month", until="end")
    first = tasks.enqueue_flow(flow, unique=key)
    before = snapshot(redis)
    again = tasks.enqueue_flow(flow, unique=key)
    assert (first.created, again.created) == (True, False)
    assert [job.job_id for job in again.jobs] == [job.job_id for job in first.jobs]
    assert again.flow_id == first.flow_id
    assert snapshot(redis) == before
    work()
    assert tasks.enqueue_flow(flow, unique=key).created
    with pytest.raises(InvalidTaskError, match="several ends"):
        tasks.enqueue_flow(group(Task(add), Task(add)), unique=key)


def test_a_flow_is_written_whole_or_not_at_all(redis: Redis, tasks: Tasks) -> None:
    tasks.enqueue_flow(chain(Task(add, (1,)), Task(add, (2,))), flow_id="f")
    before = snapshot(redis)
    with pytest.raises(JobExistsError, match="flow: job f-0 exists"):
        tasks.enqueue_flow(group(Task(add), Task(add), Task(add)), flow_id="f")
    taken = Task(add, (1,), job_id="f-1")
    with pytest.raises(JobExistsError, match="f-1"):
        tasks.enqueue_flow(chain(Task(add), Task(add), taken))
    for wrong, said in [
        (Task(add, unique=Unique("x")), "flow[1].unique: stands in a flow; give it to"),
        (Task(add, delay=5), "flow[1].delay: conflicts with depends_on"),
        (Task(lambda: 0), "flow[1].function"),
        (Task(add, queue=""), "flow[1].queue"),
        (Task(add, on_success=Task), "flow[1].on_success: type; use a function"),
    ]:
        with pytest.raises(InvalidTaskError) as refused:
            tasks.enqueue_flow(chain(Task(add), wrong))
        assert said in str(refused.value)
    with pytest.raises(InvalidTaskError, match=r"flow\[0\]\.ttl: others wait"):
        tasks.enqueue_flow(chain(Task(add, ttl=5), Task(add)))
    with pytest.raises(InvalidTaskError, match="flow_id"):
        tasks.enqueue_flow(Task(add), flow_id="no good")
    assert snapshot(redis) == before


def test_a_batch_keeps_parents_before_their_children(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    parent, child = Task(add, (3,), job_id="p"), Task(total, job_id="c", depends_on=["p"])
    with pytest.raises(InvalidTaskError, match=r"tasks\[0\].depends_on: names tasks\[1\], which"):
        tasks.enqueue_many([child, parent])
    assert redis.keys() == []
    tasks.enqueue_many([parent, child])
    assert redis.lrange("rq:queue:default", 0, -1) == [b"p"]
    work()
    assert tasks.result("c").value == 3


def test_a_dependent_job_goes_through_the_outbox(
    redis: Redis, database: psycopg.Connection[Any], tasks: Tasks, work: Callable[..., None]
) -> None:
    into_outbox(database, tasks, Task(add, (3,), job_id="p"))
    into_outbox(database, tasks, Task(total, job_id="c", depends_on=["p"]))
    gone = tasks.enqueue(Task(add, delay=60))
    tasks.cancel(gone.job_id)
    into_outbox(database, tasks, Task(total, job_id="dead", depends_on=[gone.job_id]))
    relay = Relay(database, redis)
    assert len(relay.once()) == 3
    assert redis.lrange("rq:queue:default", 0, -1) == [b"p"]
    work()
    assert tasks.result("c").value == 3
    # Its transaction has committed, so it exists; what it waits for is cancelled, so is it.
    assert tasks.result("dead").status == "canceled"


def test_a_flow_goes_through_the_outbox_as_one(
    redis: Redis, database: psycopg.Connection[Any], tasks: Tasks, work: Callable[..., None]
) -> None:
    flow, key = fan_in([Task(add, (1,)), Task(add, (2,))], Task(total)), Unique("once")
    with database.transaction(force_rollback=True):
        flow_into_outbox(database, tasks, flow)
    with pytest.raises(InvalidTaskError), database.transaction():
        flow_into_outbox(database, tasks, chain(Task(add), Task(lambda: 0)))
    ids = [flow_into_outbox(database, tasks, flow, unique=key) for _ in range(2)]
    carried = Relay(database, redis).once()
    assert [each.created for each in carried] == [True, False]
    assert {each.job_id for each in carried} == {f"{ids[0]}-2"}
    work()
    assert tasks.result(f"{ids[0]}-2").value == 3
    assert len(list(redis.scan_iter("rq:job:*", _type="hash"))) == 3


def test_the_async_half_does_the_same(redis: Redis, tasks: Tasks) -> None:
    async def use() -> tuple[EnqueuedFlow, tuple[str, ...]]:
        async with AsyncRedis(port=redis.connection_pool.connection_kwargs["port"]) as client:
            mine = AsyncTasks(client)
            flow = await mine.enqueue_flow(chain(Task(add, (1,)), Task(add, (2,))))
            return flow, (await mine.cancel(flow.jobs[0].job_id)).canceled

    flow, canceled = asyncio.run(use())
    assert canceled == tuple(job.job_id for job in flow.jobs)
    assert states(tasks, flow) == ["canceled", "canceled"]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_flow_ends_as_its_edges_say(
    redis: Redis, tasks: Tasks, work: Callable[..., None], data: st.DataObject
) -> None:
    """Model: a job runs if its parents finished, or failed and it allows that; else it waits."""
    redis.flushall()
    names = [f"n{at}" for at in range(data.draw(st.integers(1, 7)))]
    after = {
        name: data.draw(st.lists(st.sampled_from(names[:at]), unique=True)) if at else []
        for at, name in enumerate(names)
    }
    fails = {name: data.draw(st.booleans()) and name != "n0" for name in names}
    allows = {name: data.draw(st.booleans()) for name in names}
    queue = {name: data.draw(st.sampled_from(("default", "b"))) for name in names}
    shuffled = data.draw(st.permutations(names))
    cancel = data.draw(st.none() | st.sampled_from(names))
    tree = {
        name: Task(
            boom if fails[name] else outcomes, queue=queue[name], allow_failure=allows[name],
            job_id=name,
        )
        for name in shuffled
    }  # fmt: skip
    tasks.enqueue_flow(graph(tree, after))
    expected: dict[str, str] = {}
    for name in names:
        parents = {expected[each] for each in after[name]}
        if name == cancel or "canceled" in parents:
            expected[name] = "canceled"
        elif parents <= {"finished", *({"failed"} if allows[name] else ())}:
            expected[name] = "failed" if fails[name] else "finished"
        else:
            expected[name] = "deferred"
    if cancel is not None:
        gone = {name for name, state in expected.items() if state == "canceled"}
        assert set(tasks.cancel(cancel).canceled) == gone
    work("default", "b")
    # What was put on a queue behind the worker's back, by an order of queues, is done by a second.
    work("default", "b")
    assert {name: tasks.result(name).status for name in names} == expected
    for name, state in expected.items():
        if state == "finished":
            seen = tasks.result(name).value
            assert seen == [expected[each] for each in tasks_order(redis, name)]


def tasks_order(redis: Redis, name: str) -> list[str]:
    """Parents in the order in which ``parents`` gives their results."""
    return list(json.loads(redis.hget(f"rq:job:{name}", "dependency_ids") or "[]"))


def test_urgent_parts_of_a_flow_stand_before_what_waits(
    redis: Redis, tasks: Tasks, work: Callable[..., None]
) -> None:
    plain = tasks.enqueue(add, 1)
    urgent = Task(add, (1,), priority=9)
    flow = tasks.enqueue_flow(chain(urgent, Task(add, (2,), priority=9, limit=Limit("k", 1))))
    front = tasks.enqueue_flow(Task(add, at_front=True))
    assert redis.lrange("rq:queue:default", 0, -1) == [
        front.jobs[0].job_id.encode(), flow.jobs[0].job_id.encode(), plain.job_id.encode(),
    ]  # fmt: skip
    second = redis.hgetall(f"rq:job:{flow.jobs[1].job_id}")
    assert (second[b"er_priority"], second[b"er_limit"]) == (b"9", b"k")
    work()
    assert states(tasks, flow) == ["finished", "finished"]
