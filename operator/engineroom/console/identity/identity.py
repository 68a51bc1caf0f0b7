"""Who am I and what may I do; signing in and out; API keys and sessions, one's own and others'."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from engineroom.auth.errors import ApiKeyError
from engineroom.auth.kubernetes import KubernetesPrincipal
from engineroom.auth.login.sessions import FORGET_COOKIE
from engineroom.auth.middleware import SESSION
from engineroom.auth.permissions import EVERYWHERE, Access, Grant, Permission
from engineroom.console.identity.oidc_users import PATH_PREFIX
from engineroom.console.rest.routing import BASE, Answer, Call, Model, Route
from engineroom.core.errors import (
    InvalidInputError,
    MissingError,
    PermissionDeniedError,
    Problem,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engineroom.auth.login.sessions import Session
    from engineroom.auth.permissions import Principal
    from engineroom.auth.tokens.access_tokens import Pair
    from engineroom.auth.tokens.api_keys import ApiKey

_Name = Annotated[str, Field(pattern=r"^(\*|[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)$")]
_DAY = 86_400


class GrantView(Model):
    """A role in some namespaces; `*` is all of them and the installation itself."""

    role: Annotated[str, Field(min_length=1, max_length=63)]
    namespaces: Annotated[list[_Name], Field(min_length=1, max_length=100)]


class WhoAmI(Model):
    """Who the caller is, and how he was recognised: token, key, session or kubernetes."""

    subject: str
    how: str
    grants: list[GrantView]
    scopes: list[str] | None
    groups: list[str]


class AccessQuery(Model):
    """Where."""

    namespace: Annotated[
        str, Field(max_length=63, pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")
    ] = ""


class AccessList(Model):
    """Every permission that the caller has there."""

    namespace: str
    permissions: list[str]


class Credentials(Model):
    """Name and password."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    password: Annotated[str, Field(min_length=1, max_length=1024)]


class SessionView(Model):
    """A session; `handle` names it and is no secret. Times are Unix seconds."""

    handle: str
    subject: str
    created: float
    seen: float
    ends: float
    address: str
    agent: str
    current: bool


class SessionList(Model):
    """Living sessions, the last used first."""

    items: list[SessionView]


class SignedIn(Model):
    """A new session: its id is in the cookie, this is for the header X-CSRF-Token."""

    session: SessionView
    csrf: str


class Refresh(Model):
    """A refresh token, which is used up by this."""

    refresh: Annotated[str, Field(min_length=1, max_length=8192)]


class TokenPair(Model):
    """Tokens of a sign-in; `expires` is when the access token does, in Unix seconds."""

    access: str
    refresh: str
    expires: float


