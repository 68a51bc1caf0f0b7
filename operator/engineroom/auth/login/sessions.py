"""Browser sessions, stored in Redis and identified by a random id in a cookie.

Redis holds only the hash of the id, so read access to Redis does not permit a takeover. Each
session is sealed, so write access does not permit a forged one. The id changes at sign-in and
whenever rights rise, which makes a planted or stolen earlier id worthless.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from engineroom.auth.audit.hash_chain import derive_secret
from engineroom.auth.errors import CsrfError, SessionError
from engineroom.auth.store_errors import store_errors
from engineroom.auth.tokens.access_tokens import grants_of
from engineroom.core import key_prefixes
from engineroom.core.redis_replies import text, texts
from engineroom.core.sealing import Sealer, log_broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from redis.asyncio import Redis

    from engineroom.auth.permissions import Grant
    from engineroom.core.clock import Clock

#: The name of the cookie. Its prefix binds it to the host, to https and to the path / (RFC
#: 6265bis).
COOKIE = "__Host-engineroom"
#: The header with the session's CSRF token, needed by requests that change something.
CSRF_HEADER = "x-csrf-token"
_ID_LENGTH = 43


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """The lifetime of a session in seconds: without use, and in total."""

    idle: float = 1800.0
    absolute: float = 12 * 3600.0

    @property
    def touch_every(self) -> float:
        """Least seconds between two updates of the time of last use."""
        return min(60.0, self.idle / 10)


@dataclass(frozen=True, slots=True)
class Session:
    """A session. ``handle`` identifies it in lists and is not secret. Times are Unix seconds."""

    handle: str
    subject: str
    created: float
    last_used: float
    ends: float
    grants: tuple[Grant, ...] = ()
    address: str = ""
    agent: str = ""
    #: The identity in the cluster (``kubernetes.pack_identity``), or empty.
    person: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session with its secrets: the id for the cookie, and the CSRF token for pages."""

    session: Session
    id: str = field(repr=False)
    csrf: str = field(repr=False)

    @property
    def cookie(self) -> str:
        """The value of Set-Cookie, without Max-Age: the cookie ends with the browser."""
        return f"{COOKIE}={self.id}; Path=/; Secure; HttpOnly; SameSite=Lax"


#: The value of Set-Cookie that deletes the cookie.
FORGET_COOKIE = f"{COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0"


