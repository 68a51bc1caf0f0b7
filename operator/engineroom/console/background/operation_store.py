"""Records of bulk changes in Redis.

A record is open while its status is ``running``. A seal covers all fields except those that count
progress: write access to Redis is not enough to order a bulk change.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from engineroom.core import key_prefixes
from engineroom.core.error_translation import wrapped
from engineroom.core.errors import DependencyError
from engineroom.core.redis_replies import text
from engineroom.core.sealing import Sealer, log_broken
from engineroom.tasks.inspection import requeueing
from engineroom.tasks.inspection.job_filter import JobFilter
from engineroom.tasks.inspection.jobs import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio import Redis

#: Seconds that a record stays after its last step.
KEPT = 7 * 86_400
#: Operations that the index of a namespace holds; older ones can be read by their id only.
LISTED = 1_000

_SEALED = (
    "namespace", "action", "state", "queues", "allowed", "where", "by", "started", "total",
    "stop",
)  # fmt: skip
_PREFIX = key_prefixes.OPERATIONS
_OPEN = f"{_PREFIX}s:open"


class OperationAction(StrEnum):
    """The change that an operation makes to each job."""

    RETRY = "retry"
    CANCEL = "cancel"


class OperationStatus(StrEnum):
    """The state of an operation."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Operation:
    """A bulk change and its progress.

    ``started`` is Unix seconds. ``total`` is the number of jobs that matched at the start, as far
    as they were counted. ``done`` counts changed jobs, ``skipped`` those whose state had changed
    meanwhile.
    """

    id: str
    namespace: str
    action: OperationAction
    state: State
    queues: tuple[str, ...]
    where: JobFilter
    by: str
    started: float
    total: int
    #: Further queues whose jobs may be cancelled as dependents of a matching job.
    allowed: tuple[str, ...] = ()
    stop: bool = False
    status: OperationStatus = OperationStatus.RUNNING
    done: int = 0
    skipped: int = 0
    problem: str = ""