class NewKey(Model):
    """A key to make: with all that the caller has, unless grants or scopes say less."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    grants: Annotated[list[GrantView], Field(max_length=20)] | None = None
    scopes: Annotated[list[Permission], Field(max_length=100)] | None = None
    days: Annotated[int, Field(ge=1, le=366, description="Days that it lives.")] = 90
    rate: Annotated[
        int | None,
        Field(ge=1, le=100_000, description="Requests in a second; null: as many as anybody."),
    ] = None


class Rotation(Model):
    """For how long the old key goes on (seconds)."""

    overlap: Annotated[int, Field(ge=0, le=7 * _DAY)] = _DAY


class KeyView(Model):
    """What is kept of a key. Times are Unix seconds."""

    id: str
    owner: str
    name: str
    created: float
    grants: list[GrantView]
    scopes: list[str] | None
    expires: float | None
    last_used: float | None
    revoked: float | None
    rate: int | None


class KeyList(Model):
    """Keys, the youngest first."""

    items: list[KeyView]


class MadeKey(Model):
    """A key just made: `secret` is the whole key, and this is the only time that it is shown."""

    key: KeyView
    secret: str


class Jwks(Model):
    """The public keys that our tokens are checked with (RFC 7517)."""

    keys: list[dict[str, str]]


# -- who am I -----------------------------------------------------------------------------------


async def whoami(call: Call) -> Answer:
    """The caller."""
    caller = call.principal
    groups = list(caller.groups) if isinstance(caller, KubernetesPrincipal) else []
    return Answer(
        WhoAmI(
            subject=caller.subject,
            how=caller.how,
            grants=grant_views(caller.grants),
            scopes=None if caller.scopes is None else sorted(caller.scopes),
            groups=groups,
        )
    )


async def access(call: Call) -> Answer:
    """What the caller may do."""
    namespace = call.query.namespace
    may = await call.services.authority.may(call.principal, namespace or None)
    return Answer(AccessList(namespace=namespace, permissions=may))


# -- signing in and out -------------------------------------------------------------------------


async def sign_in(call: Call) -> Answer:
    """A session for name and password."""
    subject, grants = await _account(call)
    opened = await call.services.sessions.open(
        subject,
        grants,
        previous=call.request.scope.get(SESSION, ""),
        address=call.address,
        agent=call.request.headers.get("user-agent", ""),
    )
    body = SignedIn(session=session_view(opened.session, opened.session.handle), csrf=opened.csrf)
    return Answer(body, headers={"set-cookie": opened.cookie}, details={"subject": subject})


async def sign_out(call: Call) -> Answer:
    """End the session that asks."""
    await call.services.sessions.close(call.request.scope.get(SESSION, ""))
    return Answer(headers={"set-cookie": FORGET_COOKIE})


async def make_tokens(call: Call) -> Answer:
    """Tokens for name and password, for programs that keep no cookie."""
    subject, grants = await _account(call)
    pair = await call.services.tokens.issue(subject, grants)
    return Answer(_pair(pair), details={"subject": subject})


async def refresh_tokens(call: Call) -> Answer:
    """New tokens for a refresh token."""
    accounts = call.services.accounts

    async def grants(subject: str) -> Iterable[Grant]:
        # Somebody whose account is gone ends here, before his token is used up.
        return await accounts.rights(subject) or ()

    return Answer(_pair(await call.services.tokens.refresh(call.body.refresh, grants)))


async def revoke_tokens(call: Call) -> Answer:
    """End a sign-in: its refresh token and all that came of it (as RFC 7009 has it)."""
    subject = await call.services.tokens.revoke_refresh(call.body.refresh)
    return Answer(details={"subject": subject})


async def jwks(call: Call) -> Answer:
    """Our public keys."""
    return Answer(Jwks(**await call.services.keys.jwks()))


async def _account(call: Call) -> tuple[str, tuple[Grant, ...]]:
    wanted: Credentials = call.body
    services = call.services
    # A name that nobody has may be a password typed into the wrong field.
    known = services.accounts.known(wanted.name)
    call.tried["account"] = wanted.name if known else services.strangers.pseudonym(wanted.name)
    account = await services.sign_in.attempt(wanted.name, wanted.password, call.address)
    return account.subject, services.accounts.grants(account.subject)


async def renew_session(call: Call) -> Answer:
    """The session that asks under a new id, with all that its owner may do now.

    What was taken from him is gone without this; what he was given since begins here.
    """
    caller, services = call.principal, call.services
    if caller.how != "session":
        raise PermissionDeniedError(f"session: you came with a {caller.how}; sign in to have one")
    grants = await services.accounts.rights(caller.subject)
    if grants is None:
        raise PermissionDeniedError("session: its rights are not looked up here; sign in anew")
    opened = await services.sessions.elevate(call.request.scope.get(SESSION, ""), grants)
    body = SignedIn(session=session_view(opened.session, opened.session.handle), csrf=opened.csrf)
    return Answer(body, headers={"set-cookie": opened.cookie})


def _pair(pair: Pair) -> TokenPair:
    return TokenPair(access=pair.access, refresh=pair.refresh, expires=pair.expires)


# -- sessions -----------------------------------------------------------------------------------


async def own_sessions(call: Call) -> Answer:
    """The caller's sessions."""
    return await _sessions(call, call.principal.subject)