class Sessions:
    """Opens, resumes, lists and ends sessions.

    ``secret`` derives the CSRF tokens and seals the sessions.
    """

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        secret: bytes,
        *,
        limits: SessionLimits | None = None,
        name: str = key_prefixes.SESSIONS,
        on_broken: Callable[[str, str], None] = log_broken,
    ) -> None:
        """``secret`` has at least 32 bytes; ``on_broken``: see ``Sealer``."""
        if len(secret) < 32:
            msg = "secret: must be at least 32 bytes; make one with openssl rand -base64 48"
            raise ValueError(msg)
        self._redis = redis
        self._clock = clock
        self._secret = secret
        self._sealer = Sealer(derive_secret(secret, "seal"), "session", on_broken)
        self._limits = limits or SessionLimits()
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
    ) -> NewSession:
        """Open a session with a new id after a successful sign-in.

        ``previous`` is the browser's earlier id, whose session ends. ``ends`` (Unix seconds) limits
        the session if it is earlier than the session's own limit. Raises AuthStoreError.
        """
        now = self._clock.now().timestamp()
        latest = now + self._limits.absolute
        session = Session(
            handle=secrets.token_hex(8),
            subject=subject,
            created=now,
            last_used=now,
            ends=latest if ends is None else min(ends, latest),
            grants=tuple(grants),
            address=address[:64],
            agent=agent[:256],
            person=person,
        )
        if previous:
            await self.close(previous)
        return await self._store(session)

    async def resume(self, identity: str) -> Session:
        """Return the session of an id; raise SessionError if it is unknown or over.

        Raises AuthStoreError.
        """
        session = await self._read(identity)
        now = self._clock.now().timestamp()
        if now - session.last_used >= self._limits.touch_every:
            key = self._key(identity)
            seal = self._seal_fields(key, replace(session, last_used=now))["seal"]
            with store_errors():
                await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                    _TOUCH, 1, key, repr(now), seal, str(self._life(session, now))
                )
        return session

    async def elevate(self, identity: str, grants: Iterable[Grant]) -> NewSession:
        """Move a session to a new id with other grants; the old id ends at once.

        Of two concurrent calls one raises SessionError. Raises AuthStoreError.
        """
        old = await self._read(identity)
        now = self._clock.now().timestamp()
        session = replace(old, last_used=now, grants=tuple(grants))
        new = secrets.token_urlsafe(32)
        with store_errors():
            moved = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _MOVE,
                3,
                self._key(identity),
                self._key(new),
                self._subject_key(old.subject),
                old.handle,
                str(self._life(session, now)),
                *(
                    part
                    for pair in self._seal_fields(self._key(new), session).items()
                    for part in pair
                ),
            )
        if not moved:
            raise SessionError("session: has ended; sign in again")
        return NewSession(session, new, self.csrf(new))

    async def close(self, identity: str) -> None:
        """End a session; an unknown id is not an error. Raises AuthStoreError."""
        if len(identity) != _ID_LENGTH:
            return
        key = self._key(identity)
        with store_errors():
            subject, handle = await self._redis.hmget(key, ["subject", "handle"])
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.delete(key)
            if subject is not None:
                pipeline.hdel(self._subject_key(text(subject)), text(handle))
            await pipeline.execute()

    async def of(self, subject: str) -> list[Session]:
        """Return the live sessions of a subject, last used first. Raises AuthStoreError."""
        owned = self._subject_key(subject)
        with store_errors():
            handles = texts(await self._redis.hgetall(owned))
            pipeline = self._redis.pipeline(transaction=False)
            for key in handles.values():
                pipeline.hgetall(key)
            rows = [texts(row) for row in await pipeline.execute()] if handles else []
            over = [handle for handle, row in zip(handles, rows, strict=True) if not row]
            if over:
                await self._redis.hdel(owned, *over)
        now = self._clock.now().timestamp()
        sessions = [
            self._verify_fields(key, row)
            for key, row in zip(handles.values(), rows, strict=True)
            if row
        ]
        live = [session for session in sessions if session and self._is_live(session, now)]
        return sorted(live, key=lambda session: -session.last_used)

    async def end(self, subject: str, handle: str) -> bool:
        """End one session of a subject; return False if there is none with that handle.

        Raises AuthStoreError.
        """
        owned = self._subject_key(subject)
        with store_errors():
            ended = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _END, 1, owned, handle
            )
        return bool(ended)

    async def end_all(self, subject: str, *, keep: str = "") -> int:
        """End all sessions of a subject except the handle ``keep``; return how many ended."""
        handles = [session.handle for session in await self.of(subject)]
        ended = [await self.end(subject, handle) for handle in handles if handle != keep]
        return sum(ended)

    def csrf(self, identity: str) -> str:
        """Return the CSRF token of a session, which changes with its id."""
        message = b"csrf:" + identity.encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()

    def check_csrf(self, identity: str, token: str) -> None:
        """Raise CsrfError unless the token is the session's; takes constant time."""
        if not hmac.compare_digest(self.csrf(identity).encode(), token.encode()):
            raise CsrfError(f"{CSRF_HEADER}: is missing or wrong; reload the page")

    async def _read(self, identity: str) -> Session:
        if len(identity) != _ID_LENGTH or not identity.isascii():
            raise SessionError("session: is unknown; sign in")
        key = self._key(identity)
        with store_errors():
            fields = texts(await self._redis.hgetall(key))
        session = self._verify_fields(key, fields) if fields else None
        if session is None:
            raise SessionError("session: has ended; sign in again")
        if not self._is_live(session, self._clock.now().timestamp()):
            await self.close(identity)
            raise SessionError("session: has ended; sign in again")
        return session

    async def _store(self, session: Session) -> NewSession:
        identity = secrets.token_urlsafe(32)
        key, owned = self._key(identity), self._subject_key(session.subject)
        with store_errors():
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hset(key, mapping=dict[Any, Any](self._seal_fields(key, session)))
            pipeline.expire(key, self._life(session, session.last_used))
            pipeline.hset(owned, session.handle, key)
            pipeline.expire(owned, int(self._limits.absolute) + 60)
            await pipeline.execute()
        return NewSession(session, identity, self.csrf(identity))

    def _seal_fields(self, key: str, session: Session) -> dict[str, str]:
        fields = _fields(session)
        return {**fields, "seal": self._sealer.seal_fields(key, fields)}

    def _verify_fields(self, key: str, fields: dict[str, str]) -> Session | None:
        """Return the session, or None if the fields have no valid seal for this key."""
        seal = fields.pop("seal", "")
        return _session(fields) if self._sealer.fields_hold(seal, key, fields) else None

    def _is_live(self, session: Session, now: float) -> bool:
        return now < session.ends and now - session.last_used < self._limits.idle

    def _life(self, session: Session, now: float) -> int:
        return max(1, int(min(self._limits.idle, session.ends - now)) + 1)

    def _key(self, identity: str) -> str:
        return f"{self._name}:{hashlib.sha256(identity.encode()).hexdigest()}"

    def _subject_key(self, subject: str) -> str:
        return f"{self._name}s:{hashlib.sha256(subject.encode()).hexdigest()}"


# A touch after the end must not create a partial session.
_TOUCH = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'seen', ARGV[1], 'seal', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""

# One step, because a session that ends meanwhile must not return under a new id.
_MOVE = """
if redis.call('DEL', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[3], ARGV[1], KEYS[2])
return 1
"""

# One step, because the id, and so the session's key, may change meanwhile.
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
        "seen": repr(session.last_used),
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
        last_used=float(fields["seen"]),
        ends=float(fields["ends"]),
        grants=grants_of(json.loads(fields["grants"])),
        address=fields["address"],
        agent=fields["agent"],
        person=fields["person"],
    )
