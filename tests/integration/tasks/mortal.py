"""Work that a process does, step by step, and may be killed at any of them.

A step is what goes to Redis or to PostgreSQL in one piece. The process kills itself with SIGKILL
before the nth, in the middle of sending it (half of its bytes are out), or after its answer.
"""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from redis import Connection, Redis
from redis.asyncio import Connection as AsyncConnection
from redis.asyncio import ConnectionPool as AsyncConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.connection import ConnectionPool

from engineroom.core.clock import FakeClock
from engineroom.queue import keys, recovery
from engineroom.queue.recovery import DeadWorker, RecoveryPolicy
from engineroom.tasks import (
    Every,
    JobFilter,
    Limit,
    Missed,
    Schedule,
    Scheduler,
    Task,
    Tasks,
    Unique,
    chain,
    group,
)
from engineroom.tasks.after_commit import transaction
from engineroom.tasks.enqueueing import enqueue
from engineroom.tasks.inspection import queues, requeueing
from engineroom.tasks.outbox import Relay, add, add_flow
from tests.integration.tasks.work import count

if TYPE_CHECKING:
    from collections.abc import Callable

SIDES = {"r": ("before", "torn", "after"), "s": ("before", "after")}

#: When the scenarios begin.
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Death:
    """When the process dies; ``steps`` has a letter for each that was begun, r or s (SQL).

    It is shared with whoever watches.
    """

    steps: Any
    at: int = -1
    side: str = ""
    counting: bool = False

    def begin(self, torn: Callable[[], None] | None = None) -> int:
        """A step begins; its number."""
        if not self.counting:
            return -1
        number = len(self.steps.value)
        self.steps.value += b"s" if torn is None else b"r"
        if number == self.at and self.side in ("before", "torn"):
            if self.side == "torn" and torn is not None:
                torn()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def end(self, number: int) -> None:
        """Its answer is here."""
        if self.counting and number == self.at and self.side == "after":
            os.kill(os.getpid(), signal.SIGKILL)


