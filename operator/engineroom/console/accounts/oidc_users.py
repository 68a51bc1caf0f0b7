"""Users of the OIDC provider as of their last sign-in, and accounts that were removed; in Redis.

A user's grants follow from the groups at the last sign-in, on any browser: when the provider
removes a group, the next sign-in takes its rights from all sessions, tokens and keys of the user.
The records are sealed, so write access to Redis cannot add a group.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.auth.store_errors import store_errors
from engineroom.core import key_prefixes
from engineroom.core.async_cache import AsyncCache
from engineroom.core.redis_replies import text
from engineroom.core.sealing import Sealer, log_broken

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from engineroom.auth.oidc.id_token import OidcIdentity
    from engineroom.core.clock import Clock

#: Seconds for which a replica caches an answer of Redis, and so may miss a change.
CACHE_SECONDS = 0.5
#: Seconds for which a removed account is blocked on replicas that still have the old files. The
#: kubelet updates a ConfigMap within a minute or two, unless it cannot reach the API server.
BLOCK_SECONDS = 3600
#: Prefix in URL paths for users whose subject contains a URL.
PATH_PREFIX = "oidc:"


@dataclass(frozen=True, slots=True)
class OidcUser:
    """A user who signed in at the provider. ``signed_in`` is Unix seconds."""

    subject: str
    name: str = ""
    email: str = ""
    groups: tuple[str, ...] = ()
    signed_in: float = 0.0


def path_of(subject: str) -> str:
    """Return the name of a provider user in URL paths."""
    return PATH_PREFIX + _hash(subject)


class OidcUsers:
    """Stores users for ``remember`` seconds after their last sign-in."""

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        secret: bytes,
        *,
        remember: float,
        name: str = key_prefixes.CONSOLE_API,
        cache_seconds: float = CACHE_SECONDS,
        on_broken: Callable[[str, str], None] = log_broken,
    ) -> None:
        """``secret``, at least 32 bytes, seals the records; see ``Sealer`` for ``on_broken``."""
        self._redis = redis
        self._clock = clock
        self._remember = remember
        self._name = name
        self._sealer = Sealer(secret, "person", on_broken)
        self._cache_seconds = cache_seconds
        self._users: AsyncCache[OidcUser | None] = AsyncCache(clock)
        self._blocked: AsyncCache[bool] = AsyncCache(clock)

    async def remember(self, identity: OidcIdentity) -> None:
        """Store a user who just signed in. Raises AuthStoreError."""
        now = self._clock.now().timestamp()
        record = {
            "subject": identity.subject,
            "name": identity.name,
            "email": identity.email,
            "groups": list(identity.groups),
            "signedIn": now,
        }
        key = _hash(identity.subject)
        with store_errors():
            sealed = self._sealer.wrap(self._user_key(key), json.dumps(record))
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.set(self._user_key(key), sealed, ex=int(self._remember))
                pipeline.zadd(self._index, {key: now})
                pipeline.zremrangebyscore(self._index, "-inf", now - self._remember)
                await pipeline.execute()
        self._users.forget(key)

    async def find(self, subject: str) -> OidcUser | None:
        """Return a user, or None if the last sign-in is too old. Raises AuthStoreError."""
        return await self._get(_hash(subject))

    async def find_by_path(self, path: str) -> OidcUser | None:
        """Return a user by the name in URL paths. Raises AuthStoreError."""
        return await self._get(path.removeprefix(PATH_PREFIX))

    async def forget(self, subject: str) -> bool:
        """Delete a user, who has no rights until the next sign-in; return False if absent."""
        key = _hash(subject)
        with store_errors():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(self._user_key(key))
                pipeline.zrem(self._index, key)
                deleted, _ = await pipeline.execute()
        self._users.forget(key)
        return bool(deleted)

    async def page(self, after: str, count: int) -> tuple[list[OidcUser], str]:
        """Return up to ``count`` users, the latest sign-in first, and the position after them.

        The position is "" at the end; ``after`` is a position, or "" for the beginning. A user who
        signs in between two pages may appear twice; no user is missing. Raises AuthStoreError.
        """
        score, _, last = after.partition(":")
        with store_errors():
            start = 0
            if last:
                async with self._redis.pipeline(transaction=True) as pipeline:
                    pipeline.zscore(self._index, last)
                    pipeline.zrevrank(self._index, last)
                    pipeline.zcount(self._index, f"({score}", "+inf")
                    now, rank, higher = await pipeline.execute()
                start = rank + 1 if now is not None and repr(float(now)) == score else higher
            rows: Any = await self._redis.zrevrange(
                self._index, start, start + count, withscores=True
            )
            keys = [text(key) for key, _ in rows[:count]]
            raws = await self._redis.mget([self._user_key(key) for key in keys]) if keys else []
        read = (
            self._read(key, raw) for key, raw in zip(keys, raws, strict=True) if raw is not None
        )
        users = [user for user in read if user is not None]
        more = len(rows) > count
        return users, f"{float(rows[count - 1][1])!r}:{keys[-1]}" if more else ""

    async def block(self, subject: str) -> None:
        """Block a removed account on every replica. Raises AuthStoreError."""
        with store_errors():
            await self._redis.set(self._block_key(subject), "1", ex=BLOCK_SECONDS)
        self._blocked.forget(subject)

    async def unblock(self, subject: str) -> None:
        """Unblock an account that was added again. Raises AuthStoreError."""
        with store_errors():
            await self._redis.delete(self._block_key(subject))
        self._blocked.forget(subject)

    async def blocked(self, subject: str) -> bool:
        """Return True if any replica has removed the account. Raises AuthStoreError."""

        async def fetch() -> tuple[bool, float]:
            with store_errors():
                return bool(await self._redis.exists(self._block_key(subject))), self._cache_seconds

        return await self._blocked.get(subject, fetch)

    async def claim_change(self, subject: str, change: str) -> bool:
        """Return True for the first replica that handles a change. Raises AuthStoreError."""
        key = f"{self._name}:changed:{_hash(subject + change)}"
        with store_errors():
            return bool(await self._redis.set(key, "1", ex=BLOCK_SECONDS, nx=True))

    async def _get(self, key: str) -> OidcUser | None:
        async def fetch() -> tuple[OidcUser | None, float]:
            with store_errors():
                raw = await self._redis.get(self._user_key(key))
            return (None if raw is None else self._read(key, raw)), self._cache_seconds

        return await self._users.get(key, fetch)

    def _read(self, key: str, raw: Any) -> OidcUser | None:
        """Return the user; None if the seal is broken or the sign-in is too old."""
        unsealed = self._sealer.unwrap(self._user_key(key), text(raw))
        if unsealed is None:
            return None
        record = json.loads(unsealed)
        if self._clock.now().timestamp() >= record["signedIn"] + self._remember:
            return None
        return OidcUser(
            subject=record["subject"],
            name=record["name"],
            email=record["email"],
            groups=tuple(record["groups"]),
            signed_in=record["signedIn"],
        )

    @property
    def _index(self) -> str:
        return f"{self._name}:people"

    def _user_key(self, key: str) -> str:
        return f"{self._name}:person:{key}"

    def _block_key(self, subject: str) -> str:
        return f"{self._name}:gone:{_hash(subject)}"


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:40]
