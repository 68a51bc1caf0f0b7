"""Authentication of requests for ASGI and WSGI applications, with problem documents (RFC 9457).

A request without credentials passes unauthenticated; handlers demand a permission by ``require``. A
request with wrong credentials is refused at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from engineroom.auth.errors import (
    AccountGoneError,
    ApiKeyError,
    CsrfError,
    OutboundError,
    RefreshReusedError,
    SessionError,
    TokenError,
)
from engineroom.auth.kubernetes import unpack_identity
from engineroom.auth.login.sessions import COOKIE, CSRF_HEADER, FORGET_COOKIE
from engineroom.auth.permissions import Principal, scope_of
from engineroom.auth.tokens.api_keys import PREFIX
from engineroom.core.error_responses import problem_document
from engineroom.core.errors import AuthenticationError, EngineroomError, LimitError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping

    from engineroom.auth.login.credential_throttle import CredentialThrottle
    from engineroom.auth.login.sessions import Session, Sessions
    from engineroom.auth.permissions import AccessPolicy
    from engineroom.auth.tokens.access_tokens import Claims, Tokens
    from engineroom.auth.tokens.api_keys import ApiKeys

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: The key of the principal in an ASGI scope and in a WSGI environment; None is unauthenticated.
PRINCIPAL = "engineroom.principal"
#: The key of the session's id, from which the CSRF token derives; "" without a session.
SESSION = "engineroom.session"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_MAX_HEADER = 16_384

#: Headers for an application that serves pages of its own only, over HTTPS only, and nothing that a
#: browser or proxy may store: no inline script, no other origin, no frame.
SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class RequestCredentials:
    """The parts of a request that authenticate it; header names are in lower case."""

    method: str
    headers: Mapping[str, tuple[str, ...]]
    websocket: bool = False
    #: The client's address.
    address: str = ""

    def header(self, name: str) -> str:
        """Return the value of a header, or ""; raise AuthenticationError for several values."""
        values = self.headers.get(name, ())
        if len(values) > 1:
            raise AuthenticationError(f"{name}: comes {len(values)} times; send it once")
        if values and len(values[0]) > _MAX_HEADER:
            raise AuthenticationError(f"{name}: is longer than {_MAX_HEADER} bytes")
        return values[0] if values else ""


class Authenticator:
    """Authenticates requests by bearer token, API key or session cookie."""

    def __init__(
        self,
        *,
        tokens: Tokens | None = None,
        api_keys: ApiKeys | None = None,
        sessions: Sessions | None = None,
        external: Callable[[str], Awaitable[Principal]] | None = None,
        current: Callable[[Principal], Awaitable[Principal]] | None = None,
        throttle: CredentialThrottle | None = None,
    ) -> None:
        """``external`` verifies tokens that our keys did not sign, and raises TokenError.

        ``current`` returns a principal with its present rights, or raises AuthenticationError if
        its account was removed; see ``permissions.intersect_grants``. ``throttle`` limits wrong
        credentials by address; without it there is no limit.
        """
        self._tokens = tokens
        self._api_keys = api_keys
        self._sessions = sessions
        self._external = external
        self._current = current
        self._throttle = throttle

    async def authenticate(self, request: RequestCredentials) -> tuple[Principal | None, str]:
        """Return the principal, and the session's id or "".

        An Authorization header takes precedence over a cookie. Raises AuthenticationError and its
        subclasses, CsrfError, LimitError after too many wrong credentials, and AuthStoreError or
        KeyStoreError.
        """
        try:
            result = await self._authenticate_locally(request)
        except AuthenticationError as error:
            if self._throttle is not None:
                await self._throttle.count_failure(request.address, error)
            raise
        if isinstance(result, tuple):
            return result
        assert self._external is not None  # noqa: S101 - only then a token is returned
        if self._throttle is None:
            principal = await self._external(result)
        else:
            principal = await self._throttle.check(request.address, result, self._external)
        return await self._with_current_rights(principal), ""

    async def _authenticate_locally(
        self, request: RequestCredentials
    ) -> tuple[Principal | None, str] | str:
        """Return principal and session id, or a token that ``external`` has to verify."""
        header = request.header("authorization")
        if header:
            kind, _, credential = header.partition(" ")
            if kind.lower() != "bearer" or not credential.strip():
                raise AuthenticationError("authorization: must be Bearer with a token or API key")
            bearer = await self._bearer(credential.strip())
            if isinstance(bearer, str):
                return bearer
            return await self._with_current_rights(bearer), ""
        identity = _session_cookie(request.headers.get("cookie", ()))
        if identity and self._sessions is not None:
            session = await self._sessions.resume(identity)
            try:
                self._check_same_site(request, identity)
            except CsrfError as error:
                error.subject, error.session = session.subject, session.handle
                raise
            principal = principal_of_session(session)
            # The cluster decides about its own identities.
            if not session.person:
                principal = await self._with_current_rights(principal)
            return principal, identity
        return None, ""

    async def _with_current_rights(self, principal: Principal) -> Principal:
        return principal if self._current is None else await self._current(principal)

    async def _bearer(self, credential: str) -> Principal | str:
        if self._api_keys is not None and credential.startswith(f"{PREFIX}_"):
            key = await self._api_keys.verify(credential)
            return Principal(key.owner, key.grants, "key", key.id, key.scopes, key.rate)
        if self._tokens is None:
            raise AuthenticationError("authorization: tokens are not accepted here")
        try:
            return principal_of_token(await self._tokens.verify(credential))
        except TokenError as error:
            if self._external is None or error.reason != "unknown_key":
                raise
        return credential

    def _check_same_site(self, request: RequestCredentials, identity: str) -> None:
        """Check that a page of this site sent a request that a cookie authenticates.

        Browsers send cookies with requests of any site, so a change needs the CSRF token. A
        WebSocket cannot carry that header; its Origin must be this site.
        """
        assert self._sessions is not None  # noqa: S101 - checked by the only caller
        if request.websocket:
            origin, host = urlsplit(request.header("origin")), request.header("host")
            if not host or origin.netloc.lower() != host.lower():
                raise CsrfError("origin: is not this site; open the page of this site")
        elif request.method.upper() not in _SAFE:
            self._sessions.check_csrf(identity, request.header(CSRF_HEADER))


def principal_of_session(session: Session) -> Principal:
    """Return the principal of a session."""
    if session.person:
        return unpack_identity(session.person, session.subject, session.handle)
    return Principal(session.subject, session.grants, "session", session.handle)


def principal_of_token(claims: Claims) -> Principal:
    """Return the principal of one of our tokens."""
    return Principal(claims.subject, claims.grants, "token", claims.token, claims.scopes)


def _session_cookie(headers: Iterable[str]) -> str:
    """Return the session's cookie, or ""; raise SessionError for two, as one may be planted."""
    pairs = (pair.strip().partition("=") for header in headers for pair in header.split(";"))
    values = [value for name, _, value in pairs if name == COOKIE]
    if len(values) > 1:
        raise SessionError("cookie: the session comes twice; delete this site's cookies")
    return values[0] if values else ""