def _connection(death: Death) -> type[Connection]:
    class Mortal(Connection):
        number = -1

        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            data = command if isinstance(command, bytes) else b"".join(command)
            self.number = death.begin(lambda: self._sock.sendall(data[: len(data) // 2]))
            super().send_packed_command([data], check_health=False)

        def read_response(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().read_response(*args, **kwargs)
            finally:
                death.end(self.number)

    return Mortal


def _async_connection(death: Death) -> type[AsyncConnection]:
    class Mortal(AsyncConnection):
        number = -1

        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            data = command if isinstance(command, bytes) else b"".join(command)

            def torn() -> None:
                sock = self._writer.get_extra_info("socket")
                os.write(sock.fileno(), data[: len(data) // 2])

            self.number = death.begin(torn)
            await super().send_packed_command([data], check_health=False)

        async def read_response(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return await super().read_response(*args, **kwargs)
            finally:
                death.end(self.number)

    return Mortal


class Life:
    """What a scenario works with; everything goes through connections that may be its end."""

    def __init__(self, port: int, address: str, death: Death) -> None:
        self.port = port
        self.death = death
        pool = ConnectionPool(connection_class=_connection(death), port=port)
        self.redis = Redis(connection_pool=pool)
        self.redis.ping()
        self.clock = FakeClock(START)
        self.tasks = Tasks(self.redis, clock=self.clock)
        self._address = address

    def database(self) -> psycopg.Connection[Any]:
        """A connection to PostgreSQL; each round trip of it is a step."""
        death = self.death

        class Mortal(psycopg.Connection[Any]):
            def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
                number = death.begin()
                answer = super().wait(gen, *args, **kwargs)
                death.end(number)
                return answer

        counting, death.counting = death.counting, False
        connection = Mortal.connect(self._address, autocommit=True)
        death.counting = counting
        return connection

    def aside(self) -> Redis:
        """A client whose commands are no steps: for looking on."""
        return Redis(port=self.port)


# -- what is done ----------------------------------------------------------------------------------
# Each is what an application does from its start, and does again when it is started again.


def batch(life: Life) -> None:
    """Plain jobs and unique ones, in transactions of four."""
    enqueue.CHUNK = 4
    many = [Task(count, (f"plain-{at}",)) for at in range(6)]
    many[1:1] = [
        Task(count, (f"unique-{at}",), unique=Unique(f"k{at}"), at_front=at == 2) for at in range(4)
    ]
    life.tasks.enqueue_many(many)


def one(life: Life) -> None:
    """One job, unique and plain."""
    life.tasks.enqueue(Task(count, ("unique-1",), unique=Unique("k")))
    life.tasks.enqueue(count, "plain-1")


def flow(life: Life) -> None:
    """A flow that is unique and one that is not."""
    for name, unique in (("unique", Unique("k")), ("plain", None)):
        parts = [Task(count, (f"{name}-{at}",)) for at in range(4)]
        life.tasks.enqueue_flow(chain(parts[0], group(*parts[1:3]), parts[3]), unique=unique)


def cancel(life: Life) -> None:
    """A flow is cancelled."""
    life.tasks.cancel("f-0")


def outbox(life: Life) -> None:
    """Two orders, each with jobs and a flow, and the relay; the jobs leave nothing behind."""

    def task(name: str, unique: Unique | None = None) -> Task:
        return Task(count, (name,), unique=unique, result_ttl=0)

    with life.database() as connection:
        for order in range(2):
            with connection.transaction():
                done = connection.execute(
                    "INSERT INTO orders VALUES (%s) ON CONFLICT DO NOTHING RETURNING id", (order,)
                ).fetchone()
                if done is None:
                    continue
                add(connection, life.tasks, task(f"plain-{order}"))
                add(connection, life.tasks, task(f"unique-{order}", Unique(f"o{order}")))
                parts = [task(f"flow-{order}-{at}") for at in range(3)]
                add_flow(connection, life.tasks, chain(parts[0], group(*parts[1:])))
        while Relay(connection, life.redis, life.clock).once():
            pass


def after_commit(life: Life) -> None:
    """An order whose job is enqueued after the commit."""
    with life.database() as connection:
        if connection.execute("SELECT 1 FROM orders").fetchone():
            return
        with transaction(connection, life.tasks) as pending:
            connection.execute("INSERT INTO orders VALUES (1)")
            pending.enqueue(Task(count, ("plain-1",)))


def scheduler(life: Life) -> None:
    """Three schedules; two of them are due, one of these for the third time."""
    for name, every, missed in (
        ("often", 10, Missed.RUN_ALL), ("seldom", 30, Missed.RUN_ONCE), ("later", 500, Missed.SKIP),
    ):  # fmt: skip
        trigger = Every(every, start=START.timestamp())
        task = Task(count, (f"plain-{name}",))
        life.tasks.put_schedule(Schedule(name, trigger, task, missed))
    life.clock.advance(35)
    loop = Scheduler(life.redis, life.clock)
    loop.once()
    loop.once()


def requeue(life: Life) -> None:
    """All failed jobs of a function are put back, by an operation that is carried on."""
    requeueing.STEP = 2
    tasks = Tasks(life.redis)
    known = sorted(life.aside().keys("engineroom:requeue:*"))
    operation = known[0].decode().rpartition(":")[2] if known else ""
    if not known:
        operation = tasks.start_requeueing("default", JobFilter(function="*.second_time")).operation
    tasks.carry_on_requeueing(operation)


def move(life: Life) -> None:
    """What waits goes to another queue."""
    queues.STEP = 2
    life.tasks.move_jobs("default", "other")


def empty(life: Life) -> None:
    """What waits is deleted."""
    queues.STEP = 2
    life.tasks.empty_queue("default", confirm="default")


def recover(life: Life) -> None:
    """The operator settles what two dead workers held, and a job that nobody started."""

    async def settle() -> None:
        death = life.death
        pool = AsyncConnectionPool(connection_class=_async_connection(death), port=life.port)
        async with AsyncRedis(connection_pool=pool) as client:
            counting, death.counting = death.counting, False
            await client.ping()
            death.counting = counting
            for worker in ("w1", "w2"):
                beat = life.aside().hget(f"rq:worker:{worker}", "last_heartbeat")
                at = datetime.fromisoformat(beat.decode()).timestamp() if beat else None
                gone = DeadWorker(worker, "apps/mail", at, ("default",))
                await recovery.recover(client, gone, RecoveryPolicy(), START.timestamp())
            for wait in (0, 60):
                at = START.timestamp() + wait
                await recovery.return_strays(client, ["default"], at)

    asyncio.run(settle())


def play(scenario: str, port: int, address: str, steps: Any, at: int, side: str) -> None:
    """The life of one process."""
    death = Death(steps, at, side)
    life = Life(port, address, death)
    death.counting = True
    globals()[scenario](life)
    death.counting = False


# -- what there is before --------------------------------------------------------------------------


def prepare(scenario: str, redis: Redis) -> None:
    """What the scenario finds."""
    tasks = Tasks(redis)
    if scenario in ("move", "empty"):
        tasks.enqueue_many([Task(count, (f"plain-{at}",)) for at in range(5)])
    if scenario == "empty":
        tasks.enqueue_flow(chain(*[Task(count, ("plain-flow",))] * 3), flow_id="emptied")
        _set_aside(redis, tasks)
    if scenario == "cancel":
        parts = [Task(count, (f"plain-{at}",)) for at in range(4)]
        tasks.enqueue_flow(chain(parts[0], parts[1], group(*parts[2:])), flow_id="f")
    if scenario == "recover":
        _orphans(redis, tasks)


def _set_aside(redis: Redis, tasks: Tasks) -> None:
    """Jobs that the limit of their key keeps out of the queue, one of them with another after it.

    As a worker's script leaves them.
    """
    limited = Task(count, ("plain-aside",), limit=Limit("k", 1))
    held = [tasks.enqueue(limited).job_id for _ in range(2)]
    held.append(tasks.enqueue_flow(chain(limited, limited), flow_id="aside").jobs[0].job_id)
    for job in held:
        redis.lrem("rq:queue:default", 1, job)
        redis.hset(keys.job(job), "er_held", redis.hget(keys.job(job), "enqueued_at"))
        redis.rpush(keys.held("default", "k"), job)
    redis.zadd(keys.limited("default"), {"k": 0})


def _orphans(redis: Redis, tasks: Tasks) -> None:
    """Jobs of workers that died: one was to be tried again, one not, one was never started."""
    beat = (START - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    for at, worker in enumerate(("w1", "w2")):
        job = tasks.enqueue(Task(count, (f"plain-{worker}",))).job_id
        redis.lrem("rq:queue:default", 1, job)
        fields = {"status": "started", "worker_name": worker, "retries_left": 1 - at}
        redis.hset(f"rq:job:{job}", mapping=fields)
        redis.zadd("rq:wip:default", {f"{job}:x": START.timestamp() + 60})
        redis.hset(
            f"rq:worker:{worker}",
            mapping={
                "last_heartbeat": beat, "er_job": job, "er_execution": "x", "er_queue": "default",
            },
        )  # fmt: skip
        redis.sadd("rq:workers", f"rq:worker:{worker}")
    stray = tasks.enqueue(count, "plain-stray").job_id
    redis.lrem("rq:queue:default", 1, stray)
    redis.rpush("rq:queue:default:intermediate", stray)
