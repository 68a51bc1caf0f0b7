"""Bulk changes of jobs: noted in Redis first, then done step by step by whichever replica is there.

An operation is open until its record says otherwise. Whoever holds its lease goes on with it; a
replica that died left a place to go on from, and a step that is done twice changes nothing twice.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from engineroom.core.error_translation import wrapped
from engineroom.core.errors import Category, DependencyError, EngineroomError
from engineroom.core.logging import get_logger
from engineroom.core.sealing import Sealer, log_broken
from engineroom.tasks.errors import NothingMatchesError
from engineroom.tasks.inspection import failures
from engineroom.tasks.inspection.failures import Where
from engineroom.tasks.inspection.jobs import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from engineroom.core.clock import Clock
    from engineroom.tasks.client import AsyncTasks
    from engineroom.tasks.inspection.failures import Requeueing

log = get_logger(__name__)

#: Seconds for which an operation is known after its last step.
KEPT = 7 * 86_400
#: Seconds for which a replica has an operation, and between two of its renewals.
LEASE, RENEW = 15.0, 5.0
#: Operations that one replica works at.
AT_ONCE = 4
#: Jobs that are looked up before they are cancelled, and cancelled between two notes of the place.
ROUND, STEP = 20_000, 50
#: Operations of a namespace that are listed; older ones are known by their id.
LISTED = 1_000

#: What of a record is sealed: all but how far it is.
_SEALED = (
    "namespace", "action", "state", "queues", "allowed", "where", "by", "started", "total",
    "stop",
)  # fmt: skip
_PREFIX = "engineroom:console:operation"
_OPEN = f"{_PREFIX}s:open"


class Action(StrEnum):
    """What is done to the jobs."""

    RETRY = "retry"
    CANCEL = "cancel"


class Status(StrEnum):
    """How an operation is."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Operation:
    """A bulk change and how far it is. ``started`` is Unix seconds.

    ``total`` is how many jobs matched when it began, as far as they were counted; ``done`` how many
    were changed so far, ``skipped`` how many were not as they had been.
    """

    id: str
    namespace: str
    action: Action
    state: State
    queues: tuple[str, ...]
    where: Where
    by: str
    started: float
    total: int
    #: Queues that may be touched besides, where jobs hang on each other.
    allowed: tuple[str, ...] = ()
    stop: bool = False
    status: Status = Status.RUNNING
    done: int = 0
    skipped: int = 0
    problem: str = ""


class _HaltedError(Exception):
    """Ends the work at an operation that was stopped or is another's; control flow only."""


