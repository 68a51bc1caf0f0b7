"""Leases: a process takes tokens ahead and admits requests from them without asking Redis.

Redis counts leased tokens as consumed when it grants them, and keeps one book per limit of the
leases that are outstanding. The granting script adds up the book, so that all processes together
hold at most the policy's fraction of the burst. Any window therefore admits at most burst + rate *
window + min(leased, rate * ttl). A process that dies with a lease loses its tokens; the book drops
the lease after the TTL. A holder measures the TTL on its monotonic clock from before it asked, so
that it stops before the book does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from engineroom.ratelimit.limits.algorithms import LimitResult
from engineroom.ratelimit.limits.redis_calls.lua_scripts import LIBRARY
from engineroom.redis.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.ratelimit.limits.algorithms import LimitTerms

#: Most leases in one book, which every grant reads completely.
MAX_LEASES = 64

_BOOK = """
-- Drops expired leases from a book; returns the tokens outstanding and the number of leases.
local function outstanding(book)
  local sum, count = 0, 0
  local flat = redis.call('HGETALL', book)
  for at = 1, #flat, 2 do
    local tokens, expires = string.match(flat[at + 1], '^%d+,(%d+),(%d+)$')
    if not tokens or tonumber(expires) <= now then
      redis.call('HDEL', book, flat[at])
    else
      sum, count = sum + tonumber(tokens), count + 1
    end
  end
  return sum, count
end
"""

#: Decides one request and takes a lease with the same call.
#: KEYS: bucket and book of each limit. ARGV: the number of limits, the lease's name, its TTL in
#: microseconds, the units that the request needs now (0: none), the units wanted ahead; for each
#: limit its interval, tolerance, tokens per unit, and most tokens outstanding; then the names of
#: leases that are used up. Returns the units granted, and status, remaining, retry and reset of
#: each limit.
LEASE = Script(
    LIBRARY
    + _BOOK
    + """
local many, name, ttl = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local needed, granted = tonumber(ARGV[4]), tonumber(ARGV[5])
local bucket, limits, admitted = kinds.t, {}, true
for place = 1, many do
  local at = 6 + (place - 1) * 4
  local limit = {
    code = 't', key = KEYS[place * 2 - 1], book = KEYS[place * 2],
    unit = tonumber(ARGV[at]), capacity = tonumber(ARGV[at + 1]),
    tokens = tonumber(ARGV[at + 2]), leased = tonumber(ARGV[at + 3]),
  }
  for done = 6 + many * 4, #ARGV do redis.call('HDEL', limit.book, ARGV[done]) end
  limit.answer = {bucket.check(limit, load(limit.key, limit), needed * limit.tokens)}
  if limit.answer[1] ~= 1 then admitted = false end
  limits[place] = limit
