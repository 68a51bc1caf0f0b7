"""Access and refresh tokens: JWT (RFC 7519) with the best practices of RFC 8725 and RFC 9068.

The key determines the algorithm, and the header must match it. Keys are looked up by id in our own
set; key locations in a header (jku, x5u, jwk, x5c) are ignored.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from engineroom.auth.errors import RefreshReusedError, TokenError
from engineroom.auth.permissions import Grant
from engineroom.auth.store_errors import store_errors
from engineroom.auth.tokens.revocation import RevocationKind, Revocations
from engineroom.core import key_prefixes
from engineroom.core.redis_replies import text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from engineroom.auth.tokens.signing_keys import SigningKeyCache, VerifyingKey
    from engineroom.core.clock import Clock

#: Most characters of a token.
MAX_TOKEN = 8_192
MAX_KID = 128
ACCESS_TYPE = "at+jwt"
REFRESH_TYPE = "rt+jwt"


@dataclass(frozen=True, slots=True)
class TokenLifetimes:
    """Lifetimes in seconds; ``leeway`` is the permitted difference between clocks."""

    access: float = 900.0
    refresh: float = 14 * 86_400.0
    leeway: float = 30.0


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a verified token. Times are Unix seconds."""

    subject: str
    issuer: str
    token: str
    issued: float
    expires: float
    family: str = ""
    grants: tuple[Grant, ...] = ()
    scopes: frozenset[str] | None = None
    #: All claims, including unknown ones.
    all: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class IssuedTokens:
    """The tokens of a sign-in; both are secret. ``expires`` is in Unix seconds."""

    access: str = field(repr=False)
    refresh: str = field(repr=False)
    expires: float
    family: str


class KeySource(Protocol):
    """A source of verification keys."""

    async def verifier(self, kid: str) -> VerifyingKey | None:
        """Return the key with that id, or None."""
        ...


@dataclass(frozen=True, slots=True)
class TokenHeader:
    """The used fields of a token's header."""

    kid: str
    algorithm: str
    type: str


def read_header(token: str) -> TokenHeader:
    """Read the header of an unverified token; raise TokenError unless it is a JWT."""
    if len(token) > MAX_TOKEN:
        raise TokenError("too_long", f"token: is longer than {MAX_TOKEN} characters")
    if not token.isascii() or token.count(".") != 2:
        raise TokenError("malformed", "token: is not a signed JWT")
    header = _json(token.split(".", 1)[0])
    kid, algorithm = header.get("kid"), header.get("alg")
    # RFC 7515 4.1.11: unknown critical parameters must be refused; none are supported here.
    if "crit" in header or "b64" in header or "zip" in header or "enc" in header:
        raise TokenError("critical_header", "token: its header needs an unsupported feature")
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID:
        raise TokenError("no_kid", "token: its header names no key")
    if not isinstance(algorithm, str):
        raise TokenError("no_algorithm", "token: its header names no algorithm")
    kind = header.get("typ", "")
    return TokenHeader(kid, algorithm, kind.lower() if isinstance(kind, str) else "")


async def verified_payload(token: str, header: TokenHeader, keys: KeySource) -> dict[str, Any]:
    """Verify a token's signature by ``keys`` and return its payload; raise TokenError."""
    from jwt import PyJWS
    from jwt.exceptions import PyJWTError

    key = await keys.verifier(header.kid)
    if key is None:
        raise TokenError("unknown_key", "token: is not signed by one of our keys; sign in again")
    if header.algorithm != key.algorithm.value:
        raise TokenError("algorithm", "token: its algorithm does not match its key")
    try:
        payload = PyJWS().decode(token, key.public, algorithms=[key.algorithm.value])
    except (PyJWTError, ValueError, TypeError) as error:
        raise TokenError("signature", "token: its signature is wrong") from error
    try:
        claims = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise TokenError("malformed", "token: its payload is not JSON") from error
    if not isinstance(claims, dict):
        raise TokenError("malformed", "token: its payload is not a JSON object")
    return claims


def check_claims(
    claims: Mapping[str, Any], *, issuer: str, audience: str, now: float, leeway: float
) -> Claims:
    """Check the standard claims of a payload; raise TokenError. ``now`` is in Unix seconds."""
    if claims.get("iss") != issuer:
        raise TokenError("issuer", "token: is from another issuer")
    audiences = claims.get("aud")
    if isinstance(audiences, str):
        audiences = [audiences]
    if not isinstance(audiences, list) or audience not in audiences:
        raise TokenError("audience", "token: is for another audience")
    expires, issued = _time(claims, "exp"), _time(claims, "iat")
    if now >= expires + leeway:
        raise TokenError("expired", "token: has expired; refresh it or sign in again")
    if issued > now + leeway:
        raise TokenError("issued_later", "token: was issued in the future; check the clocks")
    if "nbf" in claims and _time(claims, "nbf") > now + leeway:
        raise TokenError("not_before", "token: is not valid yet")
    subject, token = claims.get("sub"), claims.get("jti", "")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255:
        raise TokenError("subject", "token: has no valid subject")
    if not isinstance(token, str):
        raise TokenError("token_id", "token: its id is not a string")
    family = claims.get("fam", "")
    return Claims(
        subject=subject,
        issuer=issuer,
        token=token,
        issued=issued,
        expires=expires,
        family=family if isinstance(family, str) else "",
        all=dict(claims),
    )


