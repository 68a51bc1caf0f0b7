"""Sessions of people with a browser: kept in Redis, known to the browser by a random id only.

Redis holds the hash of the id, so that who reads Redis cannot take a session over, and each session
is sealed, so that who writes Redis cannot make one up. The id changes at sign-in and whenever
rights rise; what somebody planted or overheard before is worth nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from engineroom.auth.audit.hash_chain import derived
from engineroom.auth.errors import CsrfError, SessionError
from engineroom.auth.tokens.access_tokens import grants_of
from engineroom.core.sealing import Sealer, log_broken
from engineroom.redis.errors import asking, text, texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from redis.asyncio import Redis

    from engineroom.auth.permissions import Grant
    from engineroom.core.clock import Clock

#: The prefix binds the cookie to this host, to https and to the path / (RFC 6265bis).
COOKIE = "__Host-engineroom"
#: Where a request that changes something carries its session's token.
CSRF_HEADER = "x-csrf-token"
_ID_LENGTH = 43


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a session lives, in seconds: unused, and at all."""

    idle: float = 1800.0
    absolute: float = 12 * 3600.0

    @property
    def touch_every(self) -> float:
        """Seconds between two writes of when it was last used."""
        return min(60.0, self.idle / 10)


@dataclass(frozen=True, slots=True)
class Session:
    """A session. ``handle`` names it in lists and is no secret. Times are Unix seconds."""

    handle: str
    subject: str
    created: float
    seen: float
    ends: float
    grants: tuple[Grant, ...] = ()
    address: str = ""
    agent: str = ""
    #: Of somebody whom the cluster knows: who he is there. Empty for everybody else.
    person: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Opened:
    """A session with its secrets: the id for the cookie and the CSRF token for the pages."""

    session: Session
    id: str = field(repr=False)
    csrf: str = field(repr=False)

    @property
    def cookie(self) -> str:
        """The value of Set-Cookie. Without Max-Age: it ends with the browser, or here."""
        return f"{COOKIE}={self.id}; Path=/; Secure; HttpOnly; SameSite=Lax"


#: The value of Set-Cookie that makes a browser forget it.
FORGET_COOKIE = f"{COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0"


