"""Browser sessions: sign in and out, renew, list and end."""

from __future__ import annotations

from engineroom.auth.login.sessions import FORGET_COOKIE
from engineroom.auth.middleware import SESSION
from engineroom.auth.permissions import Access, Permission
from engineroom.console.identity.credentials import Credentials, verify_credentials
from engineroom.console.identity.users import USER, subject_of
from engineroom.console.identity.views import SessionView, SignedIn, session_view, signed_in
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import MissingError, PermissionDeniedError


class SessionList(Model):
    """Active sessions, the most recently used first."""

    items: list[SessionView]


async def sign_in(call: Call) -> Answer:
    """Open a session for a name and password."""
    subject, grants = await verify_credentials(call)
    opened = await call.services.sessions.open(
        subject,
        grants,
        previous=call.request.scope.get(SESSION, ""),
        address=call.address,
        agent=call.request.headers.get("user-agent", ""),
    )
    headers = {"set-cookie": opened.cookie}
    return Answer(signed_in(opened), headers=headers, details={"subject": subject})


async def sign_out(call: Call) -> Answer:
    """End the caller's current session."""
    await call.services.sessions.close(call.request.scope.get(SESSION, ""))
    return Answer(headers={"set-cookie": FORGET_COOKIE})


async def renew_session(call: Call) -> Answer:
    """Replace the caller's session by one with a new id and the owner's current grants.

    A grant that the owner lost is refused without this; a grant added since the session was opened
    takes effect in the new session.
    """
    caller, services = call.principal, call.services
    if caller.how != "session":
        raise PermissionDeniedError(
            f"session: this request is authenticated by a {caller.how}; sign in to get a session"
        )
    grants = await services.accounts.current_grants(caller.subject)
    if grants is None:
        raise PermissionDeniedError(
            "session: its permissions come from the cluster and cannot be renewed; sign in again"
        )
    opened = await services.sessions.elevate(call.request.scope.get(SESSION, ""), grants)
    return Answer(signed_in(opened), headers={"set-cookie": opened.cookie})


async def list_own_sessions(call: Call) -> Answer:
    """List the caller's sessions."""
    return await _list(call, call.principal.subject)


async def end_own_session(call: Call) -> Answer:
    """End one of the caller's sessions."""
    return await _end(call, call.principal.subject)


async def list_user_sessions(call: Call) -> Answer:
    """List a user's sessions."""
    return await _list(call, await subject_of(call))


async def end_user_session(call: Call) -> Answer:
    """End one of a user's sessions."""
    return await _end(call, await subject_of(call))


async def end_user_sessions(call: Call) -> Answer:
    """End all sessions and tokens of a user. API keys stay valid."""
    subject = await subject_of(call)
    # Tokens first: a one-time link that is redeemed meanwhile is compared with that time.
    await call.services.tokens.revoke_subject(subject)
    ended = await call.services.sessions.end_all(subject)
    return Answer(details={"sessions": ended})


async def _list(call: Call, subject: str) -> Answer:
    caller = call.principal
    current = caller.reference if caller.how == "session" else ""
    sessions = await call.services.sessions.of(subject)
    return Answer(SessionList(items=[session_view(session, current) for session in sessions]))


async def _end(call: Call, subject: str) -> Answer:
    if not await call.services.sessions.end(subject, call.path["session"]):
        raise MissingError("session: there is none with that handle; see the list of sessions")
    return Answer()


_SESSIONS = f"{BASE}/sessions"
ROUTES = (
    Route(
        method="POST", path=_SESSIONS, needs=Access.PUBLIC, handler=sign_in, summary="Sign in",
        tag="sessions", body=Credentials, answer=SignedIn, status=201, action="session.open",
        secret=True, cost=5, errors=(401, 429),
    ),
    Route(
        method="POST", path=f"{_SESSIONS}/renew", needs=Access.SIGNED_IN, handler=renew_session,
        summary="Renew my session with my current grants", tag="sessions",
        answer=SignedIn, status=201, action="session.renew", secret=True,
    ),
    Route(
        method="GET", path=_SESSIONS, needs=Permission.SELF_SESSIONS_READ,
        handler=list_own_sessions, summary="List my sessions", tag="sessions", answer=SessionList,
    ),
    Route(
        method="DELETE", path=_SESSIONS, needs=Access.SIGNED_IN, handler=sign_out,
        summary="Sign out", tag="sessions", status=204, action="session.close",
    ),
    Route(
        method="DELETE", path=f"{_SESSIONS}/{{session}}", needs=Permission.SELF_SESSIONS_END,
        handler=end_own_session, summary="End one of my sessions", tag="sessions", status=204,
        action="session.end", errors=(404,),
    ),
    Route(
        method="GET", path=f"{USER}/sessions", needs=Permission.CLUSTER_SESSIONS_READ,
        handler=list_user_sessions, summary="List a user's sessions", tag="users",
        answer=SessionList,
    ),
    Route(
        method="DELETE", path=f"{USER}/sessions", needs=Permission.CLUSTER_SESSIONS_END,
        handler=end_user_sessions, summary="End all sessions and tokens of a user", tag="users",
        status=204, action="session.end-all",
    ),
    Route(
        method="DELETE", path=f"{USER}/sessions/{{session}}",
        needs=Permission.CLUSTER_SESSIONS_END, handler=end_user_session,
        summary="End one of a user's sessions", tag="users", status=204, action="session.end",
        errors=(404,),
    ),
)  # fmt: skip