class Tokens:
    """Issues, verifies, refreshes and revokes our own tokens."""

    def __init__(
        self,
        redis: Redis,
        keys: SigningKeyCache,
        revocations: Revocations,
        clock: Clock,
        *,
        issuer: str,
        audience: str,
        lives: TokenLifetimes | None = None,
        name: str = key_prefixes.AUTH,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._revocations = revocations
        self._clock = clock
        self._issuer = issuer
        self._audience = audience
        self._lives = lives or TokenLifetimes()
        self._name = name

    @property
    def longest_life(self) -> float:
        """The longest lifetime of a token in seconds; a key must verify that long."""
        return max(self._lives.refresh, self._lives.access) + self._lives.leeway

    async def issue(
        self, subject: str, grants: Iterable[Grant] = (), scopes: Iterable[str] | None = None
    ) -> IssuedTokens:
        """Issue tokens for a new sign-in; raise AuthStoreError or KeyStoreError."""
        rights = {
            "grants": _grants_claim(grants),
            "scopes": None if scopes is None else sorted(scopes),
        }
        family = secrets.token_urlsafe(18)
        now = self._now()
        pair, current = await self._pair(subject, rights, family, now)
        key = self._family(family)
        with store_errors():
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hset(
                key,
                mapping={
                    "subject": subject,
                    "current": current,
                    "started": repr(now),
                },
            )
            pipeline.expire(key, self._family_life())
            await pipeline.execute()
        return pair

    async def verify(self, token: str) -> Claims:
        """Verify an access token and return its claims.

        Raises TokenError, AuthStoreError or KeyStoreError.
        """
        claims = await self._verify(token, ACCESS_TYPE)
        revoked = self._revocations.revoked(
            token=claims.token, family=claims.family, subject=claims.subject, issued=claims.issued
        )
        if revoked:
            raise TokenError(f"revoked_{revoked}", "token: was revoked; sign in again")
        return claims

    async def refresh(
        self, token: str, grants: Callable[[str], Awaitable[Iterable[Grant]]] | None = None
    ) -> IssuedTokens:
        """Exchange a refresh token for new tokens; the refresh token is used up.

        ``grants`` returns the present grants of the subject; without it those of the sign-in stay.

        A second use of a refresh token revokes its family, because a copy may be stolen. So a
        client must not send a refresh token twice, not even after a lost response. Raises
        TokenError, RefreshReusedError, AuthStoreError or KeyStoreError.
        """
        claims = await self._verify(token, REFRESH_TYPE)
        rights = {"grants": claims.all.get("grants"), "scopes": claims.all.get("scopes")}
        if grants is not None:
            rights["grants"] = _grants_claim(await grants(claims.subject))
        pair, current = await self._pair(claims.subject, rights, claims.family, self._now())
        with store_errors():
            outcome = await self._redis.eval(  # type: ignore[no-untyped-call,misc,unused-ignore]
                _ROTATE,
                2,
                self._family(claims.family),
                self._subject(claims.subject),
                claims.token,
                current,
                str(self._family_life()),
            )
        match text(outcome):
            case "rotated":
                return pair
            case "reused":
                await self._revocations.revoke(RevocationKind.FAMILY, claims.family)
                raise RefreshReusedError(claims.subject)
            case _:
                raise TokenError(
                    "family_over", "refresh token: its sign-in has ended; sign in again"
                )

    async def revoke_token(self, claims: Claims) -> None:
        """Revoke one access token; raise AuthStoreError."""
        await self._revocations.revoke(RevocationKind.TOKEN, claims.token)

    async def revoke_family(self, family: str) -> None:
        """Revoke a sign-in with all its tokens; raise AuthStoreError."""
        with store_errors():
            await self._redis.delete(self._family(family))
        await self._revocations.revoke(RevocationKind.FAMILY, family)

    async def revoke_refresh(self, token: str) -> str:
        """Revoke the sign-in of a refresh token; return its subject.

        Raises TokenError, AuthStoreError or KeyStoreError.
        """
        claims = await self._verify(token, REFRESH_TYPE)
        await self.revoke_family(claims.family)
        return claims.subject

    async def ended(self, subject: str, since: float) -> bool:
        """Return whether all sign-ins of a subject were revoked at ``since`` or later.

        ``since`` is in Unix seconds. Raises AuthStoreError.
        """
        with store_errors():
            moment = text(await self._redis.get(self._subject(subject)))
        return bool(moment) and float(moment) >= since

    async def revoke_subject(self, subject: str) -> None:
        """Revoke all tokens of a subject; raise AuthStoreError."""
        with store_errors():
            # The refresh script reads this key, so no replica can refresh an old family, even if it
            # has not received the revocation yet.
            await self._redis.set(self._subject(subject), repr(self._now()), ex=self._family_life())
        await self._revocations.revoke(RevocationKind.SUBJECT, subject)

    async def _verify(self, token: str, kind: str) -> Claims:
        header = read_header(token)
        payload = await verified_payload(token, header, self._keys)
        if header.type != kind:
            raise TokenError("type", f"token: is not of type {kind}")
        claims = check_claims(
            payload,
            issuer=self._issuer,
            audience=self._audience,
            now=self._now(),
            leeway=self._lives.leeway,
        )
        if not claims.token or not claims.family:
            raise TokenError("token_id", "token: has no id")
        return Claims(
            subject=claims.subject,
            issuer=claims.issuer,
            token=claims.token,
            issued=claims.issued,
            expires=claims.expires,
            family=claims.family,
            grants=grants_of(payload.get("grants")),
            scopes=scopes_of(payload.get("scopes")),
            all=claims.all,
        )

    async def _pair(
        self, subject: str, rights: Mapping[str, Any], family: str, now: float
    ) -> tuple[IssuedTokens, str]:
        from jwt import PyJWS

        key = (await self._keys.current()).signer(self._clock.now())

        def signed(kind: str, life: float, token: str) -> str:
            payload = {
                "iss": self._issuer,
                "aud": self._audience,
                "sub": subject,
                "iat": round(now, 3),
                "nbf": round(now, 3),
                "exp": round(now + life),
                "jti": token,
                "fam": family,
                **rights,
            }
            document = json.dumps(payload, separators=(",", ":")).encode()
            return PyJWS().encode(
                document,
                key.private,
                algorithm=key.algorithm.value,
                headers={"kid": key.kid, "typ": kind},
            )

        current = secrets.token_urlsafe(18)
        refresh = signed(REFRESH_TYPE, self._lives.refresh, current)
        access = signed(ACCESS_TYPE, self._lives.access, secrets.token_urlsafe(18))
        expires = float(round(now + self._lives.access))
        return IssuedTokens(access, refresh, expires, family), current

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _family_life(self) -> int:
        return int(self._lives.refresh + self._lives.leeway) + 1

    def _family(self, family: str) -> str:
        return f"{self._name}:family:{family}"

    def _subject(self, subject: str) -> str:
        return f"{self._name}:subject:{hashlib.sha256(subject.encode()).hexdigest()}"


# Atomic across replicas: of two concurrent uses of a token one counts as reuse.
_ROTATE = """
local family = redis.call('HMGET', KEYS[1], 'current', 'started')
if not family[1] then return 'over' end
local ended = redis.call('GET', KEYS[2])
if ended and tonumber(family[2]) <= tonumber(ended) then
  redis.call('DEL', KEYS[1])
  return 'over'
end
if family[1] ~= ARGV[1] then
  redis.call('DEL', KEYS[1])
  return 'reused'
end
redis.call('HSET', KEYS[1], 'current', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 'rotated'
"""


def _grants_claim(grants: Iterable[Grant]) -> list[list[str | list[str]]]:
    return [[grant.role, sorted(grant.namespaces)] for grant in grants]


def grants_of(value: Any) -> tuple[Grant, ...]:
    """Read grants from a claim; ignore invalid entries."""
    grants = []
    for entry in value if isinstance(value, list) else ():
        match entry:
            case [str() as role, list() as namespaces]:
                names = frozenset(name for name in namespaces if isinstance(name, str))
                grants.append(Grant(role, names))
    return tuple(grants)


def scopes_of(value: Any) -> frozenset[str] | None:
    """Read scopes from a claim; None is no limit, an invalid claim permits nothing."""
    if value is None:
        return None
    entries: Sequence[Any] = value if isinstance(value, list) else []
    return frozenset(entry for entry in entries if isinstance(entry, str))


def _json(part: str) -> dict[str, Any]:
    try:
        padded = part + "=" * (-len(part) % 4)
        document = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise TokenError("malformed", "token: its header is not JSON") from error
    if not isinstance(document, dict):
        raise TokenError("malformed", "token: its header is not a JSON object")
    return document


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise TokenError("time", f"token: {name} is not a valid time")
    return float(value)
