"""Limits: how many jobs run at once, and how many begin in a time, of a queue or of a key.

They are kept by Engineroom's workers, in the script that takes a job (engineroom_worker.limits);
here they are only said. A stock ``rq worker`` knows nothing of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engineroom.queue import keys
from engineroom.tasks.errors import InvalidTaskError
from engineroom.tasks.redis_steps import Invoke, Script, Steps, text
from engineroom.tasks.type_checks import check_kind

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_KEY = 200
MAX_CONCURRENCY = 100_000
MAX_COUNT = 1_000_000

_RATE = re.compile(r"(\d{1,7})/(\d{0,4})(ms|s|min|m|h|d)")
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True, slots=True)
class Limit:
    """Jobs with the same ``key``, on whatever queue, have this limit together.

    ``concurrency``: how many run at once. ``rate``: how many begin in a time, ``"10/s"``,
    ``"100/min"``, ``"1000/24h"``: so many at once at most, and as many on average. Each job is
    measured by its own limit, so give the jobs of a key the same.
    """

    key: str
    concurrency: int | None = None
    rate: str | None = None

    def __post_init__(self) -> None:
        check_kind("limit.key", self.key, str, "use text")
        if not 0 < len(self.key) <= MAX_KEY or not self.key.isprintable():
            raise InvalidTaskError(
                "limit.key", "is no key", f"use 1 to {MAX_KEY} printable characters"
            )
        check("limit", self.concurrency, self.rate)

    def fields(self) -> list[str | int]:
        """As they stand in the job's hash."""
        fields: list[str | int] = ["er_limit", self.key]
        if self.concurrency is not None:
            fields += "er_limit_concurrency", int(self.concurrency)
        if self.rate is not None:
            count, milliseconds = parsed(self.rate)
            fields += "er_limit_count", count, "er_limit_ms", milliseconds
        return fields


@dataclass(frozen=True, slots=True)
class QueueLimit:
    """A queue's limit: ``rate`` as it was given; either is None where there is none."""

    concurrency: int | None = None
    rate: str | None = None


def check(name: str, concurrency: int | None, rate: str | None) -> None:
    """Raises InvalidTaskError for what is no limit."""
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
        parsed(rate, name)


def parsed(rate: str, name: str = "limit") -> tuple[int, int]:
    """How many, in how many milliseconds; raises InvalidTaskError."""
    found = _RATE.fullmatch(rate) if isinstance(rate, str) else None
    count = int(found[1]) if found else 0
    milliseconds = int(found[2] or 1) * _UNITS[found[3]] if found else 0
    if not 1 <= count <= MAX_COUNT or not 1 <= milliseconds <= 366 * _UNITS["d"]:
        raise InvalidTaskError(f"{name}.rate", f"{rate!r:.50}", "use a rate like '10/s' or '5/2h'")
    return count, milliseconds


def limit_queue(name: str, concurrency: int | None, rate: str | None) -> Steps[None]:
    """Have our workers keep to the limit from now on, instead of any that the queue had."""
    check("limit", concurrency, rate)
    fields: list[str | int] = []
    if concurrency is not None:
        fields += "concurrency", concurrency
    if rate is not None:
        count, milliseconds = parsed(rate)
        fields += "rate", rate, "count", count, "ms", milliseconds
    yield Invoke(_LIMIT, [keys.limit(name), f"rq:workers:{name}"], fields)


def unlimit_queue(name: str) -> Steps[bool]:
    """Take the queue's limit away; False if it had none."""
    return bool((yield Invoke(_LIMIT, [keys.limit(name), f"rq:workers:{name}"], [])))


def read(row: Sequence[bytes | None]) -> QueueLimit | None:
    """The limit of the two fields."""
    if row[0] is None and row[1] is None:
        return None
    return QueueLimit(None if row[0] is None else int(row[0]), text(row[1]) or None)


#: KEYS: the limit, set of the queue's workers. ARGV: the limit's fields. Returns whether there was
#: one before.
_LIMIT = Script("""
local was = redis.call('DEL', KEYS[1])
if #ARGV > 0 then redis.call('HSET', KEYS[1], unpack(ARGV)) end
for _, key in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  -- Workers of stock RQ keep no limits, and would warn of a command that they do not know.
  if redis.call('HEXISTS', key, 'er_pool') == 1 then
    redis.call('PUBLISH', 'rq:pubsub:' .. string.sub(key, 11), '{"command": "engineroom-wake"}')
  end
end
return was
""")