end
local reply = {0}
for _, limit in ipairs(limits) do
  local answer = limit.answer
  if answer[1] == 1 and not admitted then
    answer = {bucket.check(limit, load(limit.key, limit), 0)}
  end
  if admitted or answer[6] then save(limit.key, limit, answer[5]) end
  for field = 1, 4 do reply[#reply + 1] = answer[field] end
  if granted > 0 and admitted then
    local out, count = outstanding(limit.book)
    local free = limit.leased - out
    if count >= MAX_LEASES then free = 0 end
    -- Half of what is free, so that the next process gets some, too.
    local share = math.min(math.max(math.ceil(free / 2), math.min(free, limit.tokens)), answer[2])
    granted = math.min(granted, math.floor(share / limit.tokens))
  end
end
if admitted and granted > 0 then
  for _, limit in ipairs(limits) do
    local tokens = granted * limit.tokens
    save(limit.key, limit, load(limit.key, limit) + tokens * limit.unit)
    redis.call('HSET', limit.book, name, text(now) .. ',' .. text(tokens) .. ',' .. text(now + ttl))
    -- After an edit to a shorter TTL the book must keep longer leases that are outstanding.
    local kept = math.max(lifetime(ttl), redis.call('PTTL', limit.book))
    redis.call('PEXPIRE', limit.book, text(kept))
  end
  reply[1] = granted
end
flush()
return reply
""".replace("MAX_LEASES", str(MAX_LEASES))
)

#: Returns the rest of a lease. KEYS as above; ARGV: the lease's name, the units left; for each
#: limit its interval, tolerance and tokens per unit. Returns the microseconds credited to each
#: limit. The time since the grant has refilled tokens already, which are not credited again. The
#: entry in the book is what entitles to a credit, once.
RETURN = Script(
    LIBRARY
    + """
local name, left, returned = ARGV[1], tonumber(ARGV[2]), {}
for place = 1, #KEYS / 2 do
  local key, book, at = KEYS[place * 2 - 1], KEYS[place * 2], 3 + (place - 1) * 3
  local terms = {code = 't', unit = tonumber(ARGV[at]), capacity = tonumber(ARGV[at + 1])}
  local entry = redis.call('HGET', book, name)
  redis.call('HDEL', book, name)
  local since, tokens, expires = string.match(entry or '', '^(%d+),(%d+),(%d+)$')
  returned[place] = 0
  if since and tonumber(expires) > now then
    local lasting = tonumber(tokens) * terms.unit - math.max(0, now - tonumber(since))
    local back = math.min(left * tonumber(ARGV[at + 2]) * terms.unit, lasting)
    if back > 0 then
      save(key, terms, load(key, terms) - back)
      returned[place] = back
    end
  end
end
flush()
return returned
"""
)


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """A limit as the lease scripts need it."""

    terms: LimitTerms
    #: Tokens per unit.
    tokens: int
    #: Most tokens on lease at any time.
    max_outstanding: int


class LeaseGrant(NamedTuple):
    """The reply of the lease script: ``units`` taken ahead, and each limit's result."""

    units: int
    results: tuple[LimitResult, ...]


@dataclass(slots=True)
class Lease:
    """Units that may be admitted until ``until`` (monotonic seconds)."""

    name: str
    left: int
    granted: int
    until: float


@dataclass(slots=True)
class LeaseHolder:
    """One process's leases on one set of keys, and the size of the next one: no I/O, no clock.

    Starts without a lease, since most keys occur once. Requests four times as many units when the
    last request is less than a TTL ago, and half as many when it is longer ago.
    """

    ttl: float
    #: The most units that one lease may have.
    ceiling: int
    lease: Lease | None = None
    following: Lease | None = None
    requested: int = 0
    last_request: float = float("-inf")
    refilling: bool = False
    #: Names of used-up leases, to be removed from the book with the next request.
    spent: tuple[str, ...] = ()

    def take(self, units: int, now: float) -> bool:
        """Admit ``units`` from the leases; return False if they do not suffice."""
        lease = self.lease
        if lease is None:
            return False
        if lease.left >= units and now < lease.until:
            lease.left -= units
            return True
        following = self.following
        if following is None:
            if now >= lease.until:
                self._drop(lease)
                self.lease = None
            return False
        self._drop(lease)
        self.lease, self.following = following, None
        return self.take(units, now)

    def needs_refill(self, now: float) -> bool:
        """Return whether half of the lease is used and no refill is running."""
        lease = self.lease
        return (
            not self.refilling
            and self.following is None
            and lease is not None
            and lease.left * 2 <= lease.granted
            and now < lease.until
        )

    def next_size(self, now: float) -> int:
        """Return the units to request ahead at ``now``, by the demand so far."""
        in_demand = now - self.last_request < self.ttl
        larger = min(self.ceiling, max(1, self.requested * 4))
        self.requested = larger if in_demand else self.requested // 2
        self.last_request = now
        return self.requested

    def accept(self, name: str, units: int, sent: float) -> None:
        """Add a granted lease, requested at ``sent``; it replaces one that is used up."""
        if units <= 0:
            return
        lease = Lease(name, units, units, sent + self.ttl)
        if self.lease is not None and self.lease.left and sent < self.lease.until:
            if self.following is not None:
                self._drop(self.following)
            self.following = lease
            return
        if self.lease is not None:
            self._drop(self.lease)
        self.lease = lease

    def surrender(self) -> tuple[Lease, ...]:
        """Remove and return all leases, to be returned to Redis.

        Those that are used up come last, with nothing left: the book still counts them.
        """
        leases = tuple(lease for lease in (self.lease, self.following) if lease is not None)
        spent = tuple(Lease(name, 0, 0, 0.0) for name in self.spent)
        self.lease = self.following = None
        self.spent = ()
        return leases + spent

    def forget_spent(self, names: Sequence[str]) -> None:
        """Forget names that the book has removed."""
        self.spent = tuple(name for name in self.spent if name not in names)

    def _drop(self, lease: Lease) -> None:
        # Its remaining tokens are lost: the book is about to remove the lease.
        self.spent = (*self.spent, lease.name)[-8:]


def book_key(key: str) -> str:
    """Return the key of the book of leases on a bucket, in the same hash slot."""
    return f"{key}:l"


def lease_arguments(
    keys: Sequence[str],
    limits: Sequence[LeaseTerms],
    *,
    name: str,
    ttl: float,
    needed: int,
    wanted: int,
    spent: Sequence[str] = (),
) -> tuple[list[str], list[str | int]]:
    """Return KEYS and ARGV for LEASE."""
    arguments: list[str | int] = [len(limits), name, round(ttl * 1_000_000), needed, wanted]
    for limit in limits:
        terms = limit.terms
        arguments += (terms.unit, terms.capacity, limit.tokens, limit.max_outstanding)
    return _with_books(keys), [*arguments, *spent]


def return_arguments(
    keys: Sequence[str], limits: Sequence[LeaseTerms], lease: Lease
) -> tuple[list[str], list[str | int]]:
    """Return KEYS and ARGV for RETURN."""
    arguments: list[str | int] = [lease.name, lease.left]
    for limit in limits:
        arguments += (limit.terms.unit, limit.terms.capacity, limit.tokens)
    return _with_books(keys), arguments


def parse_grant(reply: Sequence[int]) -> LeaseGrant:
    """Return the grant in LEASE's reply."""
    results = tuple(LimitResult(*reply[start : start + 4]) for start in range(1, len(reply), 4))
    return LeaseGrant(reply[0], results)


def _with_books(keys: Sequence[str]) -> list[str]:
    return [name for key in keys for name in (key, book_key(key))]
