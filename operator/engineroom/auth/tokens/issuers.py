"""Tokens of somebody else: an OIDC provider whose keys we fetch, keep for a while and pin.

Keys are looked for at the one URL that the configuration names; where a token says that its key
is to be found (jku, x5u) is not read.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.auth.errors import KeyStoreError, OutboundError, TokenError
from engineroom.auth.tokens.access_tokens import (
    MAX_KID,
    check_claims,
    read_header,
    verified_payload,
)
from engineroom.auth.tokens.signing_keys import MAX_KEYS, Algorithm, VerifyingKey, algorithm_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engineroom.auth.outbound import Outbound
    from engineroom.auth.tokens.access_tokens import Claims
    from engineroom.core.clock import Clock


@dataclass(frozen=True, slots=True)
class Caching:
    """In seconds: how long keys are current, how long they are used while the issuer is away, and
    how far apart two looks for a key id that nobody knows are."""

    fresh: float = 300.0
    max_stale: float = 3_600.0
    unknown_pause: float = 10.0


@dataclass(slots=True)
class _Known:
    keys: dict[str, VerifyingKey] = field(default_factory=dict)
    loaded: float = float("-inf")
    tried: float = float("-inf")


def read_jwks(document: bytes, algorithms: frozenset[Algorithm]) -> dict[str, VerifyingKey]:
    """The signing keys of a JWKS by their ids; what we cannot use is left out.

    Raises KeyStoreError for what is no JWKS, or one with too many keys.
    """
    try:
        entries = json.loads(document)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KeyStoreError("JWKS: is no JSON object with keys") from error
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise KeyStoreError(f"JWKS: keys must be a list of at most {MAX_KEYS}")
    keys = {}
    for entry in entries:
        key = _read_key(entry)
        if key is not None and key.algorithm in algorithms:
            if key.kid in keys:
                raise KeyStoreError("JWKS: two keys have one id; which one signs cannot be told")
            keys[key.kid] = key
    return keys


def _read_key(entry: Any) -> VerifyingKey | None:
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    kid = entry.get("kid")
    # A symmetric key in a public document is known to everybody.
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID or entry.get("kty") == "oct":
        return None
    try:
        public = PyJWK(dict(entry)).key
        algorithm = algorithm_of(public)
    except (PyJWTError, KeyStoreError, ValueError, TypeError):
        return None
    if entry.get("alg", algorithm.value) != algorithm.value:
        return None
    return VerifyingKey(kid, algorithm, public)


class ExternalIssuer:
    """Verifies the tokens of one issuer for one audience."""

    def __init__(
        self,
        outbound: Outbound,
        clock: Clock,
        *,
        issuer: str,
        audience: str,
        jwks_url: str,
        algorithms: Iterable[Algorithm] = tuple(Algorithm),
        caching: Caching | None = None,
        leeway: float = 30.0,
    ) -> None:
        self._outbound = outbound
        self._clock = clock
        self._issuer = issuer
        self._audience = audience
        self._url = jwks_url
        self._algorithms = frozenset(algorithms)
        self._caching = caching or Caching()
        self._leeway = leeway
        self._known = _Known()
        self._lock = asyncio.Lock()

    async def verify(self, token: str) -> Claims:
        """What a token says; it carries no grants, which the caller maps from the claims.

        Raises TokenError, and OutboundError or KeyStoreError when the issuer's keys cannot be had.
        """
        payload = await verified_payload(token, read_header(token), self)
        now = self._clock.now().timestamp()
        claims = check_claims(
            payload, issuer=self._issuer, audience=self._audience, now=now, leeway=self._leeway
        )
        # OpenID Connect Core 3.1.3.7: of several audiences one must be whom it was issued to.
        party = payload.get("azp")
        if isinstance(payload.get("aud"), list) and len(payload["aud"]) > 1 and party is None:
            raise TokenError(
                "authorized_party", "token: is for several audiences and says not whose"
            )
        return claims

    async def verifier(self, kid: str) -> VerifyingKey | None:
        """The issuer's key of that id. Raises OutboundError or KeyStoreError."""
        # Somebody is looking already: what is known serves until he is back.
        if not (self._lock.locked() and kid in self._known.keys and self._usable()):
            await self._look(self._caching.fresh)
        if kid not in self._known.keys:
            await self._look(self._caching.unknown_pause)
        return self._known.keys.get(kid)

    async def _look(self, age: float) -> None:
        if not self._settled(age):
            async with self._lock:
                if not self._settled(age):
                    await self._load()
        if not self._usable():
            raise OutboundError("JWKS: the issuer's keys cannot be had; it must answer first")

    def _usable(self) -> bool:
        return self._clock.monotonic() - self._known.loaded < self._caching.max_stale

    def _settled(self, age: float) -> bool:
        """Whether the keys are young enough, or were looked for a moment ago."""
        now, known = self._clock.monotonic(), self._known
        return now - known.loaded < age or now - known.tried < self._caching.unknown_pause

    async def _load(self) -> None:
        """Look for the keys. What fails is raised by _look once what is known is too old."""
        now = self._clock.monotonic()
        try:
            response = await self._outbound.fetch(self._url, headers={"accept": "application/json"})
            if response.status == 200:
                self._known.keys = read_jwks(response.body, self._algorithms)
                self._known.loaded = now
        except (OutboundError, KeyStoreError) as error:
            import structlog  # takes its time; whoever logs has it already

            log = structlog.get_logger(__name__)
            log.warning("issuer's keys cannot be had", issuer=self._issuer, error=error.code)
        finally:
            self._known.tried = now
