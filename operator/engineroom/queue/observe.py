"""Observation of queues and workers in Redis, read-only and in batches.

RQ's registries clean up while they count, which writes to Redis and calls users' callbacks. This
module reads the keys instead. All reads that start in one turn of the event loop share a pipeline.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from engineroom.core.errors import MeasurementError
from engineroom.core.redis_replies import text
from engineroom.queue import keys
from engineroom.queue.shared_calls import LOOK_TIMEOUT, SharedCalls, chunks, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis.asyncio import Redis

    from engineroom.core.clock import Clock

#: Keys in one EXISTS command, which takes Redis well under a millisecond.
EXISTS_CHUNK = 400
#: Looks in one pipeline; bounds the time of parsing the reply, which blocks the event loop.
PIPELINE_CHUNK = 200


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """One queue at one moment. Counts are jobs, times are Unix seconds, totals only grow."""

    name: str
    waiting: int = 0
    intermediate: int = 0
    running: int = 0
    due: int = 0
    scheduled: int = 0
    #: Jobs that recovery failed, whose callbacks and dependents a worker has to run.
    unsettled: int = 0
    failed: int = 0
    #: The next time at which a scheduled job is due or a limit may have room.
    next_due: float | None = None
    oldest_enqueued: float | None = None
    finished_total: int = 0
    failed_total: int = 0
    busy_ms_total: int = 0
    wait_ms_total: int = 0
    #: Whether workers take no jobs from it.
    paused: bool = False
    #: Number of limit keys with held jobs, and of those keys that may have room for a job.
    limited_keys: int = 0
    ready_keys: int = 0
    #: The queue's own limits: concurrent jobs, jobs that start per second, and the burst.
    concurrency: int | None = None
    rate: float | None = None
    burst: int | None = None

    @property
    def backlog(self) -> int:
        """The jobs that a worker could handle now: waiting, taken but not started, due, unsettled.

        A paused queue counts unsettled jobs only. Jobs beyond the queue's concurrency do not count,
        and held jobs count one for each limit key that may have room.
        """
        if self.paused:
            return self.unsettled
        waiting = self.waiting + self.intermediate + self.due + self.ready_keys
        if self.concurrency is not None:
            waiting = min(waiting, max(0, self.concurrency - self.running))
        return waiting + self.unsettled

    @property
    def demand(self) -> int:
        """Backlog and running jobs together."""
        return self.backlog + self.running


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """A worker's record; times are Unix seconds, memory is bytes."""

    name: str
    pod: str = ""
    pod_uid: str = ""
    state: str = ""
    job: str = ""
    execution: str = ""
    queue: str = ""
    job_started: float | None = None
    drain: str = ""
    drain_id: str = ""
    heartbeat: float | None = None
    birth: float | None = None
    memory: int = 0
    version: str = ""
    #: Time of the last kill for memory in its pod, and the limit then in bytes (0: none).
    killed_at: float | None = None
    killed_limit: int = 0
    #: Timeout of its job in seconds; None without a job or a timeout.
    job_timeout: float | None = None
    #: Cores in use, including the work horse, since the last measurement; None if unknown.
    cpu: float | None = None

    @property
    def busy(self) -> bool:
        """True if it holds a job; a worker between states counts as busy."""
        return bool(self.job) or bool(self.execution) or self.state == "busy"

    @property
    def slot(self) -> str:
        """The number of the worker process in its pod."""
        return self.name.rsplit(".", 2)[-2] if self.name.count(".") >= 2 else ""


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """The result of one observation of a pool."""

    at: float
    queues: tuple[QueueFacts, ...]
    workers: tuple[WorkerFacts, ...] = ()
    suspended: bool = False

    @property
    def backlog(self) -> int:
        """Jobs that wait in any of the pool's queues."""
        return sum(queue.backlog for queue in self.queues)

    @property
    def running(self) -> int:
        """Jobs in execution on the pool's queues, by any worker."""
        return sum(queue.running for queue in self.queues)

    @property
    def quiet(self) -> bool:
        """True if nothing waits, runs or is scheduled, and no worker is registered."""
        return not self.workers and all(
            queue.demand == 0 and queue.scheduled == 0 and queue.limited_keys == 0
            for queue in self.queues
        )


