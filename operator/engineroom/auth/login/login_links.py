"""One-time links: a code that somebody who is known turns into a session in a browser, once.

The code has 256 bits and lives for a minute at most. Redis holds its hash, under which stands who
the session will be; to take it is to delete it, in one step, so of two that come with one code one
gets a session. What stands there is sealed: who writes Redis cannot say who a code is. A link says
who signs in, never what a browser already is: see the page that reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineroom.auth.errors import LinkError
from engineroom.auth.tokens.access_tokens import grants_of
from engineroom.core.sealing import Sealer, log_broken
from engineroom.redis.errors import asking, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from engineroom.auth.permissions import Grant
    from engineroom.core.clock import Clock

#: Seconds that a code lives.
LIFE = 60
_FORM = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Bound:
    """Who a session made of the code will be. Times are Unix seconds.

    ``person`` is of somebody whom the cluster knows, see ``engineroom.auth.kubernetes.packed``;
    ``ends`` is when the session must be over, None for the sessions' own limits; ``made`` is set
    by ``Links.make``.
    """

    subject: str
    grants: tuple[Grant, ...] = ()
    person: str = ""
    ends: float | None = None
    made: float = 0.0


class Links:
    """Makes codes and takes them back."""

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        secret: bytes,
        *,
        life: int = LIFE,
        name: str = "engineroom:auth:link",
        on_broken: Callable[[str, str], None] = log_broken,
    ) -> None:
        """``secret``, of at least 32 bytes, seals what stands in Redis; ``on_broken`` hears of what
        somebody else wrote there, see ``Sealer``.
        """
        if not 1 <= life <= LIFE:
            raise ValueError(f"life: must be 1 to {LIFE} seconds")
        self._redis = redis
        self._clock = clock
        self._life = life
        self._sealer = Sealer(secret, "sign-in link", on_broken)
        self._name = name

    async def make(self, bound: Bound) -> tuple[str, float]:
        """A code, and when it expires (Unix seconds). Raises AuthStoreError."""
        code = secrets.token_urlsafe(32)
        now = self._clock.now().timestamp()
        expires = now + self._life
        said = {
            "subject": bound.subject,
            "grants": [[g.role, sorted(g.namespaces)] for g in bound.grants],
            "person": bound.person,
            "ends": bound.ends,
            "made": now,
            "expires": expires,
        }
        key = self._key(code)
        with asking():
            await self._redis.set(
                key, self._sealer.wrap(key, json.dumps(said)), ex=self._life, nx=True
            )
        return code, expires

    async def take(self, code: str) -> Bound:
        """Whom the code stands for; it is used up by that. Raises LinkError and AuthStoreError."""
        if not _FORM.fullmatch(code):
            raise LinkError
        key = self._key(code)
        with asking():
            found = await self._redis.getdel(key)
        kept = None if found is None else self._sealer.unwrap(key, text(found))
        if kept is None:
            raise LinkError
        said: dict[str, Any] = json.loads(kept)
        now = self._clock.now().timestamp()
        # Redis forgets it by its own clock; who stopped that one has won nothing.
        if now >= said["expires"] or (said["ends"] is not None and now >= said["ends"]):
            raise LinkError
        return Bound(
            subject=said["subject"],
            grants=grants_of(said["grants"]),
            person=said["person"],
            ends=said["ends"],
            made=said["made"],
        )

    def _key(self, code: str) -> str:
        return f"{self._name}:{hashlib.sha256(code.encode()).hexdigest()}"
