"""What an ID token has to say (OpenID Connect Core 1.0, 3.1.3.7), and whom it is about; pure.

Signature, issuer, audience and expiry are checked where its keys are: ``ExternalIssuer``.
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

    from engineroom.auth.tokens.access_tokens import Header

#: Groups of one person; those beyond are not seen, and so give nothing.
MAX_GROUPS = 1_000
MAX_GROUP = 256
#: As long as the owner of a key or the subject of a token may be.
MAX_SUBJECT = 255
_MAX_SHOWN = 200
#: Ed25519 hashes with SHA-512; the others say it in their name.
_HASHES = {"EdDSA": hashlib.sha512, "ES256": hashlib.sha256, "RS256": hashlib.sha256}


@dataclass(frozen=True, slots=True)
class Expected:
    """What the ID token is held against. Times are Unix seconds, ``leeway`` seconds."""

    client_id: str
    nonce: str = field(repr=False)
    began: float
    leeway: float
    access_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody whom a provider knows. ``name`` and ``email`` are for showing and decide nothing."""

    issuer: str
    person: str
    name: str = ""
    #: Empty unless the provider says that it is verified.
    email: str = ""
    groups: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """As it stands in sessions, keys and logs: nobody else has it, at any provider."""
        return f"{self.issuer}#{self.person}"


def check_id_token(claims: Mapping[str, Any], header: Header, expected: Expected) -> None:
    """What is left to check of a verified ID token. Raises TokenError."""
    if header.type not in {"", "jwt"}:
        raise TokenError("type", "token: is no ID token")
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
        said = claims["at_hash"]
        if not isinstance(said, str) or not hmac.compare_digest(
            said.encode("utf-8", "replace"), half
        ):
            raise TokenError("at_hash", "token: is of another access token")


def identity_of(claims: Mapping[str, Any], issuer: str, groups: str) -> Identity:
    """Whom checked claims are about. Raises OidcSignInError for a subject that we cannot keep."""
    person = claims.get("sub")
    if not isinstance(person, str) or not person.isascii() or not person.isprintable():
        raise OidcSignInError("subject", "sign-in: the provider's subject is no plain text")
    found = Identity(
        issuer,
        person,
        name=_shown(claims.get("name")) or _shown(claims.get("preferred_username")),
        email=_shown(claims.get("email")) if claims.get("email_verified") is True else "",
        groups=_groups(_found(claims, groups)),
    )
    if not person or len(found.subject) > MAX_SUBJECT:
        raise OidcSignInError(
            "subject", f"sign-in: issuer and subject have over {MAX_SUBJECT} characters together"
        )
    return found


def _found(claims: Mapping[str, Any], name: str) -> Any:
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _groups(value: Any) -> tuple[str, ...]:
    named = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    good = (each for each in named if isinstance(each, str) and 0 < len(each) <= MAX_GROUP)
    return tuple(dict.fromkeys(good))[:MAX_GROUPS]


def _shown(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(c for c in value if c.isprintable()).strip()[:_MAX_SHOWN]
