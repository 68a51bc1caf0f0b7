"""Rows of the outbox that cannot be carried: set aside, and only they; nothing lost or doubled."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from engineroom.relay import PrometheusMetrics
from engineroom.tasks import Reason, Task, Tasks, TasksUnavailableError, Unique, chain, group
from engineroom.tasks.enqueueing.encode import encode
from engineroom.tasks.enqueueing.flows import encode_flow
from engineroom.tasks.enqueueing.task import EnqueueRules
from engineroom.tasks.outbox import Relay, _dumps
from tests.integration.tasks.conftest import snapshot
from tests.integration.tasks.work import add

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg
    from redis import Redis

    from engineroom.tasks.enqueueing.flows import Part

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def entry(part: Part, **changes: Any) -> str:
    """A row's content, as the application writes it but for the changes."""
    if isinstance(part, Task):
        said = json.loads(_dumps(encode(part, EnqueueRules(), NOW)))
    else:
        said = json.loads(_dumps(encode_flow(part, EnqueueRules(), NOW, "flow", None)))
    return json.dumps({**said, **changes})


def insert(database: psycopg.Connection[Any], *contents: str) -> None:
    for each in contents:
        database.execute("INSERT INTO engineroom_outbox (job) VALUES (%s)", (each,))


def problems(database: psycopg.Connection[Any]) -> list[str | None]:
    rows = database.execute("SELECT problem FROM engineroom_outbox ORDER BY id").fetchall()
    return [problem for (problem,) in rows]


def waiting(redis: Redis, queue: str = "default") -> list[str]:
    return [each.decode() for each in redis.lrange(f"rq:queue:{queue}", 0, -1)]


