"""Signing in at the OIDC provider: there, back with a session, and out again.

Two pages of a browser and no script: `start` sends it to the provider, `callback` is where the
provider sends it back.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field

from engineroom.auth.errors import OidcProviderError, OidcSignInError
from engineroom.auth.login.sessions import FORGET_COOKIE
from engineroom.auth.middleware import SESSION
from engineroom.auth.oidc.flow import Callback, Oidc, flow_of
from engineroom.auth.outbound import Outbound, Rules
from engineroom.auth.permissions import Access
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import MissingError, PermissionDeniedError
from engineroom.core.logging import get_logger
from engineroom.redis.errors import asking, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis.asyncio import Redis

    from engineroom.console.settings import ApiSettings
    from engineroom.core.clock import Clock

log = get_logger(__name__)

START, CALLBACK, LOGOUT = f"{BASE}/oidc/start", f"{BASE}/oidc/callback", f"{BASE}/oidc/logout"
#: Where a sign-in leads that names no page.
LANDING = f"{BASE}/whoami"
#: Seconds for which an ID token is kept for the logout: as long as a session lives at all.
_HINT_LIFE = 12 * 3600
_HINT = "engineroom:api:oidc-hint:"


class StartQuery(Model):
    """Where to go afterwards."""

    return_to: Annotated[
        str, Field(max_length=1024, description="A path of this site.", alias="returnTo")
    ] = LANDING


class CallbackQuery(Model):
    """What the provider answers; whatever else it adds is not read."""

    model_config = ConfigDict(extra="ignore")

    state: Annotated[str, Field(max_length=100)] = ""
    code: Annotated[str, Field(max_length=4096)] = ""
    iss: Annotated[str, Field(max_length=1024)] = ""
    error: Annotated[str, Field(max_length=1024)] = ""


class OidcLogout(Model):
    """Where the browser goes to sign out at the provider too; empty where there is no need."""

    location: str


def provider(settings: ApiSettings, redis: Redis, clock: Clock) -> Oidc | None:
    """The provider that the settings name, or None. Raises ValueError and OSError."""
    client = settings.oidc_client(CALLBACK)
    if client is None:
        return None
    rules = Rules.of(
        allow=settings.oidc_allowed_networks,
        schemes=("https", "http") if client.insecure_loopback else ("https",),
    )
    tls = None
    if settings.oidc_ca_file is not None:
        tls = ssl.create_default_context(cafile=str(settings.oidc_ca_file))
    return Oidc(client, Outbound(rules, tls=tls), redis, clock)


async def oidc_start(call: Call) -> Answer:
    """Send the browser to the provider."""
    oidc = _provider(call)
    headers = call.request.headers
    with _asking_provider():
        started = await oidc.start(call.query.return_to, flow_of(tuple(headers.getlist("cookie"))))
    return Answer(headers={"location": started.url, "set-cookie": started.cookie})


async def oidc_callback(call: Call) -> Answer:
    """A session for whom the provider sent back."""
    oidc, services, said = _provider(call), call.services, call.query
    cookies = tuple(call.request.headers.getlist("cookie"))
    try:
        with _asking_provider():
            signed_in = await oidc.complete(
                Callback(said.state, said.code, said.iss, said.error), flow_of(cookies)
            )
    except OidcSignInError as error:
        log.warning("no sign-in at the provider", reason=error.reason, address=call.address)
        raise
    subject = signed_in.identity.subject
    # Before anything is refused: what he has from earlier goes by the groups of today, too.
    await services.accounts.people.signed_in(signed_in.identity)
    grants = await services.accounts.rights(subject)
    if not grants:
        raise PermissionDeniedError(
            f"sign-in: no group of {subject} has a role here; ask for one that has"
        )
    opened = await services.sessions.open(
        subject,
        grants,
        previous=call.request.scope.get(SESSION, ""),
        address=call.address,
        agent=call.request.headers.get("user-agent", ""),
    )
    with asking():
        await services.redis.set(_HINT + opened.session.handle, signed_in.id_token, ex=_HINT_LIFE)
    return Answer(
        headers={"location": signed_in.return_to, "set-cookie": opened.cookie},
        details={"subject": subject},
    )


async def oidc_logout(call: Call) -> Answer:
    """End the session that asks, and say where to sign out at the provider."""
    oidc, services = _provider(call), call.services
    hint = ""
    if call.principal.how == "session":
        with asking():
            hint = text(await services.redis.getdel(_HINT + call.principal.reference))
    await services.sessions.close(call.request.scope.get(SESSION, ""))
    location = ""
    if hint:
        try:
            location = await oidc.logout_url(hint, services.oidc_logout_url)
        except OidcProviderError as error:
            log.warning("no sign-out at the provider", error=str(error))
    return Answer(OidcLogout(location=location), headers={"set-cookie": FORGET_COOKIE})


@contextlib.contextmanager
def _asking_provider() -> Iterator[None]:
    """What is wrong with the provider goes to the log: who asks here may be anybody."""
    try:
        yield
    except OidcProviderError as error:
        log.warning("the OIDC provider cannot be asked", error=str(error))
        raise OidcProviderError(
            "sign-in: the provider cannot be asked; try again soon, or tell who runs this"
        ) from error


def _provider(call: Call) -> Oidc:
    if call.services.oidc is None:
        raise MissingError("sign-in: no OIDC provider is set up; see docs/api-process.md")
    return call.services.oidc


ROUTES = (
    Route(
        method="GET", path=START, needs=Access.PUBLIC, handler=oidc_start,
        summary="Sign in at the provider", tag="oidc", query=StartQuery, status=303, cost=5,
        errors=(401, 404),
    ),
    Route(
        method="GET", path=CALLBACK, needs=Access.PUBLIC, handler=oidc_callback,
        summary="Back from the provider", tag="oidc", query=CallbackQuery, status=303, cost=5,
        action="session.open", errors=(401, 403, 404),
    ),
    Route(
        method="POST", path=LOGOUT, needs=Access.SIGNED_IN, handler=oidc_logout,
        summary="Sign out, at the provider too", tag="oidc", answer=OidcLogout,
        action="session.close", errors=(404,),
    ),
)  # fmt: skip