async def end_own_session(call: Call) -> Answer:
    """End one of the caller's sessions."""
    return await _end_session(call, call.principal.subject)


async def sessions_of(call: Call) -> Answer:
    """Somebody's sessions."""
    return await _sessions(call, await _subject(call))


async def end_session_of(call: Call) -> Answer:
    """End one of somebody's sessions."""
    return await _end_session(call, await _subject(call))


async def end_all_of(call: Call) -> Answer:
    """End everything that somebody signed in with: sessions and tokens; keys stay."""
    subject = await _subject(call)
    # First what a one-time link is compared with: one that is redeemed now must not stay.
    await call.services.tokens.revoke_subject(subject)
    ended = await call.services.sessions.end_all(subject)
    return Answer(details={"sessions": ended})


async def _subject(call: Call) -> str:
    """Whom the path names."""
    named = call.path["subject"]
    if not named.startswith(PATH_PREFIX):
        return named
    person = await call.services.accounts.people.at(named)
    if person is None:
        raise MissingError("user: there is none of that name; look at the list of users")
    return person.subject


async def _sessions(call: Call, subject: str) -> Answer:
    caller = call.principal
    here = caller.reference if caller.how == "session" else ""
    found = await call.services.sessions.of(subject)
    return Answer(SessionList(items=[session_view(session, here) for session in found]))


async def _end_session(call: Call, subject: str) -> Answer:
    if not await call.services.sessions.end(subject, call.path["session"]):
        raise MissingError("session: there is none of that handle; look at the list")
    return Answer()


def session_view(session: Session, here: str) -> SessionView:
    """A session as the API gives it; ``here`` is the handle of the caller's own."""
    return SessionView(
        handle=session.handle,
        subject=session.subject,
        created=session.created,
        seen=session.seen,
        ends=session.ends,
        address=session.address,
        agent=session.agent,
        current=session.handle == here,
    )


# -- keys ---------------------------------------------------------------------------------------


async def own_keys(call: Call) -> Answer:
    """The caller's keys."""
    return await _keys(call, call.principal.subject)


async def make_key(call: Call) -> Answer:
    """A new key of the caller, with no more rights than he has."""
    wanted: NewKey = call.body
    caller = _no_key(call)
    grants = caller.grants
    if wanted.grants is not None:
        grants = tuple(Grant(each.role, frozenset(each.namespaces)) for each in wanted.grants)
        for grant in grants:
            _covered(caller, grant)
    scopes = None if wanted.scopes is None else frozenset(map(str, wanted.scopes))
    if caller.scopes is not None:
        scopes = caller.scopes if scopes is None else scopes
        if not scopes <= caller.scopes:
            raise PermissionDeniedError(
                "scopes: go beyond those of what you came with; leave them out"
            )
    try:
        made = await call.services.api_keys.create(
            caller.subject, wanted.name, grants, scopes=scopes,
            lifetime=timedelta(days=wanted.days), rate=wanted.rate,
        )  # fmt: skip
    except ValueError as error:
        told = Problem("body.name", str(error), "revoke a key that is not used any more")
        raise InvalidInputError([told]) from error
    body = MadeKey(key=_key(made.key), secret=made.secret)
    return Answer(body, details={"key": made.key.id, "name": wanted.name})


async def rotate_key(call: Call) -> Answer:
    """A new key with the rights of an old one, which goes on for a while."""
    identity = call.path["key"]
    _no_key(call)
    await _own(call, identity)
    try:
        made = await call.services.api_keys.rotate(identity, timedelta(seconds=call.body.overlap))
    except ApiKeyError as error:
        raise MissingError("key: is over; make a new one") from error
    except ValueError as error:
        told = Problem("path.key", str(error), "revoke a key that is not used any more")
        raise InvalidInputError([told]) from error
    return Answer(MadeKey(key=_key(made.key), secret=made.secret), details={"key": made.key.id})