TASK = Task(add, (1,))
GOOD = json.loads(entry(TASK))
UNIQUE = asdict(Unique("k"))
BAD = {
    "element of depends_on": {"depends_on": [{"a": 1}]},
    "id of depends_on": {"depends_on": ["a b"]},
    "too many to wait for": {"depends_on": [f"j{at}" for at in range(1001)]},
    "due is not a number": {"due": float("nan")},
    "due never comes": {"due": float("inf")},
    "due is out of range": {"due": 10**400},
    "due is true": {"due": True},
    "ttl is too long": {"ttl": 10**18},
    "ttl is none": {"ttl": 0},
    "ttl is true": {"ttl": True},
    "priority is too high": {"priority": 10},
    "priority is true": {"priority": True},
    "id is no id": {"job_id": "a b"},
    "no name": {"queue": ""},
    "name of RQ's own list": {"queue": "mail:intermediate"},
    "half of a surrogate as a value": {"fields": [*GOOD["fields"], "note", "\ud800"]},
    "half of a surrogate as a name": {"queue": "\ud800"},
    "truth as a value": {"fields": [*GOOD["fields"], "note", True]},
    "no hash": {"fields": []},
    "too many words": {"fields": ["a", "b"] * 5000},
    "key of a list": {"unique": {**UNIQUE, "key": ["k"]}},
    "key of half a surrogate": {"unique": {**UNIQUE, "key": "\ud800"}},
    "window is not a number": {"unique": {**UNIQUE, "window": float("nan")}},
    "empty flow": {"flow_id": "f", "jobs": []},
    "flow without an id": {"flow_id": None, "jobs": [GOOD]},
    "flow of too many": {"flow_id": "f", "jobs": [GOOD] * 251},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_what_redis_would_refuse_is_set_aside(
    redis: Redis, database: psycopg.Connection[Any], changes: dict[str, Any]
) -> None:
    before, after = (entry(Task(add, job_id=each)) for each in ("before", "after"))
    insert(database, before, entry(TASK, **changes), after)
    relay = Relay(database, redis)
    assert [each.job_id for each in relay.once()] == ["before", "after"]
    assert relay.once() == []
    [problem] = problems(database)
    assert problem
    assert waiting(redis) == ["before", "after"]
    assert len(redis.keys("rq:job:*")) == 2


def test_depth_without_end_is_set_aside(redis: Redis, database: psycopg.Connection[Any]) -> None:
    insert(database, "[" * 200_000, entry(TASK))
    assert len(Relay(database, redis).once()) == 1
    assert len(problems(database)) == 1


FLOW = chain(Task(add), group(Task(add), Task(add, queue="broken")))
WRONG = {
    "list": ("rq:queue:broken", Task(add, queue="broken")),
    "list of an urgent one": ("rq:queue:broken", Task(add, queue="broken", priority=3)),
    "schedule": ("rq:scheduled:broken", Task(add, queue="broken", delay=60)),
    "unique key": ("engineroom:unique:k", Task(add, queue="broken", unique=Unique("k"))),
    "parent": ("rq:job:parent", Task(add, queue="broken", depends_on=["parent"])),
    "dependents": ("rq:job:p:dependents", Task(add, queue="broken", depends_on=["p"])),
    "deferred": ("rq:deferred:broken", FLOW),
}


@pytest.mark.parametrize(("key", "part"), WRONG.values(), ids=WRONG)
def test_a_key_of_another_type_keeps_back_its_row_alone(
    redis: Redis, database: psycopg.Connection[Any], tasks: Tasks, key: str, part: Part
) -> None:
    if key == "rq:job:p:dependents":
        tasks.enqueue(Task(add, job_id="p", queue="default"))
        redis.delete("rq:queue:default")
    redis.sadd("rq:queues", "rq:queue:default")
    redis.set(key, "the application's own") if "unique" not in key else redis.hset(key, "a", "b")
    found = snapshot(redis)
    insert(database, *(entry(Task(add, job_id=each)) for each in ("one", "two")))
    insert(database, entry(part), entry(Task(add, job_id="three")))
    relay = Relay(database, redis)
    assert [each.job_id for each in relay.once()] == ["one", "two", "three"]
    assert relay.once() == []
    [problem] = problems(database)
    assert problem is not None
    assert "WRONGTYPE" in problem
    assert waiting(redis) == ["one", "two", "three"]
    # Nothing of it is there by half, nor a mark that it was written.
    left = {name: value for name, value in snapshot(redis).items() if name in found}
    assert left == found
    assert len(redis.keys("rq:job:*")) - len([each for each in found if "job:" in each]) == 3
    assert len(redis.keys("engineroom:relayed:*")) == 3
    # Once that is mended, the row is carried, once.
    redis.delete(key)
    database.execute("UPDATE engineroom_outbox SET problem = NULL")
    [carried] = relay.once()
    assert carried.created
    assert problems(database) == []
    assert waiting(redis)[:3] == ["one", "two", "three"]


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_server_that_refuses_all_is_no_fault_of_a_row(
    redis: Redis, database: psycopg.Connection[Any], state: str
) -> None:
    insert(database, *(entry(Task(add, job_id=each)) for each in ("one", "two")))
    setting = {"full": ("maxmemory", 1, 0), "read-only": ("min-replicas-to-write", 1, 0)}[state]
    redis.config_set(setting[0], setting[1])
    relay = Relay(database, redis)
    try:
        with pytest.raises(TasksUnavailableError):
            relay.once()
    finally:
        redis.config_set(setting[0], setting[2])
    assert problems(database) == [None, None]
    assert [each.created for each in relay.once()] == [True, True]
    assert waiting(redis) == ["one", "two"]


class Mortal:
    """A connection that is gone at its nth statement; what it did is rolled back."""

    def __init__(self, connection: psycopg.Connection[Any], at: int) -> None:
        self._connection = connection
        self._left = at

    def transaction(self) -> Any:
        return self._connection.transaction()

    def execute(self, *words: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise InterruptedError
        return self._connection.execute(*words)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_relay_that_dies_over_a_refused_row_doubles_nothing_and_marks_nothing(
    redis: Redis, database: psycopg.Connection[Any], at: int
) -> None:
    redis.set("rq:queue:broken", "the application's own")
    insert(database, entry(Task(add, job_id="one")), "no job", entry(Task(add, queue="broken")))
    insert(database, entry(chain(Task(add), Task(add))))
    with pytest.raises(InterruptedError):
        Relay(Mortal(database, at), redis).once()
    # It read, set aside what is no job, asked Redis, and was to set aside what that refused.
    assert waiting(redis) == ([] if at < 3 else ["one", "flow-0"])
    carried = Relay(database, redis).once()
    assert [each.created for each in carried] == [at < 3] * 2
    assert waiting(redis) == ["one", "flow-0"]
    assert [problem is not None for problem in problems(database)] == [True, True]


def test_why_a_job_does_not_run_is_told_and_counted(
    redis: Redis, database: psycopg.Connection[Any], tasks: Tasks, work: Callable[..., None]
) -> None:
    gone = tasks.enqueue(Task(add, delay=60)).job_id
    tasks.cancel(gone)
    tasks.enqueue(Task(add, job_id="there"))
    unique = Task(add, unique=Unique("k"))
    first = tasks.enqueue(unique).job_id
    many = [unique, Task(add, job_id="there"), Task(add, job_id="dead", depends_on=[gone]), TASK]
    told = tasks.enqueue_many(many)
    reasons = [Reason.UNIQUE, Reason.EXISTS, Reason.PARENT_CANCELED, Reason.CREATED]
    assert [each.reason for each in told] == reasons
    assert [each.created for each in told] == [False, False, False, True]
    assert [each.job_id for each in told[:3]] == [first, "there", "dead"]
    assert not redis.exists("rq:job:dead")

    insert(database, *(entry(each) for each in many))
    insert(database, entry(chain(Task(add, depends_on=[gone]), Task(add))))
    carried = Relay(database, redis).once()
    assert [each.reason for each in carried] == [*reasons, Reason.PARENT_CANCELED]
    # Its transaction has committed: it is there, and cancelled.
    assert tasks.result("dead").status == "canceled"
    metrics = PrometheusMetrics()
    metrics.carried(carried)
    text = metrics.exposition().decode()
    for outcome, number in (("written", 1), ("known", 2), ("canceled", 2)):
        assert f'engineroom_outbox_jobs_total{{outcome="{outcome}"}} {number}.0' in text
