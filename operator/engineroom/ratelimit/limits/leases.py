"""Tokens taken ahead: a process holds a lease and admits from it without asking Redis.

Redis counts leased tokens as consumed when it grants them, and keeps a book a limit of what is out:
never more than the policy's fraction of the burst, whoever asks, because the granting script adds
up the book. So in any window at most burst + rate * window + min(leased, rate * ttl) is admitted. A
process that dies with a lease loses tokens and gains none; the book forgets it after the TTL. A
holder measures the TTL from before it asked, on its monotonic clock, so it stops first.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from typing import TYPE_CHECKING, NamedTuple

from engineroom.ratelimit.limits.algorithms import LIBRARY, Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engineroom.ratelimit.limits.algorithms import Terms

#: Leases in one book: it is read whole each time.
MAX_LEASES = 64

_BOOK = """
-- Reads a book without what has expired: the tokens out, and how many leases.
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

#: Decides one request and takes a lease with it.
#: KEYS: bucket and book of each limit. ARGV: how many limits, the lease's name, its TTL in
#: microseconds, units the request needs now (0: none), units wanted ahead; for each limit its
#: interval, tolerance, tokens a unit, and most tokens out; then names of leases that are used up.
#: Answers the units granted, and status, remaining, retry, reset of each limit.
LEASE_SCRIPT = (
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
    unit = tonumber(ARGV[at]), most = tonumber(ARGV[at + 1]),
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
    -- Half of what is free, so that the next one finds something too.
    local share = math.min(math.max(math.ceil(free / 2), math.min(free, limit.tokens)), answer[2])
    granted = math.min(granted, math.floor(share / limit.tokens))
  end
end
if admitted and granted > 0 then
  for _, limit in ipairs(limits) do
    local tokens = granted * limit.tokens
    save(limit.key, limit, load(limit.key, limit) + tokens * limit.unit)
    redis.call('HSET', limit.book, name, text(now) .. ',' .. text(tokens) .. ',' .. text(now + ttl))
    -- A shorter TTL, after an edit, must not have the book forget longer leases that are still out.
    local kept = math.max(lifetime(ttl), redis.call('PTTL', limit.book))
    redis.call('PEXPIRE', limit.book, text(kept))
  end
  reply[1] = granted
end
flush()
return reply
""".replace("MAX_LEASES", str(MAX_LEASES))
)
LEASE_SHA = sha1(LEASE_SCRIPT.encode(), usedforsecurity=False).hexdigest()

#: Gives back what is left of a lease. KEYS as above; ARGV: the lease's name, units left; for each
#: limit its interval, tolerance and tokens a unit. Answers the microseconds that came back to each.
#: Time that passed since the grant has refilled as many tokens already, so they do not come back a
#: second time; and only the entry in the book gives the right to give back, once.
RETURN_SCRIPT = (
    LIBRARY
    + """
local name, left, returned = ARGV[1], tonumber(ARGV[2]), {}
for place = 1, #KEYS / 2 do
  local key, book, at = KEYS[place * 2 - 1], KEYS[place * 2], 3 + (place - 1) * 3
  local terms = {code = 't', unit = tonumber(ARGV[at]), most = tonumber(ARGV[at + 1])}
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
RETURN_SHA = sha1(RETURN_SCRIPT.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """A limit as the lease scripts need it: ``tokens`` a unit, at most ``most_out`` out."""

    terms: Terms
    tokens: int
    most_out: int


class Grant(NamedTuple):
    """What the lease script answered: ``units`` taken ahead, and each limit's answer."""

    units: int
    answers: tuple[Answer, ...]


@dataclass(slots=True)
class Lease:
    """Units that may be admitted until ``until`` (monotonic seconds)."""

    name: str
    left: int
    granted: int
    until: float


@dataclass(slots=True)
class Holder:
    """One process's leases on one set of keys, and how much it asks for: no I/O, no clock.

    Starts with no lease at all, since most keys are seen once; asks for four times as much when
    the last ask is less than a TTL ago, and for half as much when it is longer ago.
    """

    ttl: float
    #: The most it may ever ask for.
    ceiling: int
    lease: Lease | None = None
    following: Lease | None = None
    asked: int = 0
    last_ask: float = float("-inf")
    refilling: bool = False
    #: Names of leases to strike from the book with the next ask.
    spent: tuple[str, ...] = ()

    def take(self, units: int, now: float) -> bool:
        """Admit ``units`` from what is held, if that is enough."""
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

    def wants_refill(self, now: float) -> bool:
        """Whether half of the lease is used and nothing is under way."""
        lease = self.lease
        return (
            not self.refilling
            and self.following is None
            and lease is not None
            and lease.left * 2 <= lease.granted
            and now < lease.until
        )

    def ask(self, now: float) -> int:
        """Units to ask for ahead, now."""
        in_demand = now - self.last_ask < self.ttl
        self.asked = min(self.ceiling, max(1, self.asked * 4)) if in_demand else self.asked // 2
        self.last_ask = now
        return self.asked

    def granted(self, name: str, units: int, sent: float) -> None:
        """Take up a lease; ``sent`` is when it was asked for. Replaces what is used up."""
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
        """All that is held, to be given back; nothing is held any more."""
        held = tuple(each for each in (self.lease, self.following) if each is not None)
        self.lease = self.following = None
        return held

    def struck(self, names: Sequence[str]) -> None:
        """Forget names that the book has forgotten."""
        self.spent = tuple(name for name in self.spent if name not in names)

    def _drop(self, lease: Lease) -> None:
        # Tokens left in it are lost: nobody may use them once the book has forgotten the lease.
        self.spent = (*self.spent, lease.name)[-8:]


def book_key(key: str) -> str:
    """Where the leases on a bucket are written down; in the same slot."""
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
    """KEYS and ARGV for LEASE_SCRIPT."""
    arguments: list[str | int] = [len(limits), name, round(ttl * 1_000_000), needed, wanted]
    for each in limits:
        arguments += (each.terms.unit, each.terms.most, each.tokens, each.most_out)
    return _with_books(keys), [*arguments, *spent]


def return_arguments(
    keys: Sequence[str], limits: Sequence[LeaseTerms], lease: Lease
) -> tuple[list[str], list[str | int]]:
    """KEYS and ARGV for RETURN_SCRIPT."""
    arguments: list[str | int] = [lease.name, lease.left]
    for each in limits:
        arguments += (each.terms.unit, each.terms.most, each.tokens)
    return _with_books(keys), arguments


def parse_grant(reply: Sequence[int]) -> Grant:
    """LEASE_SCRIPT's reply."""
    answers = tuple(Answer(*reply[at : at + 4]) for at in range(1, len(reply), 4))
    return Grant(reply[0], answers)


def _with_books(keys: Sequence[str]) -> list[str]:
    return [each for key in keys for each in (key, book_key(key))]
