"""Guessing made slow: per account and per address, counted before the guess is looked at.

An attempt costs a token first and gets it back when it was right; so of a thousand guesses sent
at once no more are looked at than of a thousand sent one by one. An account's limit lets others
keep its owner out for a while; that is the price, and why it is minutes and not for ever.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from engineroom.auth.errors import CredentialsError, LockedOutError
from engineroom.redis.errors import asking, text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from engineroom.auth.login.passwords import Passwords
    from engineroom.core.clock import Clock


@dataclass(frozen=True, slots=True)
class Rate:
    """``burst`` attempts at once, then one more every ``every`` seconds."""

    burst: int
    every: float


#: Ten wrong ones, then one every 90 s: the lockout of one account lasts that long at a time.
ACCOUNT = Rate(burst=10, every=90.0)
#: Offices share an address; a list of accounts tried from one address is still slow.
ADDRESS = Rate(burst=30, every=10.0)


class Counter(Protocol):
    """What counts. The project's rate limiter can stand in for the one below."""

    async def take(self, key: str, rate: Rate) -> float:
        """Take one attempt: 0.0 if there was one, else seconds until there will be."""
        ...

    async def give_back(self, key: str, rate: Rate) -> None:
        """Return one attempt that was taken."""
        ...


class RedisCounter:
    """GCRA (ATM Forum's generic cell rate algorithm) over one number a key, in Redis."""

    def __init__(self, redis: Redis, clock: Clock, *, name: str = "engineroom:auth:tries") -> None:
        self._redis = redis
        self._clock = clock
        self._name = name

    async def take(self, key: str, rate: Rate) -> float:
        """Take one attempt: 0.0 if there was one, else seconds until there will be."""
        now = self._clock.now().timestamp()
        with asking():
            wait = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _TAKE, 1, self._key(key), repr(now), repr(rate.every), str(rate.burst)
            )
        return float(text(wait))

    async def give_back(self, key: str, rate: Rate) -> None:
        """Return one attempt that was taken."""
        now = self._clock.now().timestamp()
        with asking():
            await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _GIVE_BACK, 1, self._key(key), repr(now), repr(rate.every)
            )

    def _key(self, key: str) -> str:
        return f"{self._name}:{hashlib.sha256(key.encode()).hexdigest()}"


_TAKE = """
local now, every, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local due = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) + every
local wait = due - burst * every - now
if wait > 0.000001 then return string.format('%.6f', wait) end
redis.call('SET', KEYS[1], string.format('%.6f', due), 'PX', math.ceil((due - now) * 1000))
return '0'
"""

_GIVE_BACK = """
local due = redis.call('GET', KEYS[1])
if not due then return 0 end
local now = tonumber(ARGV[1])
local less = tonumber(due) - tonumber(ARGV[2])
if less <= now then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], string.format('%.6f', less), 'PX', math.ceil((less - now) * 1000))
return 1
"""


def address_key(address: str) -> str:
    """One key a subscriber: an IPv4 address, or the /64 that an IPv6 subscriber has for himself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who may sign in with a password."""

    subject: str
    password_hash: str


class SignIn:
    """Name and password in, the account out; slow for who guesses, silent about what was wrong."""

    def __init__(
        self,
        counter: Counter,
        passwords: Passwords,
        find: Callable[[str], Awaitable[Account | None]],
        *,
        keep_hash: Callable[[str, str], Awaitable[None]] | None = None,
        account: Rate = ACCOUNT,
        address: Rate = ADDRESS,
    ) -> None:
        """``find`` looks an account up by its name; ``keep_hash`` keeps (subject, new hash)."""
        self._counter = counter
        self._passwords = passwords
        self._find = find
        self._keep_hash = keep_hash
        self._rates = {"account": account, "address": address}

    async def attempt(self, name: str, password: str, address: str) -> Account:
        """The account. Raises CredentialsError, LockedOutError or AuthStoreError.

        An unknown name is counted, waited for and answered like a known one.
        """
        tries = {
            "address": f"address:{address_key(address)}",
            "account": f"account:{name.casefold()[:255]}",
        }
        taken: list[str] = []
        for what, key in tries.items():
            wait = await self._counter.take(key, self._rates[what])
            if wait > 0:
                raise LockedOutError(wait)
            taken.append(what)
        account = await self._find(name) if 0 < len(name) <= 255 else None
        verdict = await self._passwords.verify(account.password_hash if account else None, password)
        if account is None or not verdict.right:
            raise CredentialsError("name or password: not right; check both")
        for what in taken:
            await self._counter.give_back(tries[what], self._rates[what])
        if verdict.rehash and self._keep_hash is not None:
            await self._keep_hash(account.subject, verdict.rehash)
        return account
