"""Verification of tokens of an external OIDC provider by its published keys, which are cached.

Keys come only from the configured URL; key locations in a token (jku, x5u) are ignored.
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
class KeyCacheTimes:
    """Cache times in seconds.

    Keys are reloaded after ``fresh`` and used up to ``max_stale`` while the issuer does not answer.
    ``unknown_pause`` is the least time between two lookups of an unknown key id.
    """

    fresh: float = 300.0
    max_stale: float = 3_600.0
    unknown_pause: float = 10.0


@dataclass(slots=True)
class _CachedKeys:
    keys: dict[str, VerifyingKey] = field(default_factory=dict)
    loaded: float = float("-inf")
    tried: float = float("-inf")


def read_jwks(document: bytes, algorithms: frozenset[Algorithm]) -> dict[str, VerifyingKey]:
    """Return the usable signing keys of a JWKS by id.

    Raises KeyStoreError for an invalid JWKS, or one with too many keys.
    """
    try:
        entries = json.loads(document)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KeyStoreError("JWKS: is not a JSON object with keys") from error
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise KeyStoreError(f"JWKS: keys must be a list of at most {MAX_KEYS}")
    keys = {}
    for entry in entries:
        key = _read_key(entry)
        if key is not None and key.algorithm in algorithms:
            if key.kid in keys:
                raise KeyStoreError("JWKS: two keys have the same id")
            keys[key.kid] = key
    return keys


def _read_key(entry: Any) -> VerifyingKey | None:
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    kid = entry.get("kid")
    # A symmetric key in a public document is not secret.
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
        caching: KeyCacheTimes | None = None,
        leeway: float = 30.0,
    ) -> None:
        self._outbound = outbound
        self._clock = clock
        self._issuer = issuer
        self._audience = audience
        self._url = jwks_url
        self._algorithms = frozenset(algorithms)
        self._caching = caching or KeyCacheTimes()
        self._leeway = leeway
        self._cached = _CachedKeys()
        self._lock = asyncio.Lock()

    async def verify(self, token: str) -> Claims:
        """Verify a token and return its claims, without grants, which the caller has to map.

        Raises TokenError, and OutboundError or KeyStoreError if the issuer's keys cannot be loaded.
        """
        payload = await verified_payload(token, read_header(token), self)
        now = self._clock.now().timestamp()
        claims = check_claims(
            payload, issuer=self._issuer, audience=self._audience, now=now, leeway=self._leeway
        )
        # OpenID Connect Core 3.1.3.7: a token for several audiences must name its authorized party.
        party = payload.get("azp")
        if isinstance(payload.get("aud"), list) and len(payload["aud"]) > 1 and party is None:
            raise TokenError(
                "authorized_party", "token: is for several audiences without an authorized party"
            )
        return claims

    async def verifier(self, kid: str) -> VerifyingKey | None:
        """Return the issuer's key with that id, or None; raise OutboundError or KeyStoreError."""
        # While another task loads the keys, the cached ones serve.
        if not (self._lock.locked() and kid in self._cached.keys and self._usable()):
            await self._fetch_keys(self._caching.fresh)
        if kid not in self._cached.keys:
            await self._fetch_keys(self._caching.unknown_pause)
        return self._cached.keys.get(kid)

    async def _fetch_keys(self, age: float) -> None:
        if not self._is_fresh(age):
            async with self._lock:
                if not self._is_fresh(age):
                    await self._load()
        if not self._usable():
            raise OutboundError("JWKS: the issuer's keys cannot be loaded; it does not answer")

    def _usable(self) -> bool:
        return self._clock.monotonic() - self._cached.loaded < self._caching.max_stale

    def _is_fresh(self, age: float) -> bool:
        """Return whether the keys are younger than ``age`` or were looked up just now."""
        now, cached = self._clock.monotonic(), self._cached
        return now - cached.loaded < age or now - cached.tried < self._caching.unknown_pause

    async def _load(self) -> None:
        """Load the keys; ``_look`` raises once the cached ones are too old."""
        now = self._clock.monotonic()
        try:
            response = await self._outbound.fetch(self._url, headers={"accept": "application/json"})
            if response.status == 200:
                self._cached.keys = read_jwks(response.body, self._algorithms)
                self._cached.loaded = now
        except (OutboundError, KeyStoreError) as error:
            import structlog  # slow to import, and only needed here

            log = structlog.get_logger(__name__)
            log.warning("issuer's keys cannot be loaded", issuer=self._issuer, error=error.code)
        finally:
            self._cached.tried = now
