"""One-time links: codes that sign a known user in to a browser session, once.

A code has 256 bits and lives for at most a minute. Redis holds the identity under the code's hash;
taking a code deletes it in one step, so it opens at most one session. The record is sealed: write
access to Redis does not permit a forged identity.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.auth.errors import LinkError
from engineroom.auth.store_errors import store_errors
from engineroom.auth.tokens.access_tokens import grants_of
from engineroom.core import key_prefixes
from engineroom.core.redis_replies import text
from engineroom.core.sealing import Sealer, log_broken

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from engineroom.auth.permissions import Grant
    from engineroom.core.clock import Clock

#: Most seconds that a code lives.
LIFE = 60
_FORM = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class LoginLink:
    """The identity that a link signs in. Times are Unix seconds.

    ``person`` is an identity of the cluster (``engineroom.auth.kubernetes.pack_identity``) or
    empty. ``ends`` limits the session, None for the sessions' own limits. ``LoginLinks.make`` sets
    ``created``.
    """

    subject: str
    grants: tuple[Grant, ...] = ()
    person: str = ""
    ends: float | None = None
    created: float = 0.0


class LoginLinks:
    """Creates and redeems codes."""

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        secret: bytes,
        *,
        life: int = LIFE,
        name: str = key_prefixes.LOGIN_LINKS,
        on_broken: Callable[[str, str], None] = log_broken,
    ) -> None:
        """``secret``, of at least 32 bytes, seals the records; ``on_broken``: see ``Sealer``."""
        if not 1 <= life <= LIFE:
            raise ValueError(f"life: must be 1 to {LIFE} seconds")
        self._redis = redis
        self._clock = clock
        self._life = life
        self._sealer = Sealer(secret, "sign-in link", on_broken)
        self._name = name

    async def make(self, link: LoginLink) -> tuple[str, float]:
        """Create a code; return it and its expiry in Unix seconds. Raises AuthStoreError."""
        code = secrets.token_urlsafe(32)
        now = self._clock.now().timestamp()
        expires = now + self._life
        record = {
            "subject": link.subject,
            "grants": [[g.role, sorted(g.namespaces)] for g in link.grants],
            "person": link.person,
            "ends": link.ends,
            "made": now,
            "expires": expires,
        }
        key = self._key(code)
        with store_errors():
            await self._redis.set(
                key, self._sealer.wrap(key, json.dumps(record)), ex=self._life, nx=True
            )
        return code, expires

    async def take(self, code: str) -> LoginLink:
        """Redeem a code and return its identity; raise LinkError or AuthStoreError."""
        if not _FORM.fullmatch(code):
            raise LinkError
        key = self._key(code)
        with store_errors():
            value = await self._redis.getdel(key)
        content = None if value is None else self._sealer.unwrap(key, text(value))
        if content is None:
            raise LinkError
        record: dict[str, Any] = json.loads(content)
        now = self._clock.now().timestamp()
        # The expiry in Redis depends on the clock of Redis, which an attacker might stop.
        if now >= record["expires"] or (record["ends"] is not None and now >= record["ends"]):
            raise LinkError
        return LoginLink(
            subject=record["subject"],
            grants=grants_of(record["grants"]),
            person=record["person"],
            ends=record["ends"],
            created=record["made"],
        )

    def _key(self, code: str) -> str:
        return f"{self._name}:{hashlib.sha256(code.encode()).hexdigest()}"