class Operations:
    """The operations of an installation; what each is to do, and for whom, is sealed."""

    def __init__(
        self,
        redis: Redis,
        tasks: AsyncTasks,
        clock: Clock,
        secret: bytes,
        *,
        on_broken: Callable[[str, str], None] = log_broken,
        on_end: Callable[[Operation], Awaitable[None]] | None = None,
    ) -> None:
        """``secret``, of at least 32 bytes, seals them; see ``Sealer`` for ``on_broken``.

        ``on_end`` is told how an operation ends, before that is noted: of a replica that dies just
        then, a second time by the one that goes on. Of one that is stopped it is not.
        """
        self._redis = redis
        self._tasks = tasks
        self._clock = clock
        self._sealer = Sealer(secret, "operation", on_broken)
        self._on_end = on_end
        self._who = secrets.token_hex(8)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self._start = redis.register_script(_START)
        self._stop = redis.register_script(_STOP)
        self._end = redis.register_script(_END)
        self._hold = redis.register_script(_HOLD)
        self._note = redis.register_script(_NOTE)

    @property
    def working(self) -> int:
        """How many operations this replica is at."""
        return len(self._running)

    # -- asked for ---------------------------------------------------------------------------------

    async def start(self, operation: Operation) -> Operation:
        """Note it down; done it is in the background. Of an id that is known: that one.

        Raises DependencyError.
        """
        said = {
            "namespace": operation.namespace,
            "action": operation.action.value,
            "state": operation.state.value,
            "queues": json.dumps(operation.queues),
            "allowed": json.dumps(operation.allowed),
            "where": operation.where.dumps(),
            "by": operation.by,
            "started": repr(operation.started),
            "total": str(operation.total),
            "stop": str(int(operation.stop)),
        }
        seal = self._sealer.seal_fields(_key(operation.id), said)
        whole = {**said, "seal": seal, "status": Status.RUNNING.value}
        words = [word for pair in whole.items() for word in pair]
        keys = [_key(operation.id), _OPEN, _index(operation.namespace)]
        with wrapped("operations.start"):
            arguments: list[str | int] = [
                operation.id,
                KEPT,
                LISTED,
                repr(operation.started),
                *words,
            ]
            await self._start(keys=keys, args=arguments)
        self._news.set()
        found = await self.get(operation.id)
        if found is None:
            raise DependencyError("operation: Redis does not have what was just written; try again")
        return found

    async def get(self, operation: str) -> Operation | None:
        """One operation, or None; one that was made up is none. Raises DependencyError."""
        with wrapped("operations.get"):
            said = await self._redis.hgetall(_key(operation))
            known = {_text(name): _text(value) for name, value in said.items()}
            sealed = {name: known[name] for name in _SEALED if name in known}
            if "status" not in known or not self._sealer.fields_hold(
                known.get("seal", ""), _key(operation), sealed
            ):
                return None
            done, skipped = int(known.get("done", 0)), int(known.get("skipped", 0))
            parts = [v for n, v in known.items() if n.startswith("part:")]
            for part in parts:
                row = await self._redis.hmget(failures.operation_key(part), "requeued", "skipped")
                done, skipped = done + int(row[0] or 0), skipped + int(row[1] or 0)
        return Operation(
            id=operation,
            namespace=known["namespace"],
            action=Action(known["action"]),
            state=State(known["state"]),
            queues=tuple(json.loads(known["queues"])),
            allowed=tuple(json.loads(known.get("allowed", "[]"))),
            where=Where.loads(known["where"]),
            by=known["by"],
            started=float(known["started"]),
            total=int(known["total"]),
            stop=known["stop"] == "1",
            status=Status(known["status"]),
            done=done,
            skipped=skipped,
            problem=known.get("problem", ""),
        )

    async def list(self, namespace: str, after: str, limit: int) -> list[Operation]:
        """Operations of the namespace beyond the one named ``after``, the newest first."""
        with wrapped("operations.list"):
            index, start = _index(namespace), 0
            if after:
                rank = await self._redis.zrevrank(index, after)
                if rank is None:
                    return []
                start = int(str(rank)) + 1
            ids = await self._redis.zrevrange(index, start, start + limit - 1)
        found = [await self.get(_text(each)) for each in ids]
        return [each for each in found if each is not None]

    async def stop(self, operation: str) -> bool:
        """End it after its step; what is done stays done. False if it had ended."""
        with wrapped("operations.stop"):
            return bool(await self._stop(keys=[_key(operation), _OPEN], args=[operation, KEPT]))

    # -- done --------------------------------------------------------------------------------------

    async def run(self, stopping: asyncio.Event, every: float = 2.0) -> None:
        """Go on with what is open until ``stopping``; waits through outages of Redis."""
        try:
            while not stopping.is_set():
                try:
                    await self._look()
                except EngineroomError as error:
                    log.warning("operations not looked at", code=error.code, error=str(error))
                self._news.clear()
                waits = [asyncio.create_task(each.wait()) for each in (stopping, self._news)]
                await asyncio.wait(waits, timeout=every, return_when=asyncio.FIRST_COMPLETED)
                for each in waits:
                    each.cancel()
        finally:
            for task in self._running.values():
                task.cancel()
            if self._running:
                await asyncio.wait(self._running.values())

    async def _look(self) -> None:
        with wrapped("operations.open"):
            ids = [_text(each) for each in await self._redis.zrange(_OPEN, 0, 99)]
        for each in ids:
            if each in self._running or len(self._running) >= AT_ONCE:
                continue
            task = asyncio.create_task(self._work(each), name=f"operation {each}")
            self._running[each] = task
            task.add_done_callback(partial(self._ended, each))

    def _ended(self, operation: str, _task: asyncio.Task[None]) -> None:
        self._running.pop(operation, None)

    async def _work(self, operation: str) -> None:
        """Take the lease and go on until it is done, stopped, lost, or Redis is away."""
        try:
            if not await self._held(operation):
                return
            halted = asyncio.Event()
            keeper = asyncio.create_task(self._keep(operation, halted))
            try:
                await self._do(operation, halted)
            finally:
                keeper.cancel()
                with wrapped("operations.leave"):
                    await self._hold(keys=[_lease(operation), _key(operation)],
                                     args=[self._who, 0])  # fmt: skip
        except _HaltedError:
            log.info("an operation was stopped or taken over", operation=operation)
        except EngineroomError as error:
            log.warning("an operation waits", operation=operation, code=error.code,
                        error=str(error))  # fmt: skip
        except Exception:
            log.exception("an operation failed in a way it should not", operation=operation)

    async def _keep(self, operation: str, halted: asyncio.Event) -> None:
        while True:
            await asyncio.sleep(RENEW)
            try:
                if await self._held(operation):
                    continue
            except EngineroomError as error:
                log.warning("a lease was not renewed", operation=operation, error=str(error))
            halted.set()
            return

    async def _held(self, operation: str) -> bool:
        with wrapped("operations.lease"):
            keys = [_lease(operation), _key(operation)]
            return bool(await self._hold(keys=keys, args=[self._who, round(LEASE * 1000)]))

    async def _do(self, operation: str, halted: asyncio.Event) -> None:
        known = await self.get(operation)
        if known is None:
            await self._finish(operation, Status.STOPPED, "")
            return
        try:
            for queue in known.queues:
                if known.action is Action.RETRY:
                    await self._retry(known, queue, halted)
                else:
                    await self._cancel(known, queue, halted)
        except EngineroomError as error:
            if error.retryable or error.category in (Category.DEPENDENCY, Category.TRANSIENT):
                raise
            await self._finish(operation, Status.FAILED, f"{error.code}: {error}"[:500])
            return
        await self._finish(operation, Status.DONE, "")

    async def _finish(self, operation: str, status: Status, problem: str) -> None:
        known = None if self._on_end is None else await self.get(operation)
        if self._on_end is not None and known is not None and known.status is Status.RUNNING:
            await self._on_end(replace(known, status=status, problem=problem))
        with wrapped("operations.end"):
            arguments = [operation, status.value, problem, KEPT]
            await self._end(keys=[_key(operation), _OPEN], args=arguments)

    async def _retry(self, known: Operation, queue: str, halted: asyncio.Event) -> None:
        """The queue's failed jobs, by an operation of ``tasks.failures``, resumable by itself."""
        key, field = _key(known.id), f"part:{queue}"
        with wrapped("operations.part"):
            part = _text(await self._redis.hget(key, field))
        if not part:
            # Killed here, a part was noted that nobody begins and that expires.
            made = await self._tasks.start_requeueing(queue, known.where)
            with wrapped("operations.part"):
                await self._redis.hsetnx(key, field, made.operation)
                part = _text(await self._redis.hget(key, field))

        def told(_: Requeueing) -> None:
            _go_on(halted)

        try:
            await self._tasks.carry_on_requeueing(part, told)
        except NothingMatchesError:
            log.debug("no failed job matched", operation=known.id, queue=queue)

    async def _cancel(self, known: Operation, queue: str, halted: asyncio.Event) -> None:
        """Look up what matches, then cancel it: places in a list move while it is being emptied."""
        done_key, found_key = f"done:{queue}", f"{_key(known.id)}:{queue}"
        with wrapped("operations.part"):
            if await self._redis.hexists(_key(known.id), done_key):
                return
        full = True
        while full:
            with wrapped("operations.found"):
                left = await self._redis.llen(found_key)
            if left:
                full = True
            else:
                full = await self._find(known, queue, found_key, halted)
            await self._empty(known, found_key, halted)
        with wrapped("operations.part"):
            await self._redis.hset(_key(known.id), done_key, 1)

    async def _find(
        self, known: Operation, queue: str, found_key: str, halted: asyncio.Event
    ) -> bool:
        """Note the ids of what matches, ROUND at most, all at once; whether there may be more."""
        found: list[str] = []
        cursor = None
        while len(found) < ROUND:
            _go_on(halted)
            page = await self._tasks.jobs(
                [known.state], known.where, queues=[queue], cursor=cursor, limit=500
            )
            found += [
                job.job_id
                for job in page.jobs
                if job.created_at is None or job.created_at.timestamp() <= known.started
            ]
            cursor = page.cursor
            if cursor is None:
                break
        if found:
            with wrapped("operations.found"):
                pipeline = self._redis.pipeline(transaction=True)
                pipeline.delete(found_key)
                pipeline.rpush(found_key, *found)
                pipeline.expire(found_key, KEPT)
                await pipeline.execute()
        return cursor is not None

    async def _empty(self, known: Operation, found_key: str, halted: asyncio.Event) -> None:
        while True:
            _go_on(halted)
            with wrapped("operations.found"):
                ids = await self._redis.lrange(found_key, 0, STEP - 1)
            if not ids:
                return
            done = skipped = 0
            for each in ids:
                try:
                    canceled = await self._tasks.cancel(
                        _text(each), stop=known.stop, queues={*known.queues, *known.allowed}
                    )
                except EngineroomError as error:
                    # It ended, expired or was cancelled meanwhile.
                    if error.category not in (Category.NOT_FOUND, Category.CONFLICT):
                        raise
                    skipped += 1
                    continue
                done += len(canceled.canceled)
                skipped += len(canceled.skipped) + (not canceled.canceled)
            with wrapped("operations.note"):
                await self._note(keys=[_key(known.id), found_key], args=[len(ids), done, skipped])


