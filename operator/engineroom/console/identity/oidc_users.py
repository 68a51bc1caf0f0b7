"""People of the OIDC provider as they last signed in, and accounts that are gone; in Redis.

What somebody may do follows from the groups that he had at his last sign-in, wherever that was: a
session, a token or a key of his loses with the next sign-in what the provider took away. Each
person is sealed: who writes Redis gives nobody a group.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.core.async_cache import Kept
from engineroom.core.sealing import Sealer, log_broken
from engineroom.redis.errors import asking, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from engineroom.auth.oidc.id_token import Identity
    from engineroom.core.clock import Clock

#: Seconds for which an answer of Redis is good: so long a replica may not know of a change.
KEEP = 0.5
#: Seconds for which a removed account stays out on replicas that have not seen the change: the
#: kubelet brings a ConfigMap within a minute or two, unless it cannot reach the API server.
GONE = 3600
#: What stands in a path for somebody whose subject has a URL in it.
PATH_PREFIX = "oidc:"


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who signed in at the provider. ``signed_in`` is Unix seconds."""

    subject: str
    name: str = ""
    email: str = ""
    groups: tuple[str, ...] = ()
    signed_in: float = 0.0


def path_of(subject: str) -> str:
    """How somebody of the provider is named in a path."""
    return PATH_PREFIX + _hash(subject)


class People:
    """Remembers people for ``remember`` seconds after their last sign-in."""

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        secret: bytes,
        *,
        remember: float,
        name: str = "engineroom:api",
        keep: float = KEEP,
        on_broken: Callable[[str, str], None] = log_broken,
    ) -> None:
        """``secret``, of at least 32 bytes, seals them; see ``Sealer`` for ``on_broken``."""
        self._redis = redis
        self._clock = clock
        self._remember = remember
        self._name = name
        self._sealer = Sealer(secret, "person", on_broken)
        self._keep = keep
        self._people: Kept[Person | None] = Kept(clock)
        self._barred: Kept[bool] = Kept(clock)

    async def signed_in(self, identity: Identity) -> None:
        """Remember who somebody is, as of now. Raises AuthStoreError."""
        now = self._clock.now().timestamp()
        record = {
            "subject": identity.subject,
            "name": identity.name,
            "email": identity.email,
            "groups": list(identity.groups),
            "signedIn": now,
        }
        key = _hash(identity.subject)
        with asking():
            sealed = self._sealer.wrap(self._person(key), json.dumps(record))
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.set(self._person(key), sealed, ex=int(self._remember))
                pipeline.zadd(self._index, {key: now})
                pipeline.zremrangebyscore(self._index, "-inf", now - self._remember)
                await pipeline.execute()
        self._people.forget(key)

    async def find(self, subject: str) -> Person | None:
        """Somebody, or None where he did not sign in for too long. Raises AuthStoreError."""
        return await self._found(_hash(subject))

    async def at(self, path: str) -> Person | None:
        """Somebody by his name in a path. Raises AuthStoreError."""
        return await self._found(path.removeprefix(PATH_PREFIX))

    async def forget(self, subject: str) -> bool:
        """Forget somebody, who has no right until he signs in again; False for none."""
        key = _hash(subject)
        with asking():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(self._person(key))
                pipeline.zrem(self._index, key)
                deleted, _ = await pipeline.execute()
        self._people.forget(key)
        return bool(deleted)

    async def page(self, after: str, count: int) -> tuple[list[Person], str]:
        """``count`` people, who signed in last first, and the place after them or "" at the end.

        ``after`` is such a place, or "" for the beginning. Somebody who signs in meanwhile may come
        twice; nobody is left out. Raises AuthStoreError.
        """
        score, _, last = after.partition(":")
        with asking():
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
            found = await self._redis.mget([self._person(key) for key in keys]) if keys else []
        read = (
            self._read(key, raw) for key, raw in zip(keys, found, strict=True) if raw is not None
        )
        people = [person for person in read if person is not None]
        more = len(rows) > count
        return people, f"{float(rows[count - 1][1])!r}:{keys[-1]}" if more else ""

    async def bar(self, subject: str) -> None:
        """Keep a removed account out, on every replica. Raises AuthStoreError."""
        with asking():
            await self._redis.set(self._gone(subject), "1", ex=GONE)
        self._barred.forget(subject)

    async def admit(self, subject: str) -> None:
        """An account that was removed is there again. Raises AuthStoreError."""
        with asking():
            await self._redis.delete(self._gone(subject))
        self._barred.forget(subject)

    async def barred(self, subject: str) -> bool:
        """Whether another replica has seen the account go. Raises AuthStoreError."""

        async def ask() -> tuple[bool, float]:
            with asking():
                return bool(await self._redis.exists(self._gone(subject))), self._keep

        return await self._barred.get(subject, ask)

    async def first(self, subject: str, change: str) -> bool:
        """Whether nobody has dealt with a change of an account yet. Raises AuthStoreError."""
        key = f"{self._name}:changed:{_hash(subject + change)}"
        with asking():
            return bool(await self._redis.set(key, "1", ex=GONE, nx=True))

    async def _found(self, key: str) -> Person | None:
        async def ask() -> tuple[Person | None, float]:
            with asking():
                raw = await self._redis.get(self._person(key))
            return (None if raw is None else self._read(key, raw)), self._keep

        return await self._people.get(key, ask)

    def _read(self, key: str, raw: Any) -> Person | None:
        """Somebody; None where this was not sealed for him, or is from before what is kept."""
        kept = self._sealer.unwrap(self._person(key), text(raw))
        if kept is None:
            return None
        said = json.loads(kept)
        if self._clock.now().timestamp() >= said["signedIn"] + self._remember:
            return None
        return Person(
            said["subject"], said["name"], said["email"], tuple(said["groups"]), said["signedIn"]
        )

    @property
    def _index(self) -> str:
        return f"{self._name}:people"

    def _person(self, key: str) -> str:
        return f"{self._name}:person:{key}"

    def _gone(self, subject: str) -> str:
        return f"{self._name}:gone:{_hash(subject)}"


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:40]