@dataclass(frozen=True, slots=True)
class _Request:
    pool: str
    queues: tuple[str, ...]


class Observer:
    """Observes pools on one Redis; concurrent observations share a pipeline."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        self._redis = redis
        self._clock = clock
        self._calls = SharedCalls(self._read, PIPELINE_CHUNK)

    async def observe(self, pool: str, queues: Sequence[str]) -> PoolFacts:
        """Return the present state of the pool ``namespace/name`` and its queues.

        Raises MeasurementError if Redis does not answer in time or answers with an error.
        """
        return await self._calls.submit(_Request(pool, tuple(queues)))

    async def quiet(self, queues: Iterable[str]) -> set[str]:
        """Return the queues on which nothing waits, runs or is scheduled.

        One EXISTS command checks about a hundred queues if all are quiet, which keeps ten thousand
        idle pools cheap. Raises MeasurementError.
        """
        names = list(dict.fromkeys(queues))
        quiet: set[str] = set()
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                for chunk in chunks(names, EXISTS_CHUNK // len(_LIVE_KEYS)):
                    live = [key for name in chunk for key in _keys(_LIVE_KEYS, name)]
                    if not await self._redis.exists(*live):
                        quiet.update(chunk)
                        continue
                    pipeline = self._redis.pipeline(transaction=False)
                    for name in chunk:
                        pipeline.exists(*_keys(_LIVE_KEYS, name))
                    quiet.update(
                        name
                        for name, count in zip(chunk, await pipeline.execute(), strict=True)
                        if count == 0
                    )
        except (RedisError, OSError, TimeoutError) as error:
            raise MeasurementError(describe(error)) from error
        return quiet

    async def _read(self, requests: Sequence[_Request]) -> list[PoolFacts]:
        at = self._clock.now().timestamp()
        names = list(dict.fromkeys(name for request in requests for name in request.queues))
        # Scripts avoid a second round trip for values that depend on the first: each round trip
        # delays a pool's first worker.
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            its_keys = _keys(_QUEUE_KEYS, name)
            pipeline.eval(_LOOK_AT_QUEUE, len(its_keys), *its_keys, *_STATS, repr(at))
        for request in requests:
            its_keys = [keys.pool_workers(request.pool), keys.pool_suspended(request.pool)]
            pipeline.eval(_LOOK_AT_POOL, len(its_keys), *its_keys, *_WORKER)
        replies = await pipeline.execute()

        facts = {name: _queue(name, row, at) for name, row in zip(names, replies, strict=False)}
        return [
            PoolFacts(
                at=at,
                queues=tuple(facts[name] for name in request.queues),
                workers=tuple(sorted(map(_worker, workers), key=lambda worker: worker.name)),
                suspended=bool(suspended),
            )
            for request, (suspended, workers) in zip(requests, replies[len(names) :], strict=True)
        ]


_STATS = ("finished", "failed", "busy_ms", "wait_ms")
_WORKER = (
    "er_pod", "er_pod_uid", "state", "er_job", "er_execution", "er_queue", "er_job_started",
    "er_drain", "er_drain_id", "last_heartbeat", "birth", "er_memory", "er_version",
    "er_oom_at", "er_oom_limit", "er_job_timeout", "er_cpu",
)  # fmt: skip
#: At least one of these keys exists while anything waits, runs or is scheduled.
_LIVE_KEYS = (
    keys.queue, keys.intermediate, keys.started, keys.scheduled, keys.settle, keys.limited,
)  # fmt: skip
_QUEUE_KEYS = (*_LIVE_KEYS, keys.failed, keys.stats, keys.paused, keys.limit)

_LOOK_AT_QUEUE = """
local queue, intermediate, started, scheduled, settle, limited, failed, stats, paused, limit =
  unpack(KEYS)