class Sessions:
    """Opens, recognises, lists and ends sessions.

    ``secret`` makes the CSRF tokens and seals the sessions.
    """

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        secret: bytes,
        *,
        limits: Limits | None = None,
        name: str = "engineroom:auth:session",
        on_broken: Callable[[str, str], None] = log_broken,
    ) -> None:
        """``on_broken`` hears of sessions that somebody else wrote; see ``Sealer``."""
        if len(secret) < 32:
            msg = "secret: must be at least 32 bytes; make one with openssl rand -base64 48"
            raise ValueError(msg)
        self._redis = redis
        self._clock = clock
        self._secret = secret
        self._sealer = Sealer(derived(secret, "seal"), "session", on_broken)
        self._limits = limits or Limits()
        self._name = name

    async def open(
        self,
        subject: str,
        grants: Iterable[Grant],
        *,
        previous: str = "",
        address: str = "",
        agent: str = "",
        person: str = "",
        ends: float | None = None,
    ) -> Opened:
        """A session for somebody who just proved who he is, under an id that nobody knew before.

        ``previous`` is the id that the browser came with, which ends. ``ends`` (Unix seconds) is
        when the session is over at the latest, if that is sooner than its own limit. Raises
        AuthStoreError.
        """
        now = self._clock.now().timestamp()
        latest = now + self._limits.absolute
        session = Session(
            handle=secrets.token_hex(8),
            subject=subject,
            created=now,
            seen=now,
            ends=latest if ends is None else min(ends, latest),
            grants=tuple(grants),
            address=address[:64],
            agent=agent[:256],
            person=person,
        )
        if previous:
            await self.close(previous)
        return await self._keep(session)

    async def resume(self, identity: str) -> Session:
        """The session of that id. Raises SessionError when it is none or over; AuthStoreError."""
        session = await self._read(identity)
        now = self._clock.now().timestamp()
        if now - session.seen >= self._limits.touch_every:
            key = self._key(identity)
            seal = self._sealed(key, replace(session, seen=now))["seal"]
            with asking():
                await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                    _TOUCH, 1, key, repr(now), seal, str(self._life(session, now))
                )
        return session

    async def elevate(self, identity: str, grants: Iterable[Grant]) -> Opened:
        """The session with other rights, under a new id; the old id is over at once.

        Of two that elevate one session at the same time one finds it gone.
        Raises SessionError and AuthStoreError.
        """
        old = await self._read(identity)
        now = self._clock.now().timestamp()
        session = replace(old, seen=now, grants=tuple(grants))
        new = secrets.token_urlsafe(32)
        with asking():
            moved = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _MOVE,
                3,
                self._key(identity),
                self._key(new),
                self._owned(old.subject),
                old.handle,
                str(self._life(session, now)),
                *(part for pair in self._sealed(self._key(new), session).items() for part in pair),
            )
        if not moved:
            raise SessionError("session: has ended; sign in again")
        return Opened(session, new, self.csrf(new))

    async def close(self, identity: str) -> None:
        """Sign out. An id that is none is no error. Raises AuthStoreError."""
        if len(identity) != _ID_LENGTH:
            return
        key = self._key(identity)
        with asking():
            subject, handle = await self._redis.hmget(key, ["subject", "handle"])
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.delete(key)
            if subject is not None:
                pipeline.hdel(self._owned(text(subject)), text(handle))
            await pipeline.execute()

    async def of(self, subject: str) -> list[Session]:
        """Somebody's living sessions, the last used first. Raises AuthStoreError."""
        owned = self._owned(subject)
        with asking():
            handles = texts(await self._redis.hgetall(owned))
            pipeline = self._redis.pipeline(transaction=False)
            for key in handles.values():
                pipeline.hgetall(key)
            rows = [texts(row) for row in await pipeline.execute()] if handles else []
            over = [handle for handle, row in zip(handles, rows, strict=True) if not row]
            if over:
                await self._redis.hdel(owned, *over)
        now = self._clock.now().timestamp()
        found = [
            self._opened(key, row) for key, row in zip(handles.values(), rows, strict=True) if row
        ]
        living = [session for session in found if session and self._lives(session, now)]
        return sorted(living, key=lambda session: -session.seen)

    async def end(self, subject: str, handle: str) -> bool:
        """End one of somebody's sessions; False if he has none of that name. AuthStoreError."""
        owned = self._owned(subject)
        with asking():
            ended = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _END, 1, owned, handle
            )
        return bool(ended)

    async def end_all(self, subject: str, *, keep: str = "") -> int:
        """End all of somebody's sessions but the one with the handle ``keep``; how many ended."""
        handles = [session.handle for session in await self.of(subject)]
        ended = [await self.end(subject, handle) for handle in handles if handle != keep]
        return sum(ended)

    def csrf(self, identity: str) -> str:
        """The token that a page of this session carries: bound to the id, so it changes with it."""
        message = b"csrf:" + identity.encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()

    def check_csrf(self, identity: str, token: str) -> None:
        """Raises CsrfError unless the token is that of this session; constant time."""
        if not hmac.compare_digest(self.csrf(identity).encode(), token.encode()):
            raise CsrfError(f"{CSRF_HEADER}: is missing or of another session; reload the page")

    async def _read(self, identity: str) -> Session:
        if len(identity) != _ID_LENGTH or not identity.isascii():
            raise SessionError("session: is unknown; sign in")
        key = self._key(identity)
        with asking():
            fields = texts(await self._redis.hgetall(key))
        session = self._opened(key, fields) if fields else None
        if session is None:
            raise SessionError("session: has ended; sign in again")
        if not self._lives(session, self._clock.now().timestamp()):
            await self.close(identity)
            raise SessionError("session: has ended; sign in again")
        return session

    async def _keep(self, session: Session) -> Opened:
        identity = secrets.token_urlsafe(32)
        key, owned = self._key(identity), self._owned(session.subject)
        with asking():
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hset(key, mapping=dict[Any, Any](self._sealed(key, session)))
            pipeline.expire(key, self._life(session, session.seen))
            pipeline.hset(owned, session.handle, key)
            pipeline.expire(owned, int(self._limits.absolute) + 60)
            await pipeline.execute()
        return Opened(session, identity, self.csrf(identity))

    def _sealed(self, key: str, session: Session) -> dict[str, str]:
        fields = _fields(session)
        return {**fields, "seal": self._sealer.seal_fields(key, fields)}

    def _opened(self, key: str, fields: dict[str, str]) -> Session | None:
        """The session, or None where these are not fields that were sealed for this key."""
        seal = fields.pop("seal", "")
        return _session(fields) if self._sealer.fields_hold(seal, key, fields) else None

    def _lives(self, session: Session, now: float) -> bool:
        return now < session.ends and now - session.seen < self._limits.idle

    def _life(self, session: Session, now: float) -> int:
        return max(1, int(min(self._limits.idle, session.ends - now)) + 1)

    def _key(self, identity: str) -> str:
        return f"{self._name}:{hashlib.sha256(identity.encode()).hexdigest()}"

    def _owned(self, subject: str) -> str:
        return f"{self._name}s:{hashlib.sha256(subject.encode()).hexdigest()}"


# A touch that comes after the end must not make half a session.
_TOUCH = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'seen', ARGV[1], 'seal', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""

# In one step, so that a session that is ended at this moment is not brought back under a new id.
_MOVE = """
if redis.call('DEL', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[3], ARGV[1], KEYS[2])
return 1
"""

# The id may be changing at this moment: which key is the session's is read where it is deleted.
_END = """
local key = redis.call('HGET', KEYS[1], ARGV[1])
if not key then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
return redis.call('DEL', key)
"""


def _fields(session: Session) -> dict[str, str]:
    return {
        "handle": session.handle,
        "subject": session.subject,
        "created": repr(session.created),
        "seen": repr(session.seen),
        "ends": repr(session.ends),
        "grants": json.dumps([[g.role, sorted(g.namespaces)] for g in session.grants]),
        "address": session.address,
        "agent": session.agent,
        "person": session.person,
    }


def _session(fields: dict[str, str]) -> Session:
    return Session(
        handle=fields["handle"],
        subject=fields["subject"],
        created=float(fields["created"]),
        seen=float(fields["seen"]),
        ends=float(fields["ends"]),
        grants=grants_of(json.loads(fields["grants"])),
        address=fields["address"],
        agent=fields["agent"],
        person=fields["person"],
    )