# ---- checks for handlers --------------------------------------------------------------------


class Require:
    """A check for one permission: call it with a request and, if it applies, a namespace."""

    def __init__(self, policy: AccessPolicy, permission: str) -> None:
        scope_of(permission)
        self._policy = policy
        self.permission = permission

    def __call__(self, request: Any, namespace: str | None = None) -> Principal:
        """Return the principal of a request that has the permission.

        ``request`` is an ASGI scope, a WSGI environment, or an object with ``.scope``.
        Raises AuthenticationError for an unauthenticated request and PermissionDeniedError for a
        principal without the permission.
        """
        principal = current_principal(request)
        if principal is None:
            raise AuthenticationError("not signed in; send a token, an API key or sign in")
        self._policy.demand(principal, self.permission, namespace)
        return principal


def require(policy: AccessPolicy, permission: str) -> Require:
    """Return a check for one permission, for a handler or as a dependency."""
    return Require(policy, permission)


def current_principal(request: Any) -> Principal | None:
    """Return the request's principal, or None if it is unauthenticated."""
    scope = getattr(request, "scope", None) or getattr(request, "environ", None) or request
    principal = scope.get(PRINCIPAL)
    return principal if isinstance(principal, Principal) else None


# ---- responses ------------------------------------------------------------------------------


def problem(error: EngineroomError) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of an error's problem document (RFC 9457)."""
    document = problem_document(error)
    headers = {name.lower(): value for name, value in document.headers.items()}
    if isinstance(error, TokenError | ApiKeyError | RefreshReusedError):
        headers["www-authenticate"] = 'Bearer error="invalid_token"'
    if isinstance(error, SessionError):
        # Deletes the cookie of an ended session, which would prevent a new sign-in.
        headers["set-cookie"] = FORGET_COOKIE
    if document.status == 503:
        headers.setdefault("retry-after", "1")
    return document.status, headers, json.dumps(document.body).encode()


