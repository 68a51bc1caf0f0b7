"""Bearer tokens for programs: issue, refresh, revoke, and the public keys that verify them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from engineroom.auth.permissions import Access
from engineroom.console.identity.credentials import Credentials, verify_credentials
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engineroom.auth.permissions import Grant
    from engineroom.auth.tokens.access_tokens import IssuedTokens


class RefreshToken(Model):
    """A refresh token. It is valid once."""

    refresh: Annotated[str, Field(min_length=1, max_length=8192)]


class TokenPair(Model):
    """An access token and its refresh token; `expires` is of the access token, in Unix seconds."""

    access: str
    refresh: str
    expires: float


class Jwks(Model):
    """The public keys that verify access tokens (RFC 7517)."""

    keys: list[dict[str, str]]


async def issue_tokens(call: Call) -> Answer:
    """Issue tokens for a name and password, for programs that keep no cookie."""
    subject, grants = await verify_credentials(call)
    pair = await call.services.tokens.issue(subject, grants)
    return Answer(_view(pair), details={"subject": subject})


async def refresh_tokens(call: Call) -> Answer:
    """Exchange a refresh token for new tokens."""
    accounts = call.services.accounts

    async def grants(subject: str) -> Iterable[Grant]:
        # Raises for an account that was removed, before the refresh token is used up.
        return await accounts.current_grants(subject) or ()

    return Answer(_view(await call.services.tokens.refresh(call.body.refresh, grants)))


async def revoke_tokens(call: Call) -> Answer:
    """Revoke a refresh token and every token issued from it (RFC 7009)."""
    subject = await call.services.tokens.revoke_refresh(call.body.refresh)
    return Answer(details={"subject": subject})


async def jwks(call: Call) -> Answer:
    """Return the public keys as a JWK set."""
    return Answer(Jwks(**await call.services.signing_keys.jwks()))


def _view(pair: IssuedTokens) -> TokenPair:
    return TokenPair(access=pair.access, refresh=pair.refresh, expires=pair.expires)


_TOKENS = f"{BASE}/tokens"
ROUTES = (
    Route(
        method="POST", path=_TOKENS, needs=Access.PUBLIC, handler=issue_tokens,
        summary="Issue tokens for a program", tag="tokens", body=Credentials, answer=TokenPair,
        status=201, action="token.issue", secret=True, cost=5, errors=(401, 429),
    ),
    Route(
        method="POST", path=f"{_TOKENS}/refresh", needs=Access.PUBLIC, handler=refresh_tokens,
        summary="Exchange a refresh token for new tokens", tag="tokens", body=RefreshToken,
        answer=TokenPair, status=201, action="token.refresh", secret=True, errors=(401,),
    ),
    Route(
        method="POST", path=f"{_TOKENS}/revoke", needs=Access.PUBLIC, handler=revoke_tokens,
        summary="Revoke a refresh token and the tokens issued from it", tag="tokens",
        body=RefreshToken, status=204, action="token.revoke", errors=(401,),
    ),
    Route(
        method="GET", path="/.well-known/jwks.json", needs=Access.PUBLIC, handler=jwks,
        summary="Public keys that verify access tokens", tag="tokens", answer=Jwks,
    ),
)  # fmt: skip
