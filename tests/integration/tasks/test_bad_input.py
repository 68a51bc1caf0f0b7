"""Whatever is wrong with what is asked for: an error with problem and fix, and not a trace."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy
from redis.asyncio import Redis as AsyncRedis

from engineroom.core.errors import EngineroomError, JobMissingError
from engineroom.tasks import (
    AsyncTasks,
    Callback,
    Cron,
    Every,
    InvalidTaskError,
    JobFilter,
    Limit,
    NothingMatchesError,
    Once,
    Retry,
    Schedule,
    Task,
    TaskError,
    Tasks,
    TaskTooLargeError,
    Unique,
    UnknownQueueError,
    chain,
    graph,
    group,
)
from engineroom.tasks.after_commit import (
    async_transaction,
    enqueue_after_commit,
    transaction,
)
from engineroom.tasks.outbox import add as into_outbox
from engineroom.tasks.outbox import add_async, add_flow, add_flow_async
from tests.integration.tasks.conftest import plain_session, snapshot, sqlalchemy_session
from tests.integration.tasks.work import add, boom

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

LOCK = threading.Lock()


def wrong(value: object) -> Any:
    """What a program without a type checker passes."""
    return value


UNKNOWN = r"queue: 'nowhere' is not known; use one of default, mail"
UNPICKLABLE = (
    r"args\[0\]: cannot be serialised: TypeError; "
    r"pass plain data, such as an id, and load the rest in the job"
)
TOO_LARGE = (
    r"args: 2\d{3} bytes are more than 1000; "
    r"store the data elsewhere and pass its key, or raise max_bytes"
)
LARGE_FLOW = (
    r"flow: its jobs are more than 4000 bytes as they are stored; "
    r"store the data elsewhere and pass its key, or raise max_flow_bytes"
)
LINE = r'cron: "61 .+" is not a cron line; .+'
ZONE = r'zone: "Europe/Berlim" is not a time zone; did you mean Europe/Berlin.?'
CYCLE = r"flow: a -> b -> a is a cycle; let one of them not wait"
NOTHING = r"where: matches none of the 1 failed jobs of 'default'; look with failures\(\)"

FEW = [Task(add, (1,))] * 260
A, B = Task(add, (1,)), Task(add, (2,))

#: What is asked of Tasks, as its method and arguments made when called; the error; its message.
TABLE: dict[str, tuple[Callable[[], tuple[Any, ...]], type[EngineroomError], str]] = {
    "unknown queue": (
        lambda: ("enqueue", Task(add, queue="nowhere")), UnknownQueueError, UNKNOWN),
    "unknown queue in a batch": (
        lambda: ("enqueue_many", [*FEW, Task(add, queue="nowhere")]),
        UnknownQueueError, rf"tasks\[260\]\.{UNKNOWN}"),
    "unknown queue in a flow": (
        lambda: ("enqueue_flow", chain(A, group(B, Task(add, queue="nowhere")))),
        UnknownQueueError, rf"flow\[2\]\.{UNKNOWN}"),
    "unknown queue in a schedule": (
        lambda: ("put_schedule", Schedule("new", Every(60), Task(add, queue="nowhere"))),
        UnknownQueueError, UNKNOWN),
    "jobs moved to an unknown queue": (
        lambda: ("move_jobs", "default", "nowhere"), UnknownQueueError, UNKNOWN),
    "an unknown queue made": (lambda: ("create_queue", "nowhere"), UnknownQueueError, UNKNOWN),
    "no queue": (
        lambda: ("enqueue", Task(add, queue="")), InvalidTaskError,
        r"queue: is no name; use 1 to 200 printable characters"),
    "unpicklable": (lambda: ("enqueue", Task(add, (LOCK,))), InvalidTaskError, UNPICKLABLE),
    "unpicklable in a batch": (
        lambda: ("enqueue_many", [*FEW, Task(add, (LOCK,))]), InvalidTaskError,
        rf"tasks\[260\]\.{UNPICKLABLE}"),
    "unpicklable in a flow": (
        lambda: ("enqueue_flow", chain(A, Task(add, (LOCK,)))), InvalidTaskError,
        rf"flow\[1\]\.{UNPICKLABLE}"),
    "unpicklable meta": (
        lambda: ("enqueue", Task(add, meta={"x": LOCK})), InvalidTaskError,
        r"meta: cannot be serialised: TypeError; use plain data"),
    "too large": (
        lambda: ("enqueue", Task(add, ("x" * 2000,))), TaskTooLargeError, TOO_LARGE),
    "too large in a batch": (
        lambda: ("enqueue_many", [*FEW, Task(add, ("x" * 2000,))]), TaskTooLargeError,
        rf"tasks\[260\]\.{TOO_LARGE}"),
    "too large in a flow": (
        lambda: ("enqueue_flow", chain(A, Task(add, ("x" * 2000,)))), TaskTooLargeError,
        rf"flow\[1\]\.{TOO_LARGE}"),
    "too large in a schedule": (
        lambda: ("put_schedule", Schedule("new", Every(60), Task(add, ("x" * 2000,)))),
        TaskTooLargeError, TOO_LARGE),
    "no such cron line": (
        lambda: ("put_schedule", Schedule("new", Cron("61 * * * *"), A)), InvalidTaskError, LINE),
    "no such zone": (
        lambda: ("put_schedule", Schedule("new", Cron("0 * * * *", "Europe/Berlim"), A)),
        InvalidTaskError, ZONE),
    "a tick in the past": (
        lambda: ("put_schedule", Schedule("new", Once(1_500_000_000), A)),
        InvalidTaskError, r"trigger: is in the past; use a time to come"),
    "a schedule's name": (
        lambda: ("put_schedule", Schedule("no name", Every(60), A)), InvalidTaskError,
        r"name: 'no name'; use 1 to 160 letters, digits, '_' and '-'"),
    "a cycle": (
        lambda: ("enqueue_flow", graph({"a": A, "b": B}, {"a": ["b"], "b": ["a"]})),
        InvalidTaskError, CYCLE),
    "a cycle of job ids": (
        lambda: ("enqueue_flow", group(
            Task(add, job_id="a", depends_on=["b"]), Task(add, job_id="b", depends_on=["a"]))),
        InvalidTaskError, CYCLE),
    "a job that waits for itself": (
        lambda: ("enqueue", Task(add, job_id="a", depends_on=["a"])), InvalidTaskError,
        r"depends_on: names the job itself; leave it out"),
    "a job that waits for no id": (
        lambda: ("enqueue", Task(add, depends_on=["a b"])), InvalidTaskError,
        r"depends_on: 'a b'; use the ids of jobs"),
    "waiting for too many": (
        lambda: ("enqueue", Task(add, depends_on=[str(n) for n in range(1001)])),
        InvalidTaskError, r"depends_on: 1001 jobs; use at most 1000"),
    "a callback that is no function": (
        lambda: ("enqueue", Task(add, on_failure=lambda: 0)), InvalidTaskError,
        r"on_failure: .+ cannot be imported by a worker; define it in a module"),
    "a function that is not importable": (
        lambda: ("enqueue", Task("no path")), InvalidTaskError,
        r"function: 'no path'; use 'package.module.name'"),
    "a method of a value": (
        lambda: ("enqueue", Task("abc".upper)), InvalidTaskError,
        r"function: None\.str\.upper cannot be imported by a worker; define it in a module"),
    "retries": (
        lambda: ("enqueue", Task(add, retry=Retry(0))), InvalidTaskError,
        r"retry\.maximum: 0 tries; use 1 to 1000"),
    "a window": (
        lambda: ("enqueue", Task(add, unique=Unique("k", window=0))), InvalidTaskError,
        r"unique\.window: 0 s; use 0\.001 s to 10 years"),
    "a key": (
        lambda: ("enqueue", Task(add, unique=Unique(""))), InvalidTaskError,
        r"unique\.key: 0 characters; use 1 to 500"),
    "a key of the wrong type at the end of a batch": (
        lambda: ("enqueue_many", [*FEW, Task(add, unique=wrong("k"))]), InvalidTaskError,
        r"tasks\[260\]\.unique: is of type str; use Unique\(key\)"),
    "a description that Redis cannot store": (
        lambda: ("enqueue_many", [*FEW, Task(add, description=wrong(["x"]))]), InvalidTaskError,
        r"tasks\[260\]\.description: is of type list; use text"),
    "a key that Redis cannot store": (
        lambda: ("enqueue_many", [*FEW, Task(add, unique=Unique("\ud800"))]), InvalidTaskError,
        r"unique\.key: is no text that can be stored; use whole characters"),
    "something else in a batch": (
        lambda: ("enqueue_many", [*FEW, add]), InvalidTaskError,
        r"tasks\[260\]\.task: is of type function; use Task\(function, \.\.\.\)"),
    "one task as a batch": (
        lambda: ("enqueue_many", A), InvalidTaskError,
        r"tasks: is of type Task; use a list of tasks"),
    "a retry that is a number": (
        lambda: ("enqueue", Task(add, retry=wrong(3))), InvalidTaskError,
        r"retry: is of type int; use Retry\(maximum, intervals\)"),
    "a delay that is text": (
        lambda: ("enqueue", Task(add, delay=wrong("abc"))), InvalidTaskError,
        r"delay: is of type str; use seconds or a timedelta"),
    "a delay beyond all numbers": (
        lambda: ("enqueue", Task(add, delay=10**5000)), InvalidTaskError,
        r"delay: is out of bounds; use seconds or a timedelta"),
    "a time that is text": (
        lambda: ("enqueue", Task(add, at=wrong("2026-01-01"))), InvalidTaskError,
        r"at: is of type str; use a datetime with a time zone"),
    "no keyword arguments": (
        lambda: ("enqueue", Task(add, kwargs=wrong(None))), InvalidTaskError,
        r"kwargs: is of type NoneType; use a dict"),
    "keywords that are none": (
        lambda: ("enqueue", Task(add, kwargs=wrong({1: 2}))), InvalidTaskError,
        r"kwargs: has a name that is no text; use names of arguments"),
    "arguments that are text": (
        lambda: ("enqueue", Task(add, wrong("abc"))), InvalidTaskError,
        r"args: is of type str; use a list or tuple"),
    "arguments that are gone once read": (
        lambda: ("enqueue", Task(add, wrong(number for number in (1, 2)))), InvalidTaskError,
        r"args: is of type generator; use a list or tuple"),
    "meta that is text": (
        lambda: ("enqueue", Task(add, meta=wrong("abc"))), InvalidTaskError,
        r"meta: is of type str; use a dict"),
    "a limit that is text": (
        lambda: ("enqueue", Task(add, limit=wrong("x"))), InvalidTaskError,
        r"limit: is of type str; use Limit\(key, \.\.\.\)"),
    "an id that is a number": (
        lambda: ("enqueue", Task(add, job_id=wrong(5))), InvalidTaskError,
        r"job_id: is of type int; use text"),
    "waiting for nothing": (
        lambda: ("enqueue", Task(add, depends_on=wrong(None))), InvalidTaskError,
        r"depends_on: is of type NoneType; use a list of job ids"),
    "waiting for text": (
        lambda: ("enqueue", Task(add, depends_on="abc")), InvalidTaskError,
        r"depends_on: is of type str; use a list of job ids"),
    "waiting for a list": (
        lambda: ("enqueue", Task(add, depends_on=wrong([["a"]]))), InvalidTaskError,
        r"depends_on: is of type list; use the ids of jobs"),
    "a place that is no yes or no": (
        lambda: ("enqueue", Task(add, at_front=wrong("no"))), InvalidTaskError,
        r"at_front: is of type str; use True or False"),
    "a time-out beyond all numbers": (
        lambda: ("enqueue", Task(add, timeout=10**5000)), InvalidTaskError,
        r"timeout: is out of bounds; use whole seconds, -1 or more"),
    "a key that is a number": (
        lambda: ("enqueue", Task(add, unique=Unique(wrong(5)))), InvalidTaskError,
        r"unique\.key: is of type int; use text"),
    "a window that is text": (
        lambda: ("enqueue", Task(add, unique=Unique("k", wrong("60")))), InvalidTaskError,
        r"unique\.window: is of type str; use a number"),
    "tries that are text": (
        lambda: ("enqueue", Task(add, retry=Retry(wrong("3")))), InvalidTaskError,
        r"retry\.maximum: is of type str; use a whole number"),
    "tries that are yes": (
        lambda: ("enqueue_many", [*FEW, Task(add, retry=Retry(wrong(True)))]), InvalidTaskError,
        r"retry\.maximum: is of type bool; use a whole number"),
    "an interval that is no list": (
        lambda: ("enqueue", Task(add, retry=Retry(3, wrong(10)))), InvalidTaskError,
        r"retry\.intervals: is of type int; use a list or tuple"),
    "a callback's time-out": (
        lambda: ("enqueue", Task(add, on_success=Callback(add, wrong("5")))), InvalidTaskError,
        r"callback\.timeout: is of type str; use a whole number"),
    "a limit's key": (
        lambda: ("enqueue", Task(add, limit=Limit(wrong(5), 1))), InvalidTaskError,
        r"limit\.key: is of type int; use text"),
    "a path without an end": (
        lambda: ("enqueue", Task(add, on_success="a." + "b" * 1000)), InvalidTaskError,
        r"on_success: 1002 characters; use a path of at most 500"),
    "an interval that is text": (
        lambda: ("put_schedule", Schedule("new", Every(wrong("5m")), A)), InvalidTaskError,
        r"every: is of type str; use a number"),
    "a cron line that is none": (
        lambda: ("put_schedule", Schedule("new", Cron(wrong(None)), A)), InvalidTaskError,
        r"cron: is of type NoneType; use text"),
    "a moment that is text": (
        lambda: ("put_schedule", Schedule("new", Once(wrong("now")), A)), InvalidTaskError,
        r"at: is of type str; use a number"),
    "a schedule of no task": (
        lambda: ("put_schedule", Schedule("new", Every(60), wrong(add))), InvalidTaskError,
        r"task: is of type function; use Task\(function, \.\.\.\)"),
    "a schedule of no trigger": (
        lambda: ("put_schedule", Schedule("new", wrong("5m"), A)), InvalidTaskError,
        r"trigger: is of type str; use Cron, Every or Once"),
    "a flow of something else": (
        lambda: ("enqueue_flow", wrong(5)), InvalidTaskError,
        r"flow: int in a group; use a Task, or a flow"),
    "a flow's task with no list": (
        lambda: ("enqueue_flow", chain(A, Task(add, depends_on=wrong(None)))), InvalidTaskError,
        r"flow\[1\]\.depends_on: is of type NoneType; use a list of job ids"),
    "a flow's task with an id that is a list": (
        lambda: ("enqueue_flow", chain(A, Task(add, job_id=wrong([])))), InvalidTaskError,
        r"flow\[1\]\.job_id: is of type list; use text"),
    "a flow's id": (
        lambda: ("enqueue_flow", chain(A, B), {"flow_id": 5}), InvalidTaskError,
        r"flow_id: is of type int; use text"),
    "a flow's key": (
        lambda: ("enqueue_flow", chain(A, B), {"unique": "k"}), InvalidTaskError,
        r"unique: is of type str; use Unique\(key\)"),
    "a flow that is too large as a whole": (
        lambda: ("enqueue_flow", group(*[Task(add, (os.urandom(900),))] * 5)), TaskTooLargeError,
        LARGE_FLOW),
    "emptying without the name": (
        lambda: ("empty_queue", "default", {"confirm": "yes"}), TaskError,
        r"confirm: is not 'default'; repeat the queue's name to delete its waiting jobs"),
    "a filter that matches nothing": (
        lambda: ("carry_on_requeueing", "OPERATION"), NothingMatchesError, NOTHING),
    "no such operation": (
        lambda: ("carry_on_requeueing", "nothing"), InvalidTaskError,
        r"operation: 'nothing' is not known; start anew"),
    "a filter": (
        lambda: ("start_requeueing", "default", JobFilter(before=datetime(2026, 1, 1))),  # noqa: DTZ001
        InvalidTaskError, r"before: has no time zone; use .+"),
    "no such job": (
        lambda: ("requeue", "nobody"), TaskError,
        r"job_id: nobody is no failed job; look with failures\(\)"),
    "nothing to cancel": (
        lambda: ("cancel", "nobody"), JobMissingError,
        r"job_id: no job 'nobody'; see the list of jobs"),
    "a page": (
        lambda: ("failures", "default", {"limit": 0}), InvalidTaskError, r"limit: 0; use 1 to 500"),
}  # fmt: skip


@pytest.mark.parametrize("half", ["sync", "async"])
@pytest.mark.parametrize("case", TABLE)
def test_bad_input_leaves_no_trace(
    redis: Redis, work: Callable[..., None], case: str, half: str
) -> None:
    asked, error, said = TABLE[case]
    options: dict[str, Any] = {
        "queues": {"default", "mail"}, "max_bytes": 1000, "max_flow_bytes": 4000,
    }  # fmt: skip
    tasks = Tasks(redis, **options)
    failed = tasks.enqueue(boom)
    work()
    # There is something of each kind to be harmed.
    assert tasks.result(failed.job_id).status == "failed"
    tasks.enqueue_flow(chain(A, B), unique=Unique("there"))
    tasks.put_schedule(Schedule("there", Every(60), A))
    operation = tasks.start_requeueing("default", JobFilter(function="nothing.like.it")).operation
    before = snapshot(redis)

    async def ask_async(method: str, *args: Any, **more: Any) -> None:
        async with AsyncRedis(port=redis.connection_pool.connection_kwargs["port"]) as client:
            await getattr(AsyncTasks(client, **options), method)(*args, **more)

    def ask() -> None:
        method, *args = asked()
        more = args.pop() if isinstance(args[-1], dict) else {}
        args = [operation if each == "OPERATION" else each for each in args]
        if half == "sync":
            getattr(tasks, method)(*args, **more)
        else:
            asyncio.run(ask_async(method, *args, **more))

    with pytest.raises(error) as refused:
        ask()
    assert type(refused.value).code != TaskError.code
    assert re.fullmatch(said, str(refused.value)), str(refused.value)
    after = snapshot(redis)
    if case == "a filter that matches nothing":
        # The operation's own record says that it is done, and what it was.
        [record] = redis.keys("engineroom:requeue:*")
        assert redis.hmget(record, "state", "requeued") == [b"done", b"0"]
        before.pop(record.decode())
        after.pop(record.decode())
    assert after == before


async def through_psycopg(address: str, tasks: AsyncTasks, make: Callable[[], Any]) -> None:
    async with (
        await psycopg.AsyncConnection.connect(address) as connection,
        async_transaction(connection, tasks) as pending,
    ):
        await connection.execute(ORDER)
        pending.enqueue(make())


async def through_a_session(address: str, tasks: AsyncTasks, make: Callable[[], Any]) -> None:
    async with sqlalchemy_session(address) as session, session.begin():
        await session.execute(sqlalchemy.text(ORDER))
        enqueue_after_commit(session, tasks, make())


async def through_the_outbox(address: str, tasks: AsyncTasks, make: Callable[[], Any]) -> None:
    async with await psycopg.AsyncConnection.connect(address) as connection:
        await connection.execute(ORDER)
        made = make()
        if isinstance(made, tuple):
            await add_flow_async(connection, tasks, made[0], **made[1])
        else:
            await add_async(connection, tasks, made)


def plainly_through_psycopg(address: str, tasks: Tasks, make: Callable[[], Any]) -> None:
    with psycopg.connect(address) as connection, transaction(connection, tasks) as pending:
        connection.execute(ORDER)
        pending.enqueue(make())


def plainly_through_a_session(address: str, tasks: Tasks, make: Callable[[], Any]) -> None:
    with plain_session(address) as session, session.begin():
        session.execute(sqlalchemy.text(ORDER))
        enqueue_after_commit(session, tasks, make())


def plainly_through_the_outbox(address: str, tasks: Tasks, make: Callable[[], Any]) -> None:
    with psycopg.connect(address) as connection:
        connection.execute(ORDER)
        made = make()
        if isinstance(made, tuple):
            add_flow(connection, tasks, made[0], **made[1])
        else:
            into_outbox(connection, tasks, made)


ORDER = "INSERT INTO orders VALUES (1)"


@pytest.mark.parametrize(
    "door",
    [
        plainly_through_psycopg, plainly_through_a_session, plainly_through_the_outbox,
        through_psycopg, through_a_session, through_the_outbox,
    ],
)  # fmt: skip
def test_a_transaction_with_bad_input_does_not_commit(
    redis: Redis, address: str, database: psycopg.Connection[Any], door: Any
) -> None:
    methods = {"enqueue"} | ({"enqueue_flow"} if "outbox" in door.__name__ else set())
    options: dict[str, Any] = {
        "queues": {"default", "mail"}, "max_bytes": 1000, "max_flow_bytes": 4000,
    }  # fmt: skip
    tried = 0

    def enter(make: Callable[[], Any]) -> None:
        if asyncio.iscoroutinefunction(door):
            # Its Redis is never asked.
            asyncio.run(door(address, AsyncTasks(AsyncRedis(), **options), make))
        else:
            door(address, Tasks(redis, **options), make)

    for case, (asked, error, said) in TABLE.items():

        def make(asked: Callable[[], tuple[Any, ...]] = asked) -> Any:
            method, first, *rest = asked()
            return (first, rest[0] if rest else {}) if method == "enqueue_flow" else first

        with contextlib.suppress(InvalidTaskError):
            if asked()[0] not in methods:
                continue
        before = snapshot(redis)
        with pytest.raises(error) as refused:
            enter(make)
        assert re.fullmatch(said, str(refused.value)), (case, str(refused.value))
        assert snapshot(redis) == before, case
        left = "SELECT id FROM orders UNION ALL SELECT id FROM engineroom_outbox"
        assert not database.execute(left).fetchall(), case
        tried += 1
    assert tried > 30
