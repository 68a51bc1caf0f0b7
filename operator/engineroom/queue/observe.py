"""Seeing queues and workers in Redis: reads only, batched, without RQ's counting methods.

RQ's registries clean up as they count, and so write and call users' callbacks; this module reads
the keys instead. All looks that are asked for in one turn of the event loop travel in one pipeline.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import RedisError

from engineroom.core.errors import MeasurementError
from engineroom.queue import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from redis.asyncio import Redis

    from engineroom.core.clock import Clock

_T = TypeVar("_T")

#: A look that takes longer than this counts as failed (seconds).
LOOK_TIMEOUT = 3.0
#: Keys in one EXISTS; a command stays well under a millisecond in Redis.
EXISTS_CHUNK = 400
#: Looks in one pipeline; bounds how long one reply is parsed without yielding.
PIPELINE_CHUNK = 200


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """One queue at one moment. Counts are jobs, times are Unix seconds, totals grow for ever."""

    name: str
    waiting: int = 0
    intermediate: int = 0
    running: int = 0
    due: int = 0
    scheduled: int = 0
    #: Failed by recovery; their callbacks and dependents wait for a living worker.
    unsettled: int = 0
    failed: int = 0
    #: When a scheduled job is due or a limit may have room, whichever comes first.
    next_due: float | None = None
    oldest_enqueued: float | None = None
    finished_total: int = 0
    failed_total: int = 0
    busy_ms_total: int = 0
    wait_ms_total: int = 0
    #: No worker takes a job from it until it is resumed.
    paused: bool = False
    #: Limit keys with jobs set aside, and those of them that may have room: a job each.
    limited_keys: int = 0
    ready_keys: int = 0
    #: The queue's own limits: jobs at once, jobs that begin in a second, and of those at once.
    concurrency: int | None = None
    rate: float | None = None
    burst: int | None = None

    @property
    def backlog(self) -> int:
        """What waits for a worker: listed, taken but not started, due, or to be settled.

        Of a paused queue only what is to be settled: no worker could do anything about the rest.
        Nor of what a limit holds back: beyond the queue's concurrency nothing counts, and of jobs
        that are set aside one for each key that may have room.
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
    """One worker as it described itself; times are Unix seconds, memory is bytes."""

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
    #: When a process of its pod was last killed for memory, and the limit then in bytes (0: none).
    killed_at: float | None = None
    killed_limit: int = 0
    #: Seconds that its job may run; None without a job, or without such a bound.
    job_timeout: float | None = None
    #: Cores in use, work horse included, since it weighed itself before; None: not said.
    cpu: float | None = None

    @property
    def busy(self) -> bool:
        """Whether it holds a job; a worker that is between states counts as busy."""
        return bool(self.job) or bool(self.execution) or self.state == "busy"

    @property
    def slot(self) -> str:
        """Which of the pod's worker processes this is."""
        return self.name.rsplit(".", 2)[-2] if self.name.count(".") >= 2 else ""


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """All that one look told about one pool."""

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
        """Nothing waits, runs or is scheduled, and no worker is registered."""
        return not self.workers and all(
            queue.demand == 0 and queue.scheduled == 0 and queue.limited_keys == 0
            for queue in self.queues
        )


@dataclass(slots=True)
class _Ask:
    pool: str
    queues: tuple[str, ...]
    future: asyncio.Future[PoolFacts]


