"""Validation of ID tokens (OpenID Connect Core 1.0, 3.1.3.7) and the identity in them. Pure.

``ExternalIssuer`` checks signature, issuer, audience and expiry.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engineroom.auth.errors import OidcSignInError, TokenError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engineroom.auth.tokens.access_tokens import TokenHeader

#: Most groups of one identity; further ones are ignored.
MAX_GROUPS = 1_000
MAX_GROUP = 256
#: Most characters of a subject, as for the owner of a key.
MAX_SUBJECT = 255
_MAX_LABEL = 200
#: The hash of each signature algorithm; Ed25519 uses SHA-512.
_HASHES = {"EdDSA": hashlib.sha512, "ES256": hashlib.sha256, "RS256": hashlib.sha256}


@dataclass(frozen=True, slots=True)
class ExpectedClaims:
    """The expected values of an ID token. Times are Unix seconds, ``leeway`` is in seconds."""

    client_id: str
    nonce: str = field(repr=False)
    began: float
    leeway: float
    access_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class OidcIdentity:
    """An identity at a provider. ``name`` and ``email`` are for display only."""

    issuer: str
    person: str
    name: str = ""
    #: Empty unless the provider verified it.
    email: str = ""
    groups: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """The subject in sessions, keys and logs, unique across providers."""
        return f"{self.issuer}#{self.person}"


def check_id_token(
    claims: Mapping[str, Any], header: TokenHeader, expected: ExpectedClaims
) -> None:
    """Check the remaining claims of a verified ID token; raise TokenError."""
    if header.type not in {"", "jwt"}:
        raise TokenError("type", "token: is not an ID token")
    party = claims.get("azp", expected.client_id)
    if party != expected.client_id:
        raise TokenError("authorized_party", "token: was issued to another client")
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(
        nonce.encode("utf-8", "replace"), expected.nonce.encode()
    ):
        raise TokenError("nonce", "token: is of another sign-in")
    if claims["iat"] < expected.began - expected.leeway:
        raise TokenError("issued_before", "token: is older than the sign-in; check the clocks")
    if "at_hash" in claims:
        digest = _HASHES[header.algorithm](expected.access_token.encode()).digest()
        half = base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=")
        claim = claims["at_hash"]
        if not isinstance(claim, str) or not hmac.compare_digest(
            claim.encode("utf-8", "replace"), half
        ):
            raise TokenError("at_hash", "token: is of another access token")


def identity_of(claims: Mapping[str, Any], issuer: str, groups: str) -> OidcIdentity:
    """Return the identity in checked claims; raise OidcSignInError for an unusable subject."""
    person = claims.get("sub")
    if not isinstance(person, str) or not person.isascii() or not person.isprintable():
        raise OidcSignInError("subject", "sign-in: the provider's subject is not plain text")
    identity = OidcIdentity(
        issuer,
        person,
        name=_label(claims.get("name")) or _label(claims.get("preferred_username")),
        email=_label(claims.get("email")) if claims.get("email_verified") is True else "",
        groups=_groups(_claim_at(claims, groups)),
    )
    if not person or len(identity.subject) > MAX_SUBJECT:
        raise OidcSignInError(
            "subject", f"sign-in: issuer and subject have over {MAX_SUBJECT} characters together"
        )
    return identity


def _claim_at(claims: Mapping[str, Any], name: str) -> Any:
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _groups(value: Any) -> tuple[str, ...]:
    named = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    valid = (group for group in named if isinstance(group, str) and 0 < len(group) <= MAX_GROUP)
    return tuple(dict.fromkeys(valid))[:MAX_GROUPS]


def _label(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(c for c in value if c.isprintable()).strip()[:_MAX_LABEL]
