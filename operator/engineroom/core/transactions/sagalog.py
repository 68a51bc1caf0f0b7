"""A saga log in Redis: one stream for each saga, written by scripts that check the epoch.

Redis must persist acknowledged writes (``appendonly yes``; ``appendfsync always`` to survive a
crash of the machine too) and must not evict (``maxmemory-policy noeviction``).

A coordinator executes what the log says, so write access to the log grants the coordinator's
rights. Give the log a ``Sealer`` if other programs write to the same Redis.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from engineroom.core import key_prefixes
from engineroom.core.error_translation import wrapped
from engineroom.core.redis_replies import text, texts
from engineroom.core.transactions.journal import (
    ENDS,
    MAX_PAGE,
    RETENTION,
    EntryKind,
    JournalEntry,
    SagaPage,
    SagaRecord,
    as_json,
    check_id,
    entry_detail,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from engineroom.core.sealing import Sealer

_NOW = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
"""

# KEYS: saga, stream, open, index. ARGV: id, name, input, by, lease, seal, seal of the first line.
_BEGIN = (
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return false end
local member = string.format('%016d', math.floor(now * 1000000)) .. ':' .. ARGV[1]
redis.call('HSET', KEYS[1], 'name', ARGV[2], 'input', ARGV[3], 'by', ARGV[4], 'epoch', 1,
  'started', string.format('%.6f', now), 'member', member, 'seal', ARGV[6])
redis.call('XADD', KEYS[2], '*', 'kind', 'begin', 'at', string.format('%.6f', now), 'epoch', 1,
  'seal', ARGV[7])
redis.call('ZADD', KEYS[3], now + ARGV[5], ARGV[1])
redis.call('ZADD', KEYS[4], 0, member)
return 1
"""
)

# KEYS: saga, stream, open, index. ARGV: id, epoch, lease, retention, end or '', then
# kind, step, detail, seal for each line.
_APPEND = (
    _NOW
    + """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[2] then return 0 end
if not redis.call('ZSCORE', KEYS[3], ARGV[1]) then return 0 end
for i = 6, #ARGV, 4 do
  redis.call('XADD', KEYS[2], '*', 'kind', ARGV[i], 'step', ARGV[i + 1], 'detail', ARGV[i + 2],
    'at', string.format('%.6f', now), 'epoch', ARGV[2], 'seal', ARGV[i + 3])
end
if ARGV[5] == '' then
  redis.call('ZADD', KEYS[3], now + ARGV[3], ARGV[1])
  return 1
end
redis.call('ZREM', KEYS[3], ARGV[1])
if ARGV[5] ~= 'stuck' then
  redis.call('EXPIRE', KEYS[1], ARGV[4])
  redis.call('EXPIRE', KEYS[2], ARGV[4])
end
local oldest = string.format('%016d', math.max(0, math.floor((now - ARGV[4]) * 1000000)))
for _, member in ipairs(redis.call('ZRANGEBYLEX', KEYS[4], '-', '(' .. oldest, 'LIMIT', 0, 10)) do
  local id = string.sub(member, 18)
  if not redis.call('ZSCORE', KEYS[3], id) then redis.call('ZREM', KEYS[4], member) end
end
return 1
"""
)

# KEYS: saga, open. ARGV: id, epoch, lease.
_RENEW = (
    _NOW
    + """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[2] then return 0 end
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
return 1
"""
)

# KEYS: open. ARGV: prefix of sagas, lease, most, names...
_CLAIM = (
    _NOW
    + """
local names, found = {}, {}
for i = 4, #ARGV do names[ARGV[i]] = true end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 10000)) do
  if #found / 2 >= tonumber(ARGV[3]) then break end
  local saga = ARGV[1] .. id
  if names[redis.call('HGET', saga, 'name')] then
    found[#found + 1] = id
    found[#found + 1] = redis.call('HINCRBY', saga, 'epoch', 1)
    redis.call('ZADD', KEYS[1], now + ARGV[2], id)
  end
end
return found
"""
)

# KEYS: saga, stream, open. ARGV: id, lease, epoch before, seal of the line.
_RESUME = (
    _NOW
    + """
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if not last then return false end
local stuck = false
for i = 1, #last[2], 2 do
  if last[2][i] == 'kind' and last[2][i + 1] == 'stuck' then stuck = true end
end
if not stuck or redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[3] then return false end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('XADD', KEYS[2], '*', 'kind', 'resumed', 'at', string.format('%.6f', now),
  'epoch', epoch, 'seal', ARGV[4])
redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])
return epoch
"""
)


class RedisSagaLog:
    """A ``SagaLog`` under ``prefix``, which maps to one cluster slot. Needs Redis 6.2 or newer.

    With a ``sealer``, a saga with any unsealed part is ignored: neither recovered nor listed. Times
    and epochs come from Redis.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        prefix: str = key_prefixes.SAGAS,
        retention: int = RETENTION,
        sealer: Sealer | None = None,
    ) -> None:
        self._redis = redis
        self._prefix = prefix
        self._retention = retention
        self._sealer = sealer
        self._open = f"{prefix}:open"
        self._index = f"{prefix}:index"
        self._begin = redis.register_script(_BEGIN)
        self._append = redis.register_script(_APPEND)
        self._renew = redis.register_script(_RENEW)
        self._claim = redis.register_script(_CLAIM)
        self._resume = redis.register_script(_RESUME)

    def _saga(self, id_: str) -> str:
        return f"{self._prefix}:saga:{id_}"

    def _stream(self, id_: str) -> str:
        return f"{self._prefix}:log:{id_}"

    async def begin(self, id_: str, name: str, input_: Any, by: str, lease: float) -> int | None:
        """See ``SagaLog``. Raises InvalidInputError for a bad id and TooLargeError."""
        check_id(id_)
        keys = [self._saga(id_), self._stream(id_), self._open, self._index]
        content = as_json(input_)
        seals = [self._seal(id_, name, content, by[:200]), self._seal(id_, "begin", "", "", "1")]
        with wrapped("saga.begin"):
            epoch = await self._begin(keys=keys, args=[id_, name, content, by[:200], lease, *seals])
        return None if epoch is None else int(epoch)

    async def append(
        self, id_: str, epoch: int, entries: Sequence[JournalEntry], lease: float
    ) -> bool:
        """See ``SagaLog``."""
        end = entries[-1].kind.value if entries[-1].kind in ENDS else ""
        keys = [self._saga(id_), self._stream(id_), self._open, self._index]
        arguments: list[Any] = [id_, epoch, lease, self._retention, end]
        for line in entries:
            said = [line.kind.value, line.step, entry_detail(line)]
            arguments += [*said, self._seal(id_, *said, str(epoch))]
        with wrapped("saga.append"):
            return bool(await self._append(keys=keys, args=arguments))

    async def renew(self, id_: str, epoch: int, lease: float) -> bool:
        """See ``SagaLog``."""
        with wrapped("saga.renew"):
            keys = [self._saga(id_), self._open]
            return bool(await self._renew(keys=keys, args=[id_, epoch, lease]))

    async def claim(self, names: Sequence[str], lease: float, most: int) -> list[tuple[str, int]]:
        """See ``SagaLog``."""
        with wrapped("saga.claim"):
            reply = await self._claim(
                keys=[self._open], args=[f"{self._prefix}:saga:", lease, most, *names]
            )
        return [(text(id_), int(epoch)) for id_, epoch in zip(reply[::2], reply[1::2], strict=True)]

    async def resume(self, id_: str, lease: float) -> int | None:
        """See ``SagaLog``."""
        record = await self.read(id_)
        if record is None:
            return None
        before, seal = record.epoch, self._seal(id_, "resumed", "", "", str(record.epoch + 1))
        with wrapped("saga.resume"):
            keys = [self._saga(id_), self._stream(id_), self._open]
            epoch = await self._resume(keys=keys, args=[id_, lease, before, seal])
        return None if epoch is None else int(epoch)

    async def read(self, id_: str) -> SagaRecord | None:
        """See ``SagaLog``."""
        records = await self._read([id_])
        return records[0] if records else None

    async def page(self, *, cursor: str | None = None, count: int = 50) -> SagaPage:
        """See ``SagaLog``; at most ``MAX_PAGE`` at once."""
        most = max(1, min(count, MAX_PAGE))
        start = "+" if cursor is None else f"({cursor}"
        with wrapped("saga.page"):
            reply = await self._redis.zrevrangebylex(self._index, start, "-", 0, most + 1)
        members = [text(member) for member in reply]
        records = await self._read([member[17:] for member in members[:most]])
        return SagaPage(tuple(records), members[most - 1] if len(members) > most else None)

    async def _read(self, ids: Sequence[str]) -> list[SagaRecord]:
        with wrapped("saga.read"):
            pipeline = self._redis.pipeline(transaction=True)
            for id_ in ids:
                pipeline.hgetall(self._saga(id_))
                pipeline.xrange(self._stream(id_))
            answers = await pipeline.execute() if ids else []
        records = []
        for id_, fields, entries in zip(ids, answers[::2], answers[1::2], strict=True):
            said, entries = texts(fields), [texts(entry) for _, entry in entries]
            if not said:
                continue
            if self._is_ours(id_, said, entries):
                records.append(_record(id_, said, entries))
            else:
                # Keep the records as evidence, and never claim this saga again.
                with wrapped("saga.refuse"):
                    await self._redis.zrem(self._open, id_)
        return records

    def _seal(self, id_: str, *content: str) -> str:
        return "" if self._sealer is None else self._sealer.seal(self._saga(id_), *content)

    def _is_ours(self, id_: str, saga: dict[str, str], entries: list[dict[str, str]]) -> bool:
        """Return whether every part carries a valid seal for this saga."""
        if self._sealer is None:
            return True
        fields = [("name", "input", "by"), *[("kind", "step", "detail", "epoch")] * len(entries)]
        return all(
            self._sealer.holds(
                said.get("seal", ""), self._saga(id_), *(said.get(name, "") for name in names)
            )
            for names, said in zip(fields, [saga, *entries], strict=True)
        )


def _record(id_: str, fields: dict[str, str], entries: list[dict[str, str]]) -> SagaRecord:
    return SagaRecord(
        id=id_,
        name=fields["name"],
        by=fields["by"],
        input=json.loads(fields["input"]),
        epoch=int(fields["epoch"]),
        started=float(fields["started"]),
        entries=tuple(map(_entry, entries)),
    )


def _entry(fields: dict[str, str]) -> JournalEntry:
    return JournalEntry(
        EntryKind(fields["kind"]),
        fields.get("step", ""),
        json.loads(fields.get("detail") or "null"),
        float(fields["at"]),
        int(fields["epoch"]),
    )