local at = table.remove(ARGV)
local head, enqueued = redis.call('LINDEX', queue, 0), false
if head then enqueued = redis.call('HGET', 'rq:job:' .. head, 'enqueued_at') end
return {
  redis.call('LLEN', queue), redis.call('LLEN', intermediate),
  redis.call('ZCOUNT', started, at, '+inf'), redis.call('ZCOUNT', scheduled, '-inf', at),
  redis.call('ZCARD', scheduled), redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES'),
  redis.call('ZCARD', failed), redis.call('LLEN', settle), enqueued,
  redis.call('HMGET', stats, unpack(ARGV)), redis.call('EXISTS', paused),
  redis.call('ZCARD', limited), redis.call('ZCOUNT', limited, '-inf', at),
  redis.call('ZRANGEBYSCORE', limited, '(' .. at, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2] or '',
  redis.call('HMGET', limit, 'concurrency', 'count', 'ms')
}
"""

_LOOK_AT_POOL = """
local workers = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  workers[#workers + 1] = {name, redis.call('HMGET', 'rq:worker:' .. name, unpack(ARGV))}
end
return {redis.call('EXISTS', KEYS[2]), workers}
"""


def _keys(key_functions: Iterable[Callable[[str], str]], queue: str) -> list[str]:
    return [key_of(queue) for key_of in key_functions]


def _queue(name: str, row: Sequence[Any], at: float) -> QueueFacts:
    (*row, paused, limited, ready, room, limit) = row
    concurrency, count, milliseconds = (None if value is None else int(value) for value in limit)
    waiting, intermediate, running, due, scheduled, head, failed, unsettled, oldest, stats = row
    finished, failures, busy, wait = (int(value or 0) for value in stats)
    moments = [float(moment) for moment in (*head[1:], room) if moment]
    next_due = min((moment for moment in moments if moment > at), default=None)
    return QueueFacts(
        name=name,
        waiting=waiting,
        intermediate=intermediate,
        running=running,
        due=due,
        scheduled=scheduled,
        unsettled=unsettled,
        failed=failed,
        next_due=next_due,
        oldest_enqueued=_time(oldest),
        finished_total=finished,
        failed_total=failures,
        busy_ms_total=busy,
        wait_ms_total=wait,
        paused=bool(paused),
        limited_keys=limited,
        ready_keys=ready,
        concurrency=concurrency,
        rate=count * 1000 / milliseconds if count and milliseconds else None,
        burst=count,
    )


def _worker(reply: tuple[bytes, Sequence[bytes | None]]) -> WorkerFacts:
    name, row = text(reply[0]), reply[1]
    if all(value is None for value in row):
        # The hash has expired. The worker is still returned, so that the caller can remove it.
        return WorkerFacts(name=name, pod=name.rsplit(".", 2)[0], state="expired")
    fields = [text(value) for value in row]
    return WorkerFacts(
        name=name,
        pod=fields[0],
        pod_uid=fields[1],
        state=fields[2],
        job=fields[3],
        execution=fields[4],
        queue=fields[5],
        job_started=float(fields[6]) if fields[6] else None,
        drain=fields[7],
        drain_id=fields[8],
        heartbeat=_time(row[9]),
        birth=_time(row[10]),
        memory=int(fields[11] or 0),
        version=fields[12],
        killed_at=float(fields[13]) if fields[13] else None,
        killed_limit=int(fields[14] or 0),
        job_timeout=float(fields[15]) if fields[15] and float(fields[15]) > 0 else None,
        cpu=float(fields[16]) if fields[16] else None,
    )


def _time(value: bytes | str | None) -> float | None:
    """Return RQ's timestamp in Unix seconds; None if absent or invalid."""
    if not value:
        return None
    try:
        moment = datetime.fromisoformat(text(value))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