class AuthMiddleware:
    """ASGI middleware: sets the principal in the scope, answers errors, adds the headers."""

    def __init__(
        self,
        app: App,
        authenticator: Authenticator,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        public: Callable[[Scope], bool] = lambda _: False,
        address: Callable[[Scope], str] | None = None,
        on_refused: Callable[[Scope, EngineroomError], Awaitable[None]] | None = None,
    ) -> None:
        """``headers`` are added to responses that lack them; SECURITY_HEADERS is a strict set.

        ``public`` returns whether a request needs no authentication. A public request with an ended
        session passes unauthenticated, which permits a new sign-in. ``address`` returns the
        client's address; the default is the peer of the connection. ``on_refused`` is awaited with
        each request that is refused here, before the response.
        """
        self._app = app
        self._address = address or _peer
        self._authenticator = authenticator
        self._public = public
        self._on_refused = on_refused
        self._headers = [(k.lower().encode(), v.encode()) for k, v in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket; pass on other scopes unchanged."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] in ("http.response.start", "websocket.accept"):
                started = True
                message = {**message, "headers": self._with(list(message.get("headers", ())))}
            elif message["type"] == "websocket.close":
                started = True
            await send(message)

        try:
            # A copy, which hides values that an outer middleware may have set.
            scope = dict(scope)
            request = credentials_of(scope, self._address(scope))
            try:
                scope[PRINCIPAL], scope[SESSION] = await self._authenticator.authenticate(request)
            except (SessionError, AccountGoneError, LimitError) as error:
                limited = isinstance(error, LimitError) and "authorization" in request.headers
                if limited or not self._public(scope):
                    raise
                scope[PRINCIPAL], scope[SESSION] = None, ""
            except EngineroomError as error:
                if self._on_refused is not None:
                    await self._on_refused(scope, error)
                raise
            await self._app(scope, receive, sending)
        except EngineroomError as error:
            if started:
                raise
            await self._refuse(scope, receive, sending, _for_client(error))

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, error: EngineroomError
    ) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": error.code})
            return
        status, headers, body = problem(error)
        length = ("content-length", str(len(body)))
        pairs = [(k.encode(), v.encode()) for k, v in (*headers.items(), length)]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        sent = b"" if scope["method"] == "HEAD" else body
        await send({"type": "http.response.body", "body": sent})

    def _with(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        present = {name.lower() for name, _ in headers}
        return headers + [(n, v) for n, v in self._headers if n not in present]


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def credentials_of(scope: Scope, address: str = "") -> RequestCredentials:
    """Return the parts of an ASGI scope that authenticate it."""
    headers: dict[str, tuple[str, ...]] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        headers[key] = (*headers.get(key, ()), value.decode("latin-1"))
    return RequestCredentials(
        scope.get("method", "GET"), headers, scope["type"] == "websocket", address
    )


def _for_client(error: EngineroomError) -> EngineroomError:
    """Return the error for the client, without the address of an issuer that does not answer."""
    if isinstance(error, OutboundError):
        return OutboundError("the issuer of this token does not answer; try again soon")
    return error


class _Loop:
    """An event loop in a thread, started again after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.current_thread()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine and return its result."""
        with self._lock:
            if self._loop is None or self._owner != os.getpid():
                self._loop, self._owner = asyncio.new_event_loop(), os.getpid()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="engineroom-auth", daemon=True
                )
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Stop the thread; the next use starts a new one."""
        with self._lock:
            if self._loop is not None and self._owner == os.getpid():
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
            self._owner, self._loop = 0, None


class WsgiAuth:
    """WSGI middleware, for threaded applications.

    ``make`` is awaited once in each process, on the authenticator's event loop. Create the Redis
    client and start ``Revocations.run`` there.
    """

    def __init__(
        self,
        app: Callable[..., Iterable[bytes]],
        make: Callable[[], Awaitable[Authenticator]],
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._app = app
        self._make = make
        self._headers = dict(headers)
        self._loop = _Loop()
        self._started: tuple[Any, asyncio.Future[Authenticator]] | None = None

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Serve one request."""

        def starting(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            present = {name.lower() for name, _ in headers}
            added = [(n, v) for n, v in self._headers.items() if n.lower() not in present]
            return start_response(status, headers + added, *more)

        environ[PRINCIPAL], environ[SESSION] = None, ""
        try:
            request = _credentials_of_environ(environ)
            environ[PRINCIPAL], environ[SESSION] = self._loop.run(self._authenticate(request))
            return self._app(environ, starting)
        except EngineroomError as error:
            status, headers, body = problem(_for_client(error))
            starting(
                f"{status} {error.code}", [*headers.items(), ("content-length", str(len(body)))]
            )
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def close(self) -> None:
        """Stop the authenticator's thread."""
        self._loop.close()
        self._started = None

    async def _authenticate(self, request: RequestCredentials) -> tuple[Principal | None, str]:
        return await (await self._authenticator()).authenticate(request)

    async def _authenticator(self) -> Authenticator:
        # One for each loop: a fork gets a new loop, and the old authenticator belongs to the old
        # one.
        loop = asyncio.get_running_loop()
        started = self._started
        if started is None or started[0] is not loop:
            started = self._started = (loop, asyncio.ensure_future(self._make()))
        try:
            return await asyncio.shield(started[1])
        except BaseException:
            if started[1].done() and (started[1].cancelled() or started[1].exception()):
                self._started = None
            raise


def _credentials_of_environ(environ: Mapping[str, Any]) -> RequestCredentials:
    # A WSGI server joins repeated headers by commas: two Authorization headers are not a token.
    headers = {
        name[5:].replace("_", "-").lower(): (str(value),)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    return RequestCredentials(
        environ["REQUEST_METHOD"], headers, address=environ.get("REMOTE_ADDR", "")
    )
