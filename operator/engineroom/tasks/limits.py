"""Limits of concurrency and rate, for the jobs of a queue or of a key.

This module only stores limits. Engineroom's workers enforce them in the script that takes a job
(``engineroom_worker.dequeue.limits``); a stock ``rq worker`` ignores them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engineroom.core.redis_replies import text
from engineroom.queue import keys
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.redis_steps import LuaScript, ScriptStep, Steps
from engineroom.tasks.type_checks import check_type

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_KEY = 200
MAX_CONCURRENCY = 100_000
MAX_COUNT = 1_000_000

_RATE = re.compile(r"(\d{1,7})/(\d{0,4})(ms|s|min|m|h|d)")
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit that all jobs with the same ``key`` share, on all queues.

    ``concurrency`` is the number of jobs that run at once. ``rate`` is the number of jobs that
    start in a period, such as ``"10/s"``, ``"100/min"`` or ``"1000/24h"``: it bounds both the burst
    and the average. Workers read the limit from each job, so give all jobs of a key the same one.
    """

    key: str
    concurrency: int | None = None
    rate: str | None = None

    def __post_init__(self) -> None:
        check_type("limit.key", self.key, str, "use text")
        if not 0 < len(self.key) <= MAX_KEY or not self.key.isprintable():
            raise InvalidTaskError(
                "limit.key", "is no key", f"use 1 to {MAX_KEY} printable characters"
            )
        check("limit", self.concurrency, self.rate)

    def fields(self) -> list[str | int]:
        """Return names and values in turn, as the job's hash stores them."""
        fields: list[str | int] = ["er_limit", self.key]
        if self.concurrency is not None:
            fields += "er_limit_concurrency", int(self.concurrency)
        if self.rate is not None:
            count, milliseconds = parse_rate(self.rate)
            fields += "er_limit_count", count, "er_limit_ms", milliseconds
        return fields


@dataclass(frozen=True, slots=True)
class QueueLimit:
    """A queue's limits; None means unlimited."""

    concurrency: int | None = None
    rate: str | None = None


def check(name: str, concurrency: int | None, rate: str | None) -> None:
    """Raise InvalidTaskError for an invalid limit, and for one without concurrency and rate."""
    if concurrency is None and rate is None:
        raise InvalidTaskError(name, "limits nothing", "give concurrency, rate or both")
    if concurrency is not None and (
        isinstance(concurrency, bool)
        or not isinstance(concurrency, int)
        or not 1 <= concurrency <= MAX_CONCURRENCY
    ):
        raise InvalidTaskError(
            f"{name}.concurrency", f"{concurrency!r:.50}", f"use 1 to {MAX_CONCURRENCY}"
        )
    if rate is not None:
        parse_rate(rate, name)


def parse_rate(rate: str, name: str = "limit") -> tuple[int, int]:
    """Return the number of jobs and the period in milliseconds. Raises InvalidTaskError."""
    match = _RATE.fullmatch(rate) if isinstance(rate, str) else None
    count = int(match[1]) if match else 0
    milliseconds = int(match[2] or 1) * _UNITS[match[3]] if match else 0
    if not 1 <= count <= MAX_COUNT or not 1 <= milliseconds <= 366 * _UNITS["d"]:
        raise InvalidTaskError(f"{name}.rate", f"{rate!r:.50}", "use a rate like '10/s' or '5/2h'")
    return count, milliseconds


def limit_queue(name: str, concurrency: int | None, rate: str | None) -> Steps[None]:
    """Set the queue's limit, which replaces the previous one."""
    check("limit", concurrency, rate)
    fields: list[str | int] = []
    if concurrency is not None:
        fields += "concurrency", concurrency
    if rate is not None:
        count, milliseconds = parse_rate(rate)
        fields += "rate", rate, "count", count, "ms", milliseconds
    yield ScriptStep(_LIMIT, [keys.limit(name), f"rq:workers:{name}"], fields)


def unlimit_queue(name: str) -> Steps[bool]:
    """Remove the queue's limit; return False if it had none."""
    return bool((yield ScriptStep(_LIMIT, [keys.limit(name), f"rq:workers:{name}"], [])))


def read(row: Sequence[bytes | None]) -> QueueLimit | None:
    """Return the limit from its fields ``concurrency`` and ``rate``; None if it has neither."""
    if row[0] is None and row[1] is None:
        return None
    return QueueLimit(None if row[0] is None else int(row[0]), text(row[1]) or None)


#: KEYS: the limit, set of the queue's workers. ARGV: the limit's fields. Returns 1 if the queue had
#: a limit before.
_LIMIT = LuaScript("""
local was = redis.call('DEL', KEYS[1])
if #ARGV > 0 then redis.call('HSET', KEYS[1], unpack(ARGV)) end
for _, key in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  -- Stock RQ workers ignore limits, and would log a warning about an unknown command.
  if redis.call('HEXISTS', key, 'er_pool') == 1 then
    redis.call('PUBLISH', 'rq:pubsub:' .. string.sub(key, 11), '{"command": "engineroom-wake"}')
  end
end
return was
""")