class Observer:
    """Looks at pools on one Redis; looks asked for together share a pipeline."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        self._redis = redis
        self._clock = clock
        self._asks: list[_Ask] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def look(self, pool: str, queues: Sequence[str]) -> PoolFacts:
        """Everything about the pool ``namespace/name`` and its queues, now.

        Raises MeasurementError when Redis does not answer in time or with an error.
        """
        ask = _Ask(pool, tuple(queues), asyncio.get_running_loop().create_future())
        self._asks.append(ask)
        if len(self._asks) == 1:
            task = asyncio.create_task(self._flush())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await ask.future

    async def quiet(self, queues: Iterable[str]) -> set[str]:
        """Those of ``queues`` on which nothing waits, runs or is scheduled.

        Costs one EXISTS for a hundred queues as long as all are quiet, which is what makes ten
        thousand idle pools cheap. Raises MeasurementError.
        """
        names = list(dict.fromkeys(queues))
        quiet: set[str] = set()
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                for chunk in _chunks(names, EXISTS_CHUNK // len(_LIVE_KEYS)):
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

    async def _flush(self) -> None:
        asks, self._asks = self._asks, []
        for chunk in _chunks(asks, PIPELINE_CHUNK):
            try:
                async with asyncio.timeout(LOOK_TIMEOUT):
                    answers = await self._read(chunk)
            except (RedisError, OSError, TimeoutError) as error:
                for ask in chunk:
                    if not ask.future.done():
                        failure = MeasurementError(describe(error))
                        failure.__cause__ = error
                        ask.future.set_exception(failure)
            except BaseException as error:
                for ask in chunk:
                    if not ask.future.done():
                        ask.future.set_exception(error)
                raise
            else:
                for ask, facts in zip(chunk, answers, strict=True):
                    if not ask.future.done():
                        ask.future.set_result(facts)

    async def _read(self, asks: Sequence[_Ask]) -> list[PoolFacts]:
        at = self._clock.now().timestamp()
        names = list(dict.fromkeys(name for ask in asks for name in ask.queues))
        # A script each, so that what one answer leads to is read without another round trip:
        # between a job and its first worker every one of them counts.
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            its_keys = _keys(_QUEUE_KEYS, name)
            pipeline.eval(_LOOK_AT_QUEUE, len(its_keys), *its_keys, *_STATS, repr(at))
        for ask in asks:
            its_keys = [keys.pool_workers(ask.pool), keys.pool_suspended(ask.pool)]
            pipeline.eval(_LOOK_AT_POOL, len(its_keys), *its_keys, *_WORKER)
        replies = await pipeline.execute()

        facts = {name: _queue(name, row, at) for name, row in zip(names, replies, strict=False)}
        return [
            PoolFacts(
                at=at,
                queues=tuple(facts[name] for name in ask.queues),
                workers=tuple(sorted(map(_worker, workers), key=lambda worker: worker.name)),
                suspended=bool(suspended),
            )
            for ask, (suspended, workers) in zip(asks, replies[len(names) :], strict=True)
        ]


_STATS = ("finished", "failed", "busy_ms", "wait_ms")
_WORKER = (
    "er_pod", "er_pod_uid", "state", "er_job", "er_execution", "er_queue", "er_job_started",
    "er_drain", "er_drain_id", "last_heartbeat", "birth", "er_memory", "er_version",
    "er_oom_at", "er_oom_limit", "er_job_timeout", "er_cpu",
)  # fmt: skip
#: One of these is there as long as anything waits, runs or is scheduled.
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


def _keys(kinds: Iterable[Callable[[str], str]], queue: str) -> list[str]:
    return [kind(queue) for kind in kinds]


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
    name, row = _text(reply[0]), reply[1]
    if all(value is None for value in row):
        # Only the name is left: the hash expired. Kept, so that whoever asks can prune it.
        return WorkerFacts(name=name, pod=name.rsplit(".", 2)[0], state="expired")
    text = [_text(value) if value is not None else "" for value in row]
    return WorkerFacts(
        name=name,
        pod=text[0],
        pod_uid=text[1],
        state=text[2],
        job=text[3],
        execution=text[4],
        queue=text[5],
        job_started=float(text[6]) if text[6] else None,
        drain=text[7],
        drain_id=text[8],
        heartbeat=_time(row[9]),
        birth=_time(row[10]),
        memory=int(text[11] or 0),
        version=text[12],
        killed_at=float(text[13]) if text[13] else None,
        killed_limit=int(text[14] or 0),
        job_timeout=float(text[15]) if text[15] and float(text[15]) > 0 else None,
        cpu=float(text[16]) if text[16] else None,
    )


def _time(value: bytes | str | None) -> float | None:
    """RQ's `2026-01-31T12:00:00.000000Z` as Unix seconds; None when absent or not a time."""
    if not value:
        return None
    try:
        moment = datetime.fromisoformat(_text(value))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def describe(error: BaseException) -> str:
    """One line for people about a failed call to Redis, without the URL's credentials."""
    if isinstance(error, TimeoutError):
        return f"Redis did not answer within {LOOK_TIMEOUT:g} s"
    return f"{type(error).__name__}: {str(error)[:200]}"
