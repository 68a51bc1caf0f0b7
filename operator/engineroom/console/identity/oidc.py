"""Sign-in and sign-out at the OIDC provider, by browser redirects and without a script.

`start` redirects the browser to the provider; the provider redirects it back to `callback`, which
opens the session.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field

from engineroom.auth.errors import OidcProviderError, OidcSignInError
from engineroom.auth.login.sessions import FORGET_COOKIE
from engineroom.auth.middleware import SESSION
from engineroom.auth.oidc.flow import OidcCallback, flow_of
from engineroom.auth.permissions import Access
from engineroom.auth.store_errors import store_errors
from engineroom.console.accounts.oidc_settings import CALLBACK_PATH
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core import key_prefixes
from engineroom.core.errors import MissingError, PermissionDeniedError
from engineroom.core.logging import get_logger
from engineroom.core.redis_replies import text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engineroom.auth.oidc.flow import Oidc

log = get_logger(__name__)

#: Page after a sign-in whose request names none.
LANDING = f"{BASE}/whoami"
#: Seconds for which the ID token is stored for the logout: the longest lifetime of a session.
_HINT_LIFETIME = 12 * 3600
_HINT = key_prefixes.OIDC_HINTS


class StartQuery(Model):
    """The page to open after the sign-in."""

    return_to: Annotated[
        str, Field(max_length=1024, description="A path of this site.", alias="returnTo")
    ] = LANDING


class CallbackQuery(Model):
    """The provider's response; other parameters are ignored."""

    model_config = ConfigDict(extra="ignore")

    state: Annotated[str, Field(max_length=100)] = ""
    code: Annotated[str, Field(max_length=4096)] = ""
    iss: Annotated[str, Field(max_length=1024)] = ""
    error: Annotated[str, Field(max_length=1024)] = ""


class OidcLogout(Model):
    """URL at which the browser signs out at the provider too; empty if that is not needed."""

    location: str


async def oidc_start(call: Call) -> Answer:
    """Redirect the browser to the provider."""
    oidc = _provider(call)
    headers = call.request.headers
    with _provider_errors():
        started = await oidc.start(call.query.return_to, flow_of(tuple(headers.getlist("cookie"))))
    return Answer(headers={"location": started.url, "set-cookie": started.cookie})


async def oidc_callback(call: Call) -> Answer:
    """Open a session for the user whom the provider authenticated."""
    oidc, services, query = _provider(call), call.services, call.query
    cookies = tuple(call.request.headers.getlist("cookie"))
    try:
        with _provider_errors():
            signed_in = await oidc.complete(
                OidcCallback(query.state, query.code, query.iss, query.error), flow_of(cookies)
            )
    except OidcSignInError as error:
        log.warning("sign-in at the provider failed", reason=error.reason, address=call.address)
        raise
    subject = signed_in.identity.subject
    # Store the groups before any refusal: earlier sessions and keys lose rights by them too.
    await services.accounts.oidc_users.remember(signed_in.identity)
    grants = await services.accounts.current_grants(subject)
    if not grants:
        raise PermissionDeniedError(
            f"sign-in: no group of {subject} has a role here; ask an administrator to map one"
        )
    opened = await services.sessions.open(
        subject,
        grants,
        previous=call.request.scope.get(SESSION, ""),
        address=call.address,
        agent=call.request.headers.get("user-agent", ""),
    )
    handle = opened.session.handle
    encrypted = services.oidc_hints.encrypt(handle, signed_in.id_token.encode())
    with store_errors():
        await services.redis.set(_HINT + handle, encrypted, ex=_HINT_LIFETIME)
    return Answer(
        headers={"location": signed_in.return_to, "set-cookie": opened.cookie},
        details={"subject": subject},
    )


async def oidc_logout(call: Call) -> Answer:
    """End the caller's session and return the URL that signs out at the provider."""
    oidc, services = _provider(call), call.services
    hint = b""
    if call.principal.how == "session":
        handle = call.principal.reference
        with store_errors():
            encrypted = text(await services.redis.getdel(_HINT + handle))
        hint = services.oidc_hints.decrypt(handle, encrypted) or b""
    await services.sessions.close(call.request.scope.get(SESSION, ""))
    location = ""
    if hint:
        try:
            location = await oidc.logout_url(hint.decode(), services.oidc_logout_url)
        except OidcProviderError as error:
            log.warning("sign-out at the provider failed", error=str(error))
    return Answer(OidcLogout(location=location), headers={"set-cookie": FORGET_COOKIE})


@contextlib.contextmanager
def _provider_errors() -> Iterator[None]:
    """Log the reason of a provider failure and hide it from the caller, who may be anyone."""
    try:
        yield
    except OidcProviderError as error:
        log.warning("the OIDC provider is unavailable", error=str(error))
        raise OidcProviderError(
            "sign-in: the provider is unavailable; try again soon, or ask an administrator"
        ) from error


def _provider(call: Call) -> Oidc:
    if call.services.oidc is None:
        raise MissingError("sign-in: no OIDC provider is configured; see docs/accounts.md")
    return call.services.oidc


ROUTES = (
    Route(
        method="GET", path=f"{BASE}/oidc/start", needs=Access.PUBLIC,
        handler=oidc_start, summary="Sign in at the provider", tag="oidc", query=StartQuery,
        status=303, cost=5, errors=(401, 404),
    ),
    Route(
        method="GET", path=CALLBACK_PATH, needs=Access.PUBLIC, handler=oidc_callback,
        summary="Redirect target of the provider", tag="oidc", query=CallbackQuery,
        status=303, cost=5, action="session.open", errors=(401, 403, 404),
    ),
    Route(
        method="POST", path=f"{BASE}/oidc/logout", needs=Access.SIGNED_IN, handler=oidc_logout,
        summary="Sign out here and at the provider", tag="oidc", answer=OidcLogout,
        action="session.close", errors=(404,),
    ),
)  # fmt: skip