async def revoke_key(call: Call) -> Answer:
    """End one of the caller's keys."""
    await _own(call, call.path["key"])
    await call.services.api_keys.revoke(call.path["key"])
    return Answer()


async def keys_of(call: Call) -> Answer:
    """Somebody's keys."""
    return await _keys(call, await _subject(call))


async def revoke_key_of(call: Call) -> Answer:
    """End one of somebody's keys."""
    key = await call.services.api_keys.get(call.path["key"])
    if key is None or key.owner != await _subject(call):
        raise MissingError("key: there is none of that id; look at the list")
    await call.services.api_keys.revoke(key.id)
    return Answer()


def _no_key(call: Call) -> Principal:
    """The caller, who did not come with a key.

    One that leaked would otherwise outlive itself, and be rid of its rate.
    """
    if call.principal.how == "key":
        raise PermissionDeniedError(
            "key: a key makes no other and does not renew itself; sign in (`engineroom login`, or "
            "POST /api/v1/tokens) and do it so"
        )
    return call.principal


async def _own(call: Call, identity: str) -> None:
    """Another's key is answered like none: whether an id exists is nobody's business."""
    key = await call.services.api_keys.get(identity)
    if key is None or key.owner != call.principal.subject:
        raise MissingError("key: there is none of that id; look at the list")
    # Who came with narrower scopes must not get at a wider one by rotating it.
    scopes = call.principal.scopes
    if scopes is not None and (key.scopes is None or not key.scopes <= scopes):
        raise PermissionDeniedError("key: may do more than what you came with; use that one")
    for grant in key.grants:
        _covered(call.principal, grant)


def _covered(caller: Principal, wanted: Grant) -> None:
    for own in caller.grants:
        if own.role == wanted.role and (
            EVERYWHERE in own.namespaces or wanted.namespaces <= own.namespaces
        ):
            return
    raise PermissionDeniedError(
        f"grants: you do not have {wanted.role[:63]} there yourself; ask for less"
    )


async def _keys(call: Call, owner: str) -> Answer:
    found = await call.services.api_keys.of(owner)
    return Answer(KeyList(items=[_key(key) for key in found]))


def _key(key: ApiKey) -> KeyView:
    return KeyView(
        id=key.id,
        owner=key.owner,
        name=key.name,
        created=key.created,
        grants=grant_views(key.grants),
        scopes=None if key.scopes is None else sorted(key.scopes),
        expires=key.expires,
        last_used=key.last_used,
        revoked=key.revoked,
        rate=key.rate,
    )


def grant_views(grants: Iterable[Grant]) -> list[GrantView]:
    """Grants as the API gives them."""
    return [GrantView(role=g.role, namespaces=sorted(g.namespaces)) for g in grants]