class OperationStore:
    """The operations of an installation. All methods raise DependencyError."""

    def __init__(
        self,
        redis: Redis,
        secret: bytes,
        *,
        on_broken: Callable[[str, str], None] = log_broken,
    ) -> None:
        """``secret``, of at least 32 bytes, seals records; see ``Sealer`` for ``on_broken``."""
        self._redis = redis
        self._sealer = Sealer(secret, "operation", on_broken)
        self._holder = secrets.token_hex(8)
        self._start = redis.register_script(_START)
        self._stop = redis.register_script(_STOP)
        self._end = redis.register_script(_END)
        self._hold = redis.register_script(_HOLD)
        self._advance = redis.register_script(_ADVANCE)

    # -- requests --------------------------------------------------------------------------------

    async def start(self, operation: Operation) -> Operation:
        """Record the operation and return it; an existing one of that id is returned unchanged."""
        fields = {
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
        seal = self._sealer.seal_fields(_key(operation.id), fields)
        record = {**fields, "seal": seal, "status": OperationStatus.RUNNING.value}
        arguments: list[str | int] = [operation.id, KEPT, LISTED, repr(operation.started)]
        arguments += [part for pair in record.items() for part in pair]
        keys = [_key(operation.id), _OPEN, _index(operation.namespace)]
        with wrapped("operations.start"):
            await self._start(keys=keys, args=arguments)
        stored = await self.get(operation.id)
        if stored is None:
            raise DependencyError("operation: Redis does not have what was just written; try again")
        return stored

    async def get(self, operation: str) -> Operation | None:
        """Return the operation, or None if it is missing or its seal is wrong."""
        with wrapped("operations.get"):
            raw = await self._redis.hgetall(_key(operation))
            record = {text(name): text(value) for name, value in raw.items()}
            sealed = {name: record[name] for name in _SEALED if name in record}
            if "status" not in record or not self._sealer.fields_hold(
                record.get("seal", ""), _key(operation), sealed
            ):
                return None
            done, skipped = int(record.get("done", 0)), int(record.get("skipped", 0))
            parts = [value for name, value in record.items() if name.startswith("part:")]
            for part in parts:
                row = await self._redis.hmget(requeueing.operation_key(part), "requeued", "skipped")
                done, skipped = done + int(row[0] or 0), skipped + int(row[1] or 0)
        return Operation(
            id=operation,
            namespace=record["namespace"],
            action=OperationAction(record["action"]),
            state=State(record["state"]),
            queues=tuple(json.loads(record["queues"])),
            allowed=tuple(json.loads(record.get("allowed", "[]"))),
            where=JobFilter.loads(record["where"]),
            by=record["by"],
            started=float(record["started"]),
            total=int(record["total"]),
            stop=record["stop"] == "1",
            status=OperationStatus(record["status"]),
            done=done,
            skipped=skipped,
            problem=record.get("problem", ""),
        )

    async def list(self, namespace: str, after: str, limit: int) -> list[Operation]:
        """Return the namespace's operations, newest first, starting after the id ``after``."""
        with wrapped("operations.list"):
            index, start = _index(namespace), 0
            if after:
                rank = await self._redis.zrevrank(index, after)
                if rank is None:
                    return []
                start = int(str(rank)) + 1
            ids = await self._redis.zrevrange(index, start, start + limit - 1)
        operations = [await self.get(text(operation)) for operation in ids]
        return [operation for operation in operations if operation is not None]

    async def stop(self, operation: str) -> bool:
        """Mark the operation as stopped; return False if it had ended already."""
        with wrapped("operations.stop"):
            return bool(await self._stop(keys=[_key(operation), _OPEN], args=[operation, KEPT]))

    # -- execution -------------------------------------------------------------------------------

    async def open_ids(self) -> Sequence[str]:
        """Return the ids of up to 100 open operations, oldest first."""
        with wrapped("operations.open"):
            return [text(operation) for operation in await self._redis.zrange(_OPEN, 0, 99)]

    async def acquire(self, operation: str, seconds: float) -> bool:
        """Take or renew the operation's lease; return whether this store holds it."""
        with wrapped("operations.lease"):
            keys = [_lease(operation), _key(operation)]
            return bool(await self._hold(keys=keys, args=[self._holder, round(seconds * 1000)]))

    async def release(self, operation: str) -> None:
        """Give the lease up."""
        with wrapped("operations.leave"):
            await self._hold(keys=[_lease(operation), _key(operation)], args=[self._holder, 0])

    async def end(self, operation: str, status: OperationStatus, problem: str) -> None:
        """Record how the operation ended, unless it has ended already."""
        with wrapped("operations.end"):
            arguments = [operation, status.value, problem, KEPT]
            await self._end(keys=[_key(operation), _OPEN], args=arguments)

    async def requeueing(self, operation: str, queue: str) -> str:
        """Return the id of the requeueing that retries the queue's jobs, or ""."""
        with wrapped("operations.part"):
            return text(await self._redis.hget(_key(operation), f"part:{queue}"))

    async def record_requeueing(self, operation: str, queue: str, requeueing: str) -> None:
        """Record which requeueing retries the queue's jobs, unless one is recorded already."""
        with wrapped("operations.part"):
            await self._redis.hsetnx(_key(operation), f"part:{queue}", requeueing)

    async def queue_finished(self, operation: str, queue: str) -> bool:
        """Return whether all matching jobs of the queue are cancelled."""
        with wrapped("operations.part"):
            return bool(await self._redis.hexists(_key(operation), f"done:{queue}"))

    async def finish_queue(self, operation: str, queue: str) -> None:
        """Record that all matching jobs of the queue are cancelled."""
        with wrapped("operations.part"):
            await self._redis.hset(_key(operation), f"done:{queue}", 1)

    async def matches(self, operation: str, queue: str, limit: int) -> Sequence[str]:
        """Return the first ``limit`` ids of recorded jobs that are not cancelled yet."""
        with wrapped("operations.found"):
            ids = await self._redis.lrange(_matches(operation, queue), 0, limit - 1)
        return [text(job) for job in ids]

    async def record_matches(self, operation: str, queue: str, ids: Sequence[str]) -> None:
        """Replace the recorded ids of matching jobs."""
        key = _matches(operation, queue)
        with wrapped("operations.found"):
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.delete(key)
            pipeline.rpush(key, *ids)
            pipeline.expire(key, KEPT)
            await pipeline.execute()

    async def advance(
        self, operation: str, queue: str, *, ids: int, done: int, skipped: int
    ) -> None:
        """Drop the first ``ids`` recorded jobs and add to both counters, atomically."""
        with wrapped("operations.note"):
            keys = [_key(operation), _matches(operation, queue)]
            await self._advance(keys=keys, args=[ids, done, skipped])


def _key(operation: str) -> str:
    return f"{_PREFIX}:{operation}"


def _lease(operation: str) -> str:
    return f"{_PREFIX}:{operation}:lease"


def _matches(operation: str, queue: str) -> str:
    return f"{_PREFIX}:{operation}:{queue}"


def _index(namespace: str) -> str:
    return f"{_PREFIX}s:of:{namespace}"


#: KEYS: record, set of open operations, index of the namespace. ARGV: id, seconds until expiry,
#: size of the index, score, then fields and values of the record.
_START = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - tonumber(ARGV[3]))
redis.call('EXPIRE', KEYS[3], ARGV[2])
return 1
"""

#: KEYS: record, set of open operations. ARGV: id, seconds until expiry.
_STOP = """
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'status', 'stopped')
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('ZREM', KEYS[2], ARGV[1])
"""

#: KEYS: record, set of open operations. ARGV: id, status, problem, seconds until expiry.
_END = """
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'problem', ARGV[3])
return redis.call('EXPIRE', KEYS[1], ARGV[4])
"""

#: KEYS: lease, record. ARGV: holder, milliseconds; 0 releases. Returns 1 if the caller holds it.
_HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
if redis.call('HGET', KEYS[2], 'status') ~= 'running' then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

#: KEYS: record, list of matching ids. ARGV: ids to drop, done, skipped.
_ADVANCE = """
redis.call('LTRIM', KEYS[2], ARGV[1], -1)
redis.call('HINCRBY', KEYS[1], 'done', ARGV[2])
return redis.call('HINCRBY', KEYS[1], 'skipped', ARGV[3])
"""