def _go_on(halted: asyncio.Event) -> None:
    if halted.is_set():
        raise _HaltedError


def _key(operation: str) -> str:
    return f"{_PREFIX}:{operation}"


def _lease(operation: str) -> str:
    return f"{_PREFIX}:{operation}:lease"


def _index(namespace: str) -> str:
    return f"{_PREFIX}s:of:{namespace}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


#: KEYS: record, open ones, those of the namespace. ARGV: id, seconds kept, most listed, when, then
#: the record.
_START = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - tonumber(ARGV[3]))
redis.call('EXPIRE', KEYS[3], ARGV[2])
return 1
"""

#: KEYS: record, open ones. ARGV: id, seconds kept.
_STOP = """
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'status', 'stopped')
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('ZREM', KEYS[2], ARGV[1])
"""

#: KEYS: record, open ones. ARGV: id, status, problem, seconds kept.
_END = """
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'problem', ARGV[3])
return redis.call('EXPIRE', KEYS[1], ARGV[4])
"""

#: KEYS: lease, record. ARGV: who, milliseconds, or 0 to give it up. Returns whether it is held.
_HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
if redis.call('HGET', KEYS[2], 'status') ~= 'running' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

#: KEYS: record, ids found. ARGV: how many of them, done, skipped.
_NOTE = """
redis.call('LTRIM', KEYS[2], ARGV[1], -1)
redis.call('HINCRBY', KEYS[1], 'done', ARGV[2])
return redis.call('HINCRBY', KEYS[1], 'skipped', ARGV[3])
"""
