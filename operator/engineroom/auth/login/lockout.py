"""Limits on password attempts for each account and each address.

An attempt is counted before the password is checked, and the count is returned if it was correct.
So parallel guesses get no more checks than sequential ones. An attacker can lock out an account's
owner by guessing; that is why a lockout lasts minutes, not for ever.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from engineroom.auth.errors import CredentialsError, LockedOutError
from engineroom.auth.store_errors import store_errors
from engineroom.core import key_prefixes
from engineroom.core.redis_replies import text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from engineroom.auth.login.passwords import Passwords
    from engineroom.core.clock import Clock


@dataclass(frozen=True, slots=True)
class AttemptRate:
    """A limit: ``burst`` attempts at once, then one more every ``every`` seconds."""

    burst: int
    every: float


#: 10 wrong attempts, then one every 90 s: a lockout of an account lasts that long.
ACCOUNT = AttemptRate(burst=10, every=90.0)
#: Higher, because many users may share an address; still slow for a list of accounts.
ADDRESS = AttemptRate(burst=30, every=10.0)


class AttemptCounter(Protocol):
    """A counter of attempts."""

    async def take(self, key: str, rate: AttemptRate) -> float:
        """Take one attempt; return 0.0, or the seconds until the next one is available."""
        ...

    async def give_back(self, key: str, rate: AttemptRate) -> None:
        """Return an attempt taken earlier."""
        ...


class RedisAttemptCounter:
    """A counter in Redis by GCRA (ATM Forum's generic cell rate algorithm), one number a key."""

    def __init__(
        self, redis: Redis, clock: Clock, *, name: str = key_prefixes.SIGN_IN_ATTEMPTS
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._name = name

    async def take(self, key: str, rate: AttemptRate) -> float:
        """Take one attempt; see ``AttemptCounter``."""
        now = self._clock.now().timestamp()
        with store_errors():
            wait = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _TAKE, 1, self._key(key), repr(now), repr(rate.every), str(rate.burst)
            )
        return float(text(wait))

    async def give_back(self, key: str, rate: AttemptRate) -> None:
        """Return an attempt taken earlier."""
        now = self._clock.now().timestamp()
        with store_errors():
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
    """Return the key of a subscriber: an IPv4 address, or the /64 of an IPv6 address."""
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
class PasswordAccount:
    """An account with a password."""

    subject: str
    password_hash: str


class SignIn:
    """Sign-in by name and password, with limits on attempts; errors do not say what was wrong."""

    def __init__(
        self,
        counter: AttemptCounter,
        passwords: Passwords,
        find: Callable[[str], Awaitable[PasswordAccount | None]],
        *,
        keep_hash: Callable[[str, str], Awaitable[None]] | None = None,
        account: AttemptRate = ACCOUNT,
        address: AttemptRate = ADDRESS,
    ) -> None:
        """``find`` looks up an account by its name; ``keep_hash`` stores (subject, new hash)."""
        self._counter = counter
        self._passwords = passwords
        self._find = find
        self._keep_hash = keep_hash
        self._rates = {"account": account, "address": address}

    async def attempt(self, name: str, password: str, address: str) -> PasswordAccount:
        """Return the account; raise CredentialsError, LockedOutError or AuthStoreError.

        Unknown names have the same limits, timing and answer as known ones.
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
        check = await self._passwords.verify(account.password_hash if account else None, password)
        if account is None or not check.is_valid:
            raise CredentialsError("name or password: wrong; check both")
        for what in taken:
            await self._counter.give_back(tries[what], self._rates[what])
        if check.rehash and self._keep_hash is not None:
            await self._keep_hash(account.subject, check.rehash)
        return account