_SESSIONS, _KEYS = f"{BASE}/sessions", f"{BASE}/keys"
_USER = f"{BASE}/users/{{subject}}"
ROUTES = (
    Route(
        method="GET", path=f"{BASE}/whoami", needs=Permission.SELF_IDENTITY_READ, handler=whoami,
        summary="Who I am", tag="identity", answer=WhoAmI,
    ),
    Route(
        method="GET", path=f"{BASE}/access", needs=Permission.SELF_IDENTITY_READ, handler=access,
        summary="What I may do", tag="identity", query=AccessQuery, answer=AccessList, cost=5,
    ),
    Route(
        method="POST", path=_SESSIONS, needs=Access.PUBLIC, handler=sign_in, summary="Sign in",
        tag="sessions", body=Credentials, answer=SignedIn, status=201, action="session.open",
        secret=True, cost=5, errors=(401, 429),
    ),
    Route(
        method="POST", path=f"{_SESSIONS}/renew", needs=Access.SIGNED_IN, handler=renew_session,
        summary="My session under a new id, with my rights of now", tag="sessions",
        answer=SignedIn, status=201, action="session.renew", secret=True,
    ),
    Route(
        method="GET", path=_SESSIONS, needs=Permission.SELF_SESSIONS_READ, handler=own_sessions,
        summary="My sessions", tag="sessions", answer=SessionList,
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
        method="POST", path=f"{BASE}/tokens", needs=Access.PUBLIC, handler=make_tokens,
        summary="Tokens for a program", tag="tokens", body=Credentials, answer=TokenPair,
        status=201, action="token.issue", secret=True, cost=5, errors=(401, 429),
    ),
    Route(
        method="POST", path=f"{BASE}/tokens/refresh", needs=Access.PUBLIC, handler=refresh_tokens,
        summary="New tokens for a refresh token", tag="tokens", body=Refresh, answer=TokenPair,
        status=201, action="token.refresh", secret=True, errors=(401,),
    ),
    Route(
        method="POST", path=f"{BASE}/tokens/revoke", needs=Access.PUBLIC, handler=revoke_tokens,
        summary="End the sign-in that a refresh token is of", tag="tokens", body=Refresh,
        status=204, action="token.revoke", errors=(401,),
    ),
    Route(
        method="GET", path="/.well-known/jwks.json", needs=Access.PUBLIC, handler=jwks,
        summary="Public keys of our tokens", tag="tokens", answer=Jwks,
    ),
    Route(
        method="GET", path=_KEYS, needs=Permission.SELF_KEYS_MANAGE, handler=own_keys,
        summary="My API keys", tag="keys", answer=KeyList,
    ),
    Route(
        method="POST", path=_KEYS, needs=Permission.SELF_KEYS_MANAGE, handler=make_key,
        summary="Make an API key", tag="keys", body=NewKey, answer=MadeKey, status=201,
        action="key.make", secret=True,
    ),
    Route(
        method="POST", path=f"{_KEYS}/{{key}}/rotate", needs=Permission.SELF_KEYS_MANAGE,
        handler=rotate_key, summary="Replace an API key", tag="keys", body=Rotation,
        answer=MadeKey, status=201, action="key.rotate", secret=True, errors=(404,),
    ),
    Route(
        method="DELETE", path=f"{_KEYS}/{{key}}", needs=Permission.SELF_KEYS_MANAGE,
        handler=revoke_key, summary="Revoke an API key", tag="keys", status=204,
        action="key.revoke", errors=(404,),
    ),
    Route(
        method="GET", path=f"{_USER}/keys", needs=Permission.CLUSTER_KEYS_READ, handler=keys_of,
        summary="Somebody's API keys", tag="users", answer=KeyList,
    ),
    Route(
        method="DELETE", path=f"{_USER}/keys/{{key}}", needs=Permission.CLUSTER_KEYS_MANAGE,
        handler=revoke_key_of, summary="Revoke somebody's API key", tag="users", status=204,
        action="key.revoke", errors=(404,),
    ),
    Route(
        method="GET", path=f"{_USER}/sessions", needs=Permission.CLUSTER_SESSIONS_READ,
        handler=sessions_of, summary="Somebody's sessions", tag="users", answer=SessionList,
    ),
    Route(
        method="DELETE", path=f"{_USER}/sessions", needs=Permission.CLUSTER_SESSIONS_END,
        handler=end_all_of, summary="End all sessions and tokens of somebody", tag="users",
        status=204, action="session.end-all",
    ),
    Route(
        method="DELETE", path=f"{_USER}/sessions/{{session}}",
        needs=Permission.CLUSTER_SESSIONS_END, handler=end_session_of,
        summary="End one of somebody's sessions", tag="users", status=204, action="session.end",
        errors=(404,),
    ),
)  # fmt: skip
